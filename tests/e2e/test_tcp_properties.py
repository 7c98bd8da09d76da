"""What a plugin sets on a TCP connection is dynamic metadata in a real Envoy: its access log tells."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support import tcp_stage
from tests.support.guests import Guest, tcp_probe

pytestmark = [pytest.mark.envoy, pytest.mark.timeout(60)]

PROBE, FORBIDDEN = tcp_probe("property"), tcp_probe("forbidden")
NAMESPACES = tuple(f"sandboxd.{tcp_stage.TENANT}.{guest.name}" for guest in (PROBE, FORBIDDEN))


def access_log(path: Path) -> dict[str, Any]:
    """Return a listener's access log: a JSON object for each connection, with the metadata of each namespace."""
    fields = {namespace: f"%DYNAMIC_METADATA({namespace})%" for namespace in NAMESPACES}
    fields["one"] = f"%DYNAMIC_METADATA({NAMESPACES[0]}:tcp.down)%"
    typed = "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog"
    config = {"@type": typed, "path": str(path), "log_format": {"json_format": fields}}
    return {"access_log": [{"name": "envoy.access_loggers.file", "typed_config": config}]}


def logged(directory: Path, guests: tuple[Guest, ...], namespaces: tuple[str, ...]) -> list[dict[str, Any]]:
    """Hold a conversation with each plugin; return what Envoy has logged of it. It writes its log when it ends."""
    log = directory / "access.log"
    entries = [tcp_stage.plugin(guest) for guest in guests]
    for entry in entries:
        entry["configuration"] = "property"
        entry["write"] = {"properties": entry["name"] != FORBIDDEN.name}
    network = {"metadata_options": {"receiving_namespaces": {"untyped": list(namespaces)}}}
    with tcp_stage.running(guests, directory, plugins=entries, network=network, listener=access_log(log)) as stage:
        for guest in guests:
            assert stage.talk(f"net-{guest.name}", (b"first", b"second")).client == b"firstsecond"
    return [json.loads(line) for line in log.read_text().splitlines()]


def test_what_is_set_is_logged(tmp_path: Path) -> None:
    """From every callback, the last value of each; nothing of a plugin whose policy forbids it."""
    ours, forbidden = NAMESPACES
    values = {"tcp.new": "yes", "tcp.down": "second", "tcp.up": "second"}

    assert logged(tmp_path, (PROBE, FORBIDDEN), NAMESPACES) == [
        {ours: values, forbidden: None, "one": "second"},
        {ours: None, forbidden: None, "one": None},
    ]


def test_envoy_takes_the_listed_namespaces_alone(tmp_path: Path) -> None:
    """Without `receiving_namespaces` it drops what a plugin sets."""
    assert logged(tmp_path, (PROBE,), ()) == [dict.fromkeys((*NAMESPACES, "one"))]
