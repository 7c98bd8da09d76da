"""One call in the broker: how it ends, whoever ends it, and what a worker that is no honest one gets of it."""

from __future__ import annotations

import asyncio

import pytest

from sandboxd.egress import calls
from sandboxd.egress.budget import Lease
from sandboxd.egress.context import Context
from sandboxd.protos import control_pb2 as control
from tests.support import broker, upstream
from tests.support.broker import CANCEL, grpc_message, http_call, status

pytestmark = pytest.mark.timeout(60)


async def test_a_vm_that_is_gone_gets_nothing(known: upstream.Upstream) -> None:
    async with broker.running() as peer:
        peer.rules(1, "acme", {"p": upstream.policy(known, concurrency=1)})
        gone = peer.begin(control.CalloutRequest(http_call=http_call("/slow/300")), vm=7)
        peer.send(vm_gone=control.EgressVmGone(worker_id=1, vm_id=7))
        assert status(await peer.http(http_call())) == b"200"  # its place is free at once
        with pytest.raises(TimeoutError):
            await peer.reply(gone, 0.6)


@pytest.mark.parametrize("then", ["is refused", "is cancelled", "is cancelled and its vm is gone"])
async def test_a_call_that_is_over_does_not_go_on(
    known: upstream.Upstream, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    """Not even if all comes in one turn of the loop; what it held is given back once, and nothing is said of it."""
    begun, ended = asyncio.Event(), asyncio.Event()
    leases: list[Lease] = []

    async def endless(context: Context, _call: control.HttpCall) -> control.CalloutReply:
        leases.append(context.lease)
        context.lease.take(1000)
        begun.set()
        try:
            return await asyncio.get_running_loop().create_future()
        finally:
            context.lease.give(1000)
            ended.set()

    async with broker.running() as peer:
        peer.rules(1, "acme", {"p": upstream.policy(known)})
        with monkeypatch.context() as patch:
            patch.setattr(calls, "http_call", endless)
            key = peer.begin(control.CalloutRequest(http_call=http_call()), vm=7)
            await asyncio.wait_for(begun.wait(), 5)
            peer.more(key, CANCEL if "cancelled" in then else grpc_message(b"x"))
            if "gone" in then:
                peer.send(vm_gone=control.EgressVmGone(worker_id=1, vm_id=7))
            await asyncio.wait_for(ended.wait(), 5)
        assert status(await peer.http(http_call())) == b"200"
        if "gone" in then:
            with pytest.raises(TimeoutError):
                await peer.reply(key, 0.3)
        else:
            reply = await peer.reply(key)
            assert (reply.lost.reason if reply else "") == ("denied by the policy: form" if "refused" in then else "")
    assert leases[0].held == leases[0]._budget.used == 0


# --- hostile workers ---


@pytest.mark.parametrize(
    "data",
    [
        b"\xff" * 100,
        b"",
        CANCEL.SerializeToString(),
        grpc_message(b"x").SerializeToString(),
        control.CalloutRequest(grpc_half_close=control.GrpcHalfClose()).SerializeToString(),
    ],
)
async def test_what_begins_no_call_is_refused(known: upstream.Upstream, data: bytes) -> None:
    async with broker.running() as peer:
        peer.rules(1, "acme", {"p": upstream.policy(known)})
        peer.raw((1, 1, 99), data, first=True)
        reply = await peer.reply((1, 1, 99))
        if data == CANCEL.SerializeToString():
            assert reply is not None
        assert reply is None or reply.lost.reason == "denied by the policy: form"
        assert status(await peer.http(http_call())) == b"200"


async def test_a_request_without_end_is_refused(known: upstream.Upstream) -> None:
    async with broker.running() as peer:
        peer.rules(1, "acme", {"p": upstream.policy(known)})
        peer.raw((1, 1, 99), b"x" * (2 << 20), first=True)
        reply = await peer.reply((1, 1, 99))
        assert reply is not None
        assert reply.lost.reason == "denied by the policy: request_bytes"
        assert status(await peer.http(http_call())) == b"200"


async def test_a_second_request_on_a_call_is_refused(known: upstream.Upstream) -> None:
    async with broker.running() as peer:
        peer.rules(1, "acme", {"p": upstream.policy(known, concurrency=1)})
        key = peer.begin(control.CalloutRequest(http_call=http_call("/slow/2000")))
        peer.more(key, control.CalloutRequest(http_call=http_call("/ok")))
        reply = await peer.reply(key, 1)
        assert reply is not None
        assert reply.lost.reason == "denied by the policy: form"
        assert status(await peer.http(http_call())) == b"200"


async def test_a_call_of_a_worker_that_nobody_announced_is_dropped(known: upstream.Upstream) -> None:
    async with broker.running() as peer:
        peer.rules(1, "acme", {"p": upstream.policy(known)})
        key = peer.begin(control.CalloutRequest(http_call=http_call()), worker=9)
        with pytest.raises(TimeoutError):
            await peer.reply(key, 0.3)
        assert status(await peer.http(http_call())) == b"200"


async def test_a_mistake_of_ours_is_answered_and_fills_no_log(
    known: upstream.Upstream, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A plugin that has found one can repeat it all day."""

    async def mistake(*_: object) -> control.CalloutReply:
        raise IndexError("nobody has thought of this")

    monkeypatch.setattr(calls, "http_call", mistake)
    async with broker.running() as peer:
        peer.rules(1, "acme", {"p": upstream.policy(known)})
        for _ in range(20):
            reply = await peer.reply(peer.begin(control.CalloutRequest(http_call=http_call())))
            assert reply is not None
            assert reply.lost.reason == "internal error"
    said = [record for record in caplog.records if "a callout failed" in record.getMessage()]
    assert 1 <= len(said) <= 4
    assert said[0].exc_info is not None


async def test_a_connection_that_is_closed_under_its_call_is_answered(
    known: upstream.Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gRPC says so by a cancellation, of which nobody here has thought; the plugin waits, and its place is taken."""

    async def closed(*_: object) -> control.CalloutReply:
        raise asyncio.CancelledError

    async with broker.running() as peer:
        peer.rules(1, "acme", {"p": upstream.policy(known)})
        with monkeypatch.context() as patch:
            patch.setattr(calls, "http_call", closed)
            reply = await peer.reply(peer.begin(control.CalloutRequest(http_call=http_call())))
        assert reply is not None
        assert reply.lost.reason == "the connection was closed"
        assert status(await peer.http(http_call())) == b"200"
