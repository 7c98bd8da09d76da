"""Effects that arise outside any event: a tick or the answer to a callout lets a paused request go on, or ends it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb

from sandboxd.channel import layout
from sandboxd.channel.completions import Effect, LocalResponse, encode_local_response
from sandboxd.front.ext_proc_codec import Exchange
from sandboxd.front.side import FULL_DUPLEX_STREAMED, STREAMED
from tests.support.fake_vm import Event, pass_through
from tests.support.front_rig import Rig, plugin, request_headers

STOPPED = layout.STATE_REQUEST_PAUSED | layout.STATE_REQUEST_HEADERS_HELD | layout.STATE_REQUEST_ALL_STOPPED
Record = tuple[int, int, int, int, int, bytes]


def vm_that_pauses(late: Callable[[int], Iterable[Record]]) -> tuple[list[int], Callable[[Event], list[Any]]]:
    """A VM that pauses the first stream; with the second stream's verdict come records outside any event."""
    held: list[int] = []

    def answer(event: Event) -> list[Any]:
        if event.kind != layout.REQUEST_HEADERS:
            return list(pass_through(event))
        if not held:
            held.append(event.stream_id)
            return [event.verdict(0, STOPPED)]
        return [*pass_through(event), *late(held[0])]

    return held, answer


async def paused(rig: Rig, late: Callable[[int], Iterable[Record]]) -> Any:
    """A call that waits, and a second one whose event brings the records."""
    held, answer = vm_that_pauses(late)
    rig.attach(plugin("limits: {time_per_event: 5s}"), answer=answer)
    waiting = rig.call()
    await waiting.send(request_headers(eos=True))
    await rig.until(lambda: held)
    other = rig.call()
    assert (await other.ask(request_headers(eos=True))).HasField("request_headers")
    await other.done()
    return waiting


async def test_a_paused_request_goes_on(rig: Rig) -> None:
    waiting = await paused(rig, lambda stream: [(layout.REQUEST_HEADERS, layout.FLAG_END_OF_STREAM, stream, 0, 0, b"")])

    assert (await waiting.receive()).HasField("request_headers")
    await waiting.done()


async def test_a_paused_request_is_answered(rig: Rig) -> None:
    payload = encode_local_response(LocalResponse(429, -1, False, b"limited", [], b"slow down"), b"")
    waiting = await paused(rig, lambda stream: [(layout.LOCAL_RESPONSE, 0, stream, 0, 0, payload)])

    reply = await waiting.receive()

    assert reply.immediate_response.status.code == 429
    assert reply.immediate_response.body == b"slow down"


async def test_effects_on_a_stream_that_is_over_are_counted(rig: Rig) -> None:
    """The request has gone away while the callout was under way."""
    over: list[int] = []

    def answer(event: Event) -> list[Any]:
        records = list(pass_through(event))
        if event.kind == layout.STREAM_CLOSE:
            over.append(event.stream_id)
        elif event.kind == layout.REQUEST_HEADERS and over:
            records.append((layout.REQUEST_HEADERS, 0, over[0], 0, 0, b""))
        return records

    rig.attach(plugin("limits: {time_per_event: 5s}"), answer=answer)
    first = rig.call()
    await first.ask(request_headers(eos=True))
    await first.done()
    await rig.until(lambda: over)
    await asyncio.sleep(0.05)
    second = rig.call()
    assert (await second.ask(request_headers(eos=True))).HasField("request_headers")
    await second.done()

    await rig.until(lambda: rig.count("effects_on_closed_streams") == 1)


@pytest.mark.parametrize("mode", [STREAMED, FULL_DUPLEX_STREAMED])
def test_a_body_that_is_freed_while_the_next_piece_is_with_the_plugin(mode: int) -> None:
    """Both go on, in their order, and each message has its reply."""
    exchange = Exchange(plugin(), lambda *_: None)
    message = request_headers(eos=False)
    message.protocol_config.request_body_mode = mode
    asks = exchange.receive(message)
    exchange.answer(asks[0], [Effect(layout.REQUEST_HEADERS, 0, 1, 1, 0, b"")], 0)
    (first,) = exchange.receive(pb.ProcessingRequest(request_body={"body": b"first"}))
    exchange.answer(first, [], layout.STATE_REQUEST_PAUSED)
    (second,) = exchange.receive(pb.ProcessingRequest(request_body={"body": b"second", "end_of_stream": True}))
    exchange.late([Effect(layout.REQUEST_BODY, 0, 1, 0, 0, b"first")])
    exchange.answer(second, [Effect(layout.REQUEST_BODY, layout.FLAG_END_OF_STREAM, 1, 3, 0, b"second")], 0)

    mutations = [
        pb.ProcessingResponse.FromString(reply).request_body.response.body_mutation for reply in exchange.replies[1:]
    ]
    assert b"".join(mutation.body + mutation.streamed_response.body for mutation in mutations) == b"firstsecond"
    if mode == STREAMED:
        assert [mutation.WhichOneof("mutation") for mutation in mutations] == ["clear_body", "body"]
