"""The policies of `policies/examples`, with the modules of `tests/guests` in place of their row of zeros."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.support.guests import GUESTS
from tests.support.stage import Tenant

EXAMPLES = Path(__file__).resolve().parents[2] / "policies" / "examples"

MODULES = {"access_log.wasm": "c_access_log.wasm", "log_shipper.wasm": "c_log_shipper.wasm"}
"""Modules of the examples that have another name here."""

WITH_MODULES = (
    "access-log",
    "circuit-breaker",
    "ext-authz",
    "fault-injection",
    "jwt-check",
    "rate-limiter",
    "tcp-flow-control",
)
"""Examples whose modules are there; the others are for a module of the reader's."""


def policy(name: str) -> dict[str, Any]:
    """Return an example as it stands, but for file and digest of its modules."""
    document: dict[str, Any] = yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text())
    for plugin in document["plugins"]:
        file = Path(plugin["module"]["file"]).name
        module = GUESTS / "c" / MODULES.get(file, file)
        plugin["module"] = {"file": str(module), "sha256": hashlib.sha256(module.read_bytes()).hexdigest()}
    return document


def tenant(name: str, configuration: Mapping[str, Any] | None = None, *, as_tenant: str = "", **more: Any) -> Tenant:
    """
    Return an example of one plugin as a tenant.

    Args:
        name: of the example, and of the tenant unless ``as_tenant`` is given.
        configuration: what to change in the plugin's configuration.
        as_tenant: the tenant.
        more: what to replace in the plugin's entry.
    """
    document = policy(name)
    (plugin,) = document.pop("plugins")
    plugin = {**plugin, "configuration": {**plugin["configuration"], **(configuration or {})}, **more}
    document.pop("tenant")
    return Tenant(as_tenant or name, [plugin], more=document)
