"""A VM that goes away while a plugin holds something: it does not take the proxy's next message to learn of it."""

from __future__ import annotations

from typing import Any

import pytest
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb

from sandboxd.channel import layout
from sandboxd.front.side import FULL_DUPLEX_STREAMED, STREAMED
from tests.support.fake_vm import Event, pass_through
from tests.support.front_rig import Rig, modes, plugin, request_headers

PATIENT = "limits: {time_per_event: 30s}"


def keeps_bodies(event: Event) -> list[Any]:
    """A VM that holds each body, or the bytes of a connection."""
    if event.kind in (layout.REQUEST_BODY, layout.DOWNSTREAM_DATA):
        return [event.verdict(0, layout.STATE_REQUEST_PAUSED)]
    return list(pass_through(event))


def next_vm(rig: Rig) -> None:
    rig.vms[0].begin()


def no_more_vm(rig: Rig) -> None:
    rig.registry.detach(1, "worker died")


@pytest.mark.parametrize("goes", [next_vm, no_more_vm])
@pytest.mark.parametrize("mode", [STREAMED, FULL_DUPLEX_STREAMED])
async def test_a_stream_with_held_bytes_fails_at_once(rig: Rig, mode: int, goes: Any) -> None:
    rig.attach(plugin(PATIENT), answer=keeps_bodies)
    call = rig.call()
    await call.ask(request_headers(protocol_config=modes(mode)))
    await call.send(pb.ProcessingRequest(request_body={"body": b"abc"}))
    if mode == STREAMED:
        assert (await call.receive()).request_body.response.body_mutation.clear_body
    await rig.until(
        lambda: all(stream._exchange.request.taken for stream in rig.registry._channels[1].streams.values())
    )
    goes(rig)

    assert (await call.receive()).immediate_response.status.code == 503


async def test_a_stream_without_anything_held_learns_of_it_later(rig: Rig) -> None:
    rig.attach(plugin(f"failure: {{policy: open}}\n{PATIENT}"))
    call = rig.call()
    await call.ask(request_headers(protocol_config=modes(FULL_DUPLEX_STREAMED)))
    no_more_vm(rig)
    assert rig.count("failed.worker_gone") == 0
    reply = await call.ask(pb.ProcessingRequest(request_body={"body": b"abc", "end_of_stream": True}))

    assert reply.request_body.response.body_mutation.streamed_response.body == b"abc"


async def test_a_connection_with_held_bytes_fails_at_once(rig: Rig) -> None:
    channel = rig.attach(plugin("limits: {time_per_event: 100ms, time_per_pause: 100ms}"), answer=keeps_bodies)
    connection = rig.connect()
    await connection.down(b"abc")
    assert await connection.reply() == ("read_data", b"", False), "the proxy waits no longer"
    assert channel.streams
    no_more_vm(rig)

    assert (await connection.reply())[0] == "CLOSE_RST"


@pytest.mark.parametrize(("said", "details"), [(2, "sandboxd_cpu_limit"), (3, "sandboxd_memory_limit")])
async def test_why_a_vm_failed_is_known_though_its_channel_is_gone(rig: Rig, said: int, details: str) -> None:
    """Both are met in one turn of the loop."""
    channel = rig.attach(plugin(PATIENT), answer=lambda _: [])
    call = rig.call()
    await call.send(request_headers(eos=True))
    await rig.until(lambda: rig.vms[0].seen)
    rig.vms[0].fail(said)
    channel.vm.flush()
    no_more_vm(rig)

    assert (await call.receive()).immediate_response.details == details
