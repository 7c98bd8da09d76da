"""Streams whose last message is said beforehand: the last reply and the status leave together."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb

from sandboxd.channel import layout
from sandboxd.front import ext_proc
from tests.support.fake_vm import Event, pass_through
from tests.support.front_rig import Call, Rig, kinds_seen, modes, plugin, request_headers, response_headers

METADATA = [("x-sandboxd-tenant", "acme"), (ext_proc.LAST_KEY, ext_proc.RESPONSE_HEADERS)]


def early(rig: Rig) -> Call:
    return rig.call(metadata=METADATA)


async def ended_ok(call: Call) -> None:
    """The server has ended the stream, and the client has not."""
    assert await asyncio.wait_for(call.rpc.read(), 5) is grpc.aio.EOF
    assert await call.status() == (grpc.StatusCode.OK, "")


async def test_the_server_ends_the_stream(rig: Rig) -> None:
    rig.attach()
    call = early(rig)
    assert (await call.ask(request_headers(eos=True, protocol_config=modes()))).HasField("request_headers")
    assert (await call.ask(response_headers())).HasField("response_headers")

    await ended_ok(call)
    await rig.until(lambda: len(rig.vms[0].seen) == 4)
    assert kinds_seen(rig.vms[0])[-1] == "STREAM_CLOSE"
    assert rig.vms[0].seen[-1].flags == 0, "not a reset"
    assert not rig.service.streams


async def test_without_the_word_it_waits_for_the_client(rig: Rig) -> None:
    rig.attach()
    call = rig.call()
    await call.ask(request_headers(eos=True, protocol_config=modes()))
    await call.ask(response_headers())
    await asyncio.sleep(0.05)

    assert len(rig.service.streams) == 1
    await call.done()


async def test_a_local_response_is_the_last_reply(rig: Rig) -> None:
    def close(event: Event):  # type: ignore[no-untyped-def]
        if event.kind == layout.REQUEST_HEADERS:
            return [event.effect(layout.CLOSE_STREAM), event.verdict()]
        return pass_through(event)

    rig.attach(answer=close)
    call = early(rig)
    assert (await call.ask(request_headers(protocol_config=modes()))).HasField("immediate_response")
    await ended_ok(call)


async def test_response_headers_that_are_held_are_waited_for(rig: Rig) -> None:
    """Another stream's event frees them; the reply still goes with the status."""
    held: list[Event] = []

    def answer(event: Event):  # type: ignore[no-untyped-def]
        if event.kind != layout.RESPONSE_HEADERS:
            freed = [event.effect(one.kind, stream_id=one.stream_id) for one in held]
            return (
                [*pass_through(event)[:-1], *freed, event.verdict()]
                if event.kind in layout.MAP_KINDS
                else (pass_through(event))
            )
        held.append(event)
        return [event.verdict(0, layout.STATE_RESPONSE_PAUSED | layout.STATE_RESPONSE_HEADERS_HELD)]

    rig.attach(plugin("limits: {time_per_event: 5s}"), answer=answer)
    waiting = early(rig)
    await waiting.ask(request_headers(eos=True, protocol_config=modes()))
    await waiting.send(response_headers())
    await rig.until(lambda: held)
    other = rig.call()
    await other.ask(request_headers(eos=True, protocol_config=modes()))

    assert (await waiting.receive()).HasField("response_headers")
    await ended_ok(waiting)
    await other.done()


async def test_response_headers_that_nothing_frees_fail(rig: Rig) -> None:
    def hold(event: Event):  # type: ignore[no-untyped-def]
        if event.kind == layout.RESPONSE_HEADERS:
            return [event.verdict(0, layout.STATE_RESPONSE_PAUSED | layout.STATE_RESPONSE_HEADERS_HELD)]
        return pass_through(event)

    rig.attach(plugin("limits: {time_per_event: 50ms}"), answer=hold)
    call = early(rig)
    await call.ask(request_headers(eos=True, protocol_config=modes()))
    assert (await call.ask(response_headers())).HasField("immediate_response")
    await ended_ok(call)


async def test_a_client_that_ends_before_its_last_message(rig: Rig) -> None:
    rig.attach()
    call = early(rig)
    await call.ask(request_headers(eos=True, protocol_config=modes()))
    await call.rpc.done_writing()

    assert (await call.status())[0] is grpc.StatusCode.CANCELLED
    await rig.until(lambda: not rig.service.streams)
    await rig.until(lambda: kinds_seen(rig.vms[0])[-1] == "STREAM_CLOSE")


async def test_a_client_that_is_cancelled_while_its_last_message_is_held(rig: Rig) -> None:
    def hold(event: Event):  # type: ignore[no-untyped-def]
        if event.kind == layout.RESPONSE_HEADERS:
            return [event.verdict(0, layout.STATE_RESPONSE_PAUSED)]
        return pass_through(event)

    rig.attach(plugin("limits: {time_per_event: 5s}"), answer=hold)
    call = early(rig)
    await call.ask(request_headers(eos=True, protocol_config=modes()))
    await call.send(response_headers())
    await rig.until(lambda: "RESPONSE_HEADERS" in kinds_seen(rig.vms[0]))
    call.rpc.cancel()
    await rig.until(lambda: not rig.service.streams)
    await rig.until(lambda: kinds_seen(rig.vms[0])[-1] == "STREAM_CLOSE")

    assert rig.vms[0].seen[-1].flags == layout.FLAG_RESET


@pytest.mark.parametrize("which", [{"request": 1}, {"response": 4}])
async def test_bodies_contradict_it(rig: Rig, which: dict[str, int]) -> None:
    rig.attach()
    call = early(rig)
    await call.send(request_headers(protocol_config=modes(**which)))
    code, details = await call.status()

    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "but bodies are sent" in details


async def test_an_unknown_last_message(rig: Rig) -> None:
    rig.attach()
    call = rig.call(metadata=[METADATA[0], (ext_proc.LAST_KEY, "request_body")])
    code, details = await call.status()

    assert code is grpc.StatusCode.NOT_FOUND
    assert "'request_body' (allowed: response_headers)" in details


async def test_observability_mode_ends_with_the_client(rig: Rig) -> None:
    """Nobody waits for replies there, and none of them is the last."""
    rig.attach()
    call = early(rig)
    await call.send(request_headers(eos=True, protocol_config=modes(), observability_mode=True))
    await call.send(response_headers(observability_mode=True))
    await rig.until(lambda: "RESPONSE_HEADERS" in kinds_seen(rig.vms[0]))
    await call.rpc.done_writing()

    # gRPC wants a last message with this kind of status; Envoy looks at none in this mode.
    assert await call.receive() == pb.ProcessingResponse()
    await ended_ok(call)
