"""The guest modules of `tests/guests`, each with the settings that make it do its work."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

GUESTS = Path(__file__).resolve().parents[1] / "guests"


@dataclass(frozen=True)
class Guest:
    """A module with its settings, the same for Envoy's own filter and for sandboxd."""

    name: str
    file: str
    configuration: str = ""
    root_id: str = ""
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """The module's file."""
        return GUESTS / self.file

    def plugin(self, **more: Any) -> dict[str, Any]:
        """Return the plugin's entry in a policy file; ``more`` are further keys."""
        entry: dict[str, Any] = {
            "name": self.name,
            "module": {"file": str(self.path), "sha256": hashlib.sha256(self.path.read_bytes()).hexdigest()},
            "capabilities": {"preset": "standard"},
        }
        if self.configuration:
            entry["configuration"] = self.configuration
        if self.root_id:
            entry["root_id"] = self.root_id
        if self.environment:
            entry["vm"] = {"environment": self.environment}
        return {**entry, **more}


HTTP_HEADERS = Guest("http-headers", "rust/http_headers.wasm")
HTTP_BODY_RESPONSE = Guest("http-body-response", "rust/http_body.wasm")
HTTP_BODY_REQUEST = Guest("http-body-request", "rust/http_body.wasm", "request")
HTTP_CONFIG = Guest("http-config", "rust/http_config.wasm", '{"header":"x-configured","value":"by the plugin"}')
TOKEN_GATE = Guest("token-gate", "rust/token_gate.wasm", "sesame")
C_ADD_HEADER = Guest("c-add-header", "c/c_add_header.wasm")
C_JSON_BODY = Guest("c-json-body", "c/c_json_body.wasm")
C_ABI_0_1_0 = Guest("c-abi-0-1-0", "c/c_abi_0_1_0.wasm", "as configured")
PROBE = Guest("probe", "rust/probe.wasm", "as configured", environment={"PROBE_ENV": "from outside"})
C_BENCH = Guest("c-bench", "c/c_bench.wasm")
GO_FILTER = Guest(
    "go-filter",
    "go/go_filter.wasm",
    '{"headers":{"x-go-one":"1","x-go-two":"2"},"uppercase_request_body":true}',
    environment={"REGION": "eu"},
)
AS_FILTER = Guest("as-filter", "assemblyscript/as_filter.wasm", "from AssemblyScript", root_id="as_filter")


def misdeed(file: str) -> Guest:
    """Return a guest of `tests/guests/misdeeds` by its file's stem; its plugin is named after it."""
    return Guest(file.replace("_", "-"), f"misdeeds/{file}.wasm")
