"""Network ext_proc with bad proxies and hostile workers: refused, bounded, and never taken for honest ones."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

import grpc
import pytest

from sandboxd.channel import layout
from sandboxd.channel.ring import Record
from sandboxd.policy.capability_names import HTTP_CALLBACKS
from sandboxd.protos import network_ext_proc_pb2 as pb
from tests.support.fake_vm import Event
from tests.support.front_rig import Rig, plugin
from tests.support.network_play import DOWN, EMPTY, HELD, READ, UP, scripted


@pytest.mark.parametrize(
    "message",
    [
        pb.ProcessingRequest(),
        pb.ProcessingRequest(read_data={}, write_data={}),
    ],
)
async def test_messages_that_are_none(rig: Rig, message: pb.ProcessingRequest) -> None:
    """The stream ends with the reason."""
    rig.attach()
    call = rig.connect()
    await call.send(message)

    code, reason = await call.status()
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "exactly one" in reason


async def test_data_after_their_end(rig: Rig) -> None:
    """Is the proxy's fault."""
    rig.attach()
    call = rig.connect()
    await call.down(b"", eos=True)
    await call.reply()
    await call.down(b"x")

    assert (await call.status())[0] is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_plugin_without_tcp_callbacks_is_no_filter(rig: Rig) -> None:
    """Passing everything would look like one."""
    rig.attach(plugin(callbacks=("proxy_on_context_create", *HTTP_CALLBACKS)))
    call = rig.connect()
    await call.down(b"x")

    code, reason = await call.status()
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "no callback for TCP" in reason


def forged(kind: int, payload: bytes = b"", flags: int = 0, arg: int = 0) -> Callable[[Event], Iterable[Record]]:
    """An effect in place of the honest one."""

    def script(event: Event) -> Iterable[Record] | None:
        if event.kind == DOWN:
            return [event.effect(kind, payload, flags, arg), event.verdict()]
        return None

    return scripted(script)


@pytest.mark.parametrize(
    "answer",
    [
        forged(layout.REQUEST_BODY, b"x"),
        forged(layout.LOCAL_RESPONSE, b"x" * 24),
        forged(layout.CLEAR_ROUTE_CACHE),
        forged(UP, flags=layout.FLAG_AS_SUBMITTED),
        forged(UP, b"x", layout.FLAG_END_OF_STREAM),
        forged(DOWN, b"x", layout.FLAG_END_OF_STREAM),
        forged(layout.CLOSE_STREAM, arg=4),
        forged(layout.PROPERTY_SET, b"no map"),
    ],
)
async def test_forged_effects_break_the_channel(rig: Rig, answer: Callable[[Event], Iterable[Record]]) -> None:
    """HTTP's effects, others' bytes, an end that never came."""
    rig.attach(answer=answer)
    call = rig.connect()
    await call.down(b"x")

    assert await call.reply() == ("CLOSE_RST", b"", False)
    await rig.until(lambda: bool(rig.broken))


async def test_the_harmless_twin_breaks_nothing(rig: Rig) -> None:
    """As above, without the forgery."""
    rig.attach(answer=forged(DOWN, b"y"))
    call = rig.connect()
    await call.down(b"x")

    assert await call.reply() == (READ, b"y", False)
    assert not rig.broken
    await call.done()


async def test_bytes_on_an_http_stream_break_the_channel(rig: Rig) -> None:
    """A connection's effects are none of an exchange's."""
    from tests.support.front_rig import request_headers

    rig.attach(
        answer=scripted(lambda e: [e.effect(DOWN, b"x"), e.verdict()] if e.kind == layout.REQUEST_HEADERS else None)
    )
    reply = await rig.call().ask(request_headers(eos=True))

    assert reply.HasField("immediate_response")
    assert rig.broken


async def test_what_is_kept_here_is_bounded(rig: Rig) -> None:
    """A worker that holds bytes that it cannot read holds them in the front."""
    made = plugin("limits: {body_buffer: 64KiB}", functions=("proxy_log",))
    rig.attach(made, answer=scripted(lambda event: [event.verdict(0, HELD)] if event.kind == DOWN else None))
    call = rig.connect()
    await call.down(bytes(40_000))
    await call.down(bytes(40_000))

    assert {await call.reply() for _ in range(1)} <= {EMPTY, ("CLOSE_RST", b"", False)}
    await rig.until(lambda: rig.count("network_ext_proc.cannot_carry.data_held") == 1)


async def test_a_slow_proxy_is_not_read_ahead_of(rig: Rig) -> None:
    """Who reads no replies is not read from either: gRPC's windows are all that is kept of him."""
    rig.attach()
    call = rig.connect()
    sent = 0
    try:
        for _ in range(400):
            await asyncio.wait_for(call.down(bytes(60_000)), 0.5)
            sent += 1
    except TimeoutError:
        pass

    assert 0 < sent < 400
    assert len([event for event in rig.vms[0].seen if event.kind == DOWN]) < 300
    call.rpc.cancel()
