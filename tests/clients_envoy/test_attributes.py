"""Attributes on demand, in a real Envoy: what the plugin asked for comes with later streams."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support import guests, stage

pytestmark = [pytest.mark.envoy, pytest.mark.timeout(120)]

HOST, PORT, PATH = "xds/virtual_host_name", "upstream/port", "request/path"
NOT_FOUND = "status-1"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[stage.Stage]:
    """The same module thrice: as it is, with an attribute that is hidden, and one whose plugin asks for common ones."""
    plugins = [
        guests.PROBE.plugin(name="open"),
        guests.PROBE.plugin(name="hidden", redact={"properties": ["xds.virtual_host_name"]}),
        guests.PROBE.plugin(name="other"),
    ]
    tenants = [stage.Tenant("acme", plugins)]
    with stage.running(tmp_path_factory.mktemp("attributes"), tenants, transport=stage.SHM) as found:
        yield found


def ask(running: stage.Stage, plugin: str, *names: str) -> dict[tuple[str, str], str]:
    """Return what the plugin gets in both phases, by phase and name; values as text."""
    answer = running.get(f"/acme/{plugin}/x?y", ("x-probe-properties", ",".join(names)))
    assert answer.status == 200
    found = {}
    for header, line in answer.headers:
        if header.startswith("x-probe-result-property-"):
            name, value = line.split("=", 1)
            phase = header.split("-")[4]
            found[phase, name] = value if value == NOT_FOUND else bytes.fromhex(value).decode("latin-1")
    return found


def test_what_was_asked_for_comes_with_the_next_stream(running: stage.Stage) -> None:
    """The first stream misses a rare attribute; one of the response it gets itself, when it asks early enough."""
    first = ask(running, "open", HOST, PORT)
    second = ask(running, "open", HOST, PORT)

    assert first["request", HOST] == first["response", HOST] == NOT_FOUND
    assert second["request", HOST] == second["response", HOST] == "stage"
    assert first["request", PORT] == second["request", PORT] == NOT_FOUND  # no upstream is chosen yet
    assert len(first["response", PORT]) == 8
    assert int.from_bytes(first["response", PORT].encode("latin-1"), "little") > 1024


def test_common_ones_are_there_at_once(running: stage.Stage) -> None:
    """Neither those that the VM makes from the headers nor the usual ones are missed by anybody."""
    found = ask(running, "other", PATH, "destination/address", "request/protocol", "response/code_details")

    assert found["request", PATH] == "/acme/other/x?y"
    assert found["request", "destination/address"] == f"127.0.0.1:{running.port}"
    assert found["request", "request/protocol"] == "HTTP/1.1"
    assert found["response", "response/code_details"] == "via_upstream"


def test_what_the_policy_hides_is_not_fetched(running: stage.Stage) -> None:
    """However often the plugin asks."""
    for _ in range(3):
        assert ask(running, "hidden", HOST)["request", HOST] == NOT_FOUND
