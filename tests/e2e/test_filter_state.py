"""The recipe of docs/ext_proc.md in a real Envoy: its very configuration makes filter state of what a plugin sets."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from sandboxd.demo.client import Request
from sandboxd.front.wire import field
from tests.support import guests, stage

pytestmark = [pytest.mark.envoy, pytest.mark.timeout(60)]

DOCS = Path(__file__).resolve().parents[2] / "docs/ext_proc.md"
TENANT, PLUGIN = "acme", "gate"
RECEIVING = {"metadata_options": {"receiving_namespaces": {"untyped": [f"sandboxd.{TENANT}.{PLUGIN}"]}}}
SHOWN = {
    "name": "envoy.filters.http.header_mutation",
    "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3.HeaderMutation",
        "mutations": {
            "request_mutations": [
                {"append": {"header": {"key": "x-state", "value": "%FILTER_STATE(envoy.string:PLAIN)%"}}}
            ]
        },
    },
}
"""Tells the upstream of the filter state."""


def recipe() -> dict[str, Any]:
    """Return the filter that the docs tell to put behind the plugin's."""
    (block,) = re.findall(r"^### Filter state$.*?^```yaml\n(.*?)^```$", DOCS.read_text(), re.MULTILINE | re.DOTALL)
    found = yaml.safe_load(block)
    assert found["name"] == "envoy.filters.http.set_filter_state"
    return dict(found)


@pytest.fixture(scope="module", params=stage.TRANSPORTS)
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[stage.Stage]:
    entry = {**guests.C_FOREIGN_PROBE.plugin(), "name": PLUGIN}
    with stage.running(
        tmp_path_factory.mktemp(request.param),
        [stage.Tenant(TENANT, [entry])],
        transport=request.param,
        ext_proc=RECEIVING,
        behind=[recipe(), SHOWN],
    ) as made:
        yield made


def state(running: stage.Stage, commands: str) -> tuple[str, str]:
    """Return what the guest said of its commands, and the filter state that the upstream was told."""
    answer = running.send(Request("GET", f"/{TENANT}/{PLUGIN}/", (("x-foreign", commands),)))
    (seen,) = running.recorder.take()
    return answer.value("x-request"), seen.value("x-state", "none")


def setting(path: str, value: str) -> str:
    """Return the command that sets filter state."""
    return f"call set_envoy_filter_state {(field(1, path.encode()) + field(2, value.encode())).hex()}"


def test_what_the_plugin_sets_is_filter_state(running: stage.Stage) -> None:
    assert state(running, setting("envoy.string", "blue, or green")) == ("0=", "blue, or green")


def test_it_is_of_one_stream(running: stage.Stage) -> None:
    """One that sets nothing, or something else, has none."""
    assert state(running, setting("envoy.string", "blue"))[1] == "blue"
    for commands in ("get no/thing", setting("envoy.other", "blue"), "set envoy.string 31"):
        assert state(running, commands)[1] == "none"
