"""Bytes of a connection that other events free: they go on once and in their order, whoever has to be told of them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from types import SimpleNamespace

import pytest

from sandboxd import limits
from sandboxd.channel import layout, pairs
from sandboxd.channel.ring import Record
from tests.support.fake_vm import Event, pass_through
from tests.support.front_rig import Rig, plugin

DOWN = layout.DOWNSTREAM_DATA
HELD = layout.STATE_REQUEST_PAUSED
SLOW = "limits: {time_per_event: 5s, time_per_pause: 5s}"
IMPATIENT = "limits: {time_per_event: 60ms, time_per_pause: 5s}"


class Vm:
    """
    Holds ``first``, says nothing to ``other``, and frees ``first`` in the event of ``other`` when ``second`` comes.

    Args:
        outside: frees it outside any event in place of that.
    """

    def __init__(self, *, outside: bool = False) -> None:
        self._outside = outside
        self._other: Event | None = None
        self._stream_id = 0

    def free(self) -> list[Record]:
        """Return what frees ``first``."""
        if self._outside:
            return [(DOWN, 0, self._stream_id, 0, 0, b"first")]
        assert self._other is not None
        return [self._other.effect(DOWN, b"first", stream_id=self._stream_id), self._other.verdict()]

    def answer(self, event: Event) -> Iterable[Record]:
        """Answer one event."""
        if event.payload == b"first":
            self._stream_id = event.stream_id
            return [event.verdict(0, HELD)]
        if event.payload == b"other":
            self._other = event
            return []
        return [*(self.free() if event.payload == b"second" else []), *pass_through(event)]


async def test_what_an_earlier_event_freed_goes_first(rig: Rig) -> None:
    """Both verdicts come at once; the earlier one frees bytes of the later one's connection."""
    vm = Vm()
    rig.attach(plugin(SLOW), answer=vm.answer)
    call, other = rig.connect(), rig.connect()
    await call.down(b"first")
    await rig.until(lambda: len(rig.vms[0].seen) == 3)
    await other.down(b"other")
    await rig.until(lambda: len(rig.vms[0].seen) == 6)
    await call.down(b"second")

    got = [await call.reply() for _ in range(2)]
    assert b"".join(data for _, data, _ in got) == b"firstsecond"
    assert await other.reply() == ("read_data", b"", False)
    await call.done()
    await other.done()


async def test_what_came_before_a_verdict_that_is_seen_at_once_goes_first(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The front watches the ring, so the verdict is there before the loop has taken a turn."""
    monkeypatch.setattr(limits, "MIN_CPUS_TO_SPIN", 1)
    vm = Vm(outside=True)
    channel = rig.attach(plugin(SLOW), answer=vm.answer)
    channel.vm._max_spin_ns = channel.vm._spin_ns = 300_000_000
    call = rig.connect()
    await call.down(b"first")
    await rig.until(lambda: len(rig.vms[0].seen) == 3)
    channel.vm._spin_ns = 300_000_000
    await call.down(b"second")

    got = [await call.reply() for _ in range(2)]
    assert b"".join(data for _, data, _ in got) == b"firstsecond"
    assert not rig.broken
    await call.done()


async def test_what_an_event_frees_that_nobody_waits_for_any_more_is_not_lost(rig: Rig) -> None:
    """One connection's event took too long; what it does to another connection counts all the same."""
    vm = Vm()
    rig.attach(plugin(IMPATIENT), answer=vm.answer)
    call, other = rig.connect(), rig.connect()
    await call.down(b"first")
    await rig.until(lambda: len(rig.vms[0].seen) == 3)
    await other.down(b"other")
    assert (await other.reply())[0] == "CLOSE_RST"
    rig.vms[0].emit(vm.free())

    assert await asyncio.wait_for(call.reply(), 2) == ("read_data", b"first", False)
    await call.done()


async def test_nothing_is_read_before_a_late_answer_is_written(rig: Rig) -> None:
    """A proxy that reads no answers is not read from either, also if what it does not read came late."""
    rig.attach(plugin(SLOW), answer=Vm().answer)
    call = rig.connect()
    await call.down(b"first")
    await rig.until(lambda: len(rig.vms[0].seen) == 3)
    (stream,) = rig.service.streams
    context, gate = stream._context, asyncio.Event()

    async def write(reply: bytes) -> None:
        await gate.wait()
        await context.write(reply)

    stream._context = SimpleNamespace(write=write, cancelled=context.cancelled)
    stream_id = rig.vms[0].seen[0].stream_id
    rig.vms[0].emit([(DOWN, 0, stream_id, 0, 0, b"first")])
    await rig.until(lambda: stream._writing)
    rig.vms[0].emit([(layout.PROPERTY_SET, 0, stream_id, 0, 0, pairs.encode([(b"a", b"b")]))])
    await asyncio.sleep(0.05)
    for number in range(20):
        await call.up(b"%d" % number)
    await asyncio.sleep(0.2)
    assert len([event for event in rig.vms[0].seen if event.kind == layout.UPSTREAM_DATA]) == 1

    gate.set()
    assert await call.reply() == ("read_data", b"first", False)
    assert [(await call.reply())[1] for _ in range(20)] == [b"%d" % number for number in range(20)]
    await call.done()
