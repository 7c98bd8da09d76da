"""
A worker that was taken over against TCP connections: as `test_trusted_side`, over network ext_proc.

It can do to its own tenant's connections what its policy lets the plugin do, and to nobody else's anything. The twin:
the same program, with an edit that the policy allows.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from sandboxd.protos import network_ext_proc_pb2 as pb
from tests.escape.test_trusted_side import Target, served
from tests.support.daemon_client import ROOT, policy_text, wait_for
from tests.support.front_rig import Connection
from tests.support.hostile_connections import FORGED, PEEKED

PROBE = ROOT / "tests" / "guests" / "c" / "c_tcp_probe.wasm"
BROKEN = ("tcp-http-effects", "tcp-forged-end", "tcp-endless")
LATE = ("tcp-late-others", "tcp-late-flood")
OPEN = ("tcp-twin", "tcp-late-twin", "tcp-others", *BROKEN, *LATE)
MORE = "limits: {time_per_event: 500ms}\nfailure: {restart: {backoff: 0ms, max_crashes: 1000}}"
BLIND = "deny: [proxy_get_buffer_bytes, proxy_set_buffer_bytes, proxy_get_buffer_status]"
METHOD = "/envoy.service.network_ext_proc.v3.NetworkExternalProcessor/Process"
SECRET = b"secret"


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
    """A daemon with an honest tenant (HTTP) and hostile ones (TCP)."""
    hostile = {f"evil-{deed}": policy_text(f"evil-{deed}", PROBE, more=MORE) for deed in OPEN}
    blind = policy_text("evil-tcp-peek", PROBE, more=MORE)
    hostile["evil-tcp-peek"] = blind.replace("{preset: standard}", f"{{preset: standard, {BLIND}}}")
    with tempfile.TemporaryDirectory(prefix="sbx") as directory:
        found = Target(Path(directory), (), MORE, **hostile)
        try:
            yield found
        finally:
            found.process.terminate()
            found.process.wait(30)
        assert "Traceback" not in found.log


async def said(target: Target, tenant: str, *pieces: bytes) -> list[pb.ProcessingResponse]:
    """Send bytes from downstream on one connection and return the answers."""
    async with grpc.aio.insecure_channel(f"unix:{target.directory}/runtime/front-0.sock") as channel:
        method = channel.stream_stream(
            METHOD,
            request_serializer=pb.ProcessingRequest.SerializeToString,
            response_deserializer=pb.ProcessingResponse.FromString,
        )
        connection = Connection(method(metadata=[("x-sandboxd-tenant", tenant)]))
        answers = []
        for piece in pieces:
            await connection.down(piece)
            answers.append(await connection.receive())
        return answers


def attack(target: Target, deed: str, *pieces: bytes) -> list[pb.ProcessingResponse]:
    """Have one done; the bystander is served before and after, and no front has died."""
    wait_for(lambda: target.tenant(f"evil-{deed}")["state"] == "running", 20, "its worker runs")
    assert served(target.request("calm"))
    answers = asyncio.run(said(target, f"evil-{deed}", *(pieces or (SECRET,))))
    assert served(target.request("calm"))
    assert target.status()["front_restarts"] == 0
    assert target.tenant("calm")["restarts"] == 0
    return answers


def test_twin_is_served(target: Target) -> None:
    """Its edits arrive, its worker lives."""
    worker = target.tenant("evil-tcp-twin")["worker"]["pid"]
    for answer in attack(target, "tcp-twin", b"a", b"b"):
        assert (answer.read_data.data, answer.read_data.end_of_stream) == (FORGED, False)
    assert target.tenant("evil-tcp-twin")["worker"]["pid"] == worker


@pytest.mark.parametrize("deed", BROKEN)
def test_broken_rules_cost_the_worker_and_reset_the_connection(target: Target, deed: str) -> None:
    """None of the forged bytes get out."""
    (answer,) = attack(target, deed)

    assert answer.connection_status == answer.CLOSE_RST
    assert not answer.HasField("read_data")
    target.killed_for(deed, "broke a channel")


def test_twin_that_frees_bytes_late_is_served(target: Target) -> None:
    """Outside any event, on its own connection."""
    (answer,) = attack(target, "tcp-late-twin")
    assert (answer.read_data.data, answer.connection_status) == (FORGED, answer.CONTINUE)


@pytest.mark.parametrize("deed", LATE)
def test_what_it_does_outside_events_is_bounded(target: Target, deed: str) -> None:
    """Connections that were never opened, or more than a timer brings, cost the worker; the front goes on."""
    attack(target, deed)
    target.killed_for(deed, "broke a channel")


def test_bytes_for_connections_of_others_reach_nobody(target: Target) -> None:
    """Those of the same VM alone exist for it, and what was never opened is a broken rule."""

    async def both() -> list[list[pb.ProcessingResponse]]:
        evil = [said(target, "evil-tcp-others", SECRET) for _ in range(2)]
        twins = [said(target, "evil-tcp-twin", SECRET) for _ in range(20)]
        return (await asyncio.gather(*evil, *twins))[2:]

    wait_for(lambda: target.tenant("evil-tcp-others")["state"] == "running", 20, "its worker runs")
    for (answer,) in asyncio.run(both()):
        assert answer.read_data.data == FORGED
        assert answer.connection_status == answer.CONTINUE
    target.killed_for("tcp-others", "broke a channel")


def test_a_worker_without_buffer_functions_never_has_the_bytes(target: Target) -> None:
    """It was shown zeros, and what it makes up does not go on."""
    (answer,) = attack(target, "tcp-peek")

    shown = answer.dynamic_metadata["sandboxd.evil-tcp-peek.main"][PEEKED.decode()]
    assert shown == "\0" * len(SECRET)
    assert answer.read_data.data == SECRET
