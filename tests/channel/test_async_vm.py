"""Waiting in a loop: the fast look, futures, deadlines, restarts, and the end of a channel."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from sandboxd.channel import layout, memfd
from sandboxd.channel.async_vm import AsyncVm
from sandboxd.channel.client import VmClient
from sandboxd.channel.completions import Completion, Effect, Verdict
from sandboxd.channel.hooks import Hooks, Lost
from tests.support.fake_vm import FakeVm

HEADERS = layout.REQUEST_HEADERS


@dataclass
class Rig:
    vm: AsyncVm
    fake: FakeVm
    unclaimed: list[Verdict] = field(default_factory=list)
    loose: list[Effect] = field(default_factory=list)
    restarts: list[int] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def open(self) -> int:
        return self.vm.client.open_stream(b"", 0)

    def submit(self) -> int:
        """Submit an event and show it to the VM at once, so that a test decides when the VM looks."""
        seq = self.gather()
        self.vm.flush()
        return seq

    def gather(self) -> int:
        """Submit an event as a front does: the VM sees it when the loop has run what is ready."""
        return self.vm.submit(self.open(), HEADERS, b"", True, 0)


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    fds = memfd.create_channel(65536)
    told: tuple[list[Verdict], list[Effect], list[int], list[str]] = ([], [], [], [])
    hooks = Hooks(told[0].append, told[1].append, told[2].append, told[3].append)
    vm = AsyncVm(
        VmClient(fds),
        asyncio.get_running_loop(),
        hooks,
        timeout_ns=50_000_000,
        overdue_ns=100_000_000,
        spin_ns=0,
    )
    rig = Rig(vm, FakeVm(fds), *told)
    rig.fake.begin()
    yield rig
    rig.vm.close()
    rig.fake.stop()


async def test_poll_finds_what_is_there(rig: Rig) -> None:
    assert rig.vm.ready
    seq = rig.submit()
    assert rig.vm.poll(seq) is None
    rig.fake.poll()
    found = rig.vm.poll(seq)

    assert isinstance(found, Verdict)
    assert found.event_seq == seq
    assert rig.restarts == [1]


async def test_wait_is_woken_by_the_eventfd(rig: Rig) -> None:
    rig.fake.start()
    results = await asyncio.wait_for(asyncio.gather(*(rig.vm.wait(rig.gather()) for _ in range(50))), 5)

    assert all(isinstance(result, Verdict) for result in results)


@pytest.fixture
def flushes(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many events were outstanding each time that the VM was shown some, as on a machine with few cores."""
    found: list[int] = []
    flush = rig.vm.client.flush
    monkeypatch.setattr(rig.vm.client, "flush", lambda: (found.append(rig.vm.client.outstanding), flush())[1])
    rig.vm._max_spin_ns = 0
    return found


async def test_events_of_busy_turns_share_one_wake_up(rig: Rig, flushes: list[int]) -> None:
    """On few cores system calls are what costs."""
    waiting = [asyncio.ensure_future(rig.vm.wait(rig.gather())) for _ in range(5)]
    await asyncio.sleep(0)
    waiting += [asyncio.ensure_future(rig.vm.wait(rig.gather())) for _ in range(5)]
    assert rig.fake.take() == []
    for _ in range(3):
        await asyncio.sleep(0)

    assert flushes == [10]
    rig.fake.poll()
    assert all(isinstance(result, Verdict) for result in await asyncio.wait_for(asyncio.gather(*waiting), 1))


async def test_a_loop_that_never_rests_shows_its_events_all_the_same(rig: Rig, flushes: list[int]) -> None:
    waiting = []
    for _ in range(12):
        waiting.append(asyncio.ensure_future(rig.vm.wait(rig.gather())))
        await asyncio.sleep(0)

    assert len(flushes) == 2
    rig.fake.poll()
    for future in waiting:
        future.cancel()


async def test_poll_hands_other_verdicts_to_their_waiters(rig: Rig) -> None:
    first = rig.submit()
    waiting = asyncio.ensure_future(rig.vm.wait(first))
    await asyncio.sleep(0)
    second = rig.submit()
    rig.fake.poll()

    assert isinstance(rig.vm.poll(second), Verdict)
    assert isinstance(await asyncio.wait_for(waiting, 1), Verdict)


async def test_closing_a_stream_has_no_waiter(rig: Rig) -> None:
    stream_id = rig.open()
    rig.vm.close_stream(stream_id, True, 0)
    rig.fake.poll()
    await asyncio.sleep(0.02)

    assert [verdict.stream_id for verdict in rig.unclaimed] == [stream_id]


async def test_a_vm_that_never_stops_talking_does_not_keep_the_loop(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within one turn of the loop it is looked at so many times; what it said last is heard all the same."""
    said = 0
    drain = rig.vm.client.drain

    def drain_and_talk() -> list[Completion]:
        nonlocal said
        found = drain()
        if said < 1000:
            said += 1
            rig.fake.emit([(layout.LOG, 0, 0, 0, 2, b"again")])
        return found

    monkeypatch.setattr(rig.vm.client, "drain", drain_and_talk)
    rig.fake.emit([(layout.LOG, 0, 0, 0, 2, b"first")])
    rig.vm.flush()
    assert 0 < said < 100
    turns = 0
    while len(rig.loose) < 1001 and turns < 1000:
        turns += 1
        await asyncio.sleep(0)

    assert turns > 10
    assert len(rig.loose) == 1001
    assert rig.broken == []


async def test_why_a_vm_failed_is_known_after_the_channel_was_closed(rig: Rig) -> None:
    """Both can be dealt with in one turn of the loop, before who waits for the event runs."""
    waiting = asyncio.ensure_future(rig.vm.wait(rig.submit()))
    await asyncio.sleep(0)
    rig.fake.fail(2)
    rig.vm.flush()
    rig.vm.close()

    assert await waiting is Lost.DOWN
    assert rig.vm.client.vm_failure == 2


async def test_timeout_then_overdue(rig: Rig) -> None:
    started = asyncio.get_running_loop().time()
    outcome = await asyncio.wait_for(rig.vm.wait(rig.submit()), 2)
    took = asyncio.get_running_loop().time() - started

    assert outcome is Lost.TIMEOUT
    assert 0.045 < took < 0.15
    assert rig.broken == []
    await asyncio.sleep(0.25)
    assert "no verdict" in rig.broken[0]
    assert not rig.vm.ready


async def test_late_verdict_of_a_timed_out_event_goes_to_nobody(rig: Rig) -> None:
    seq = rig.submit()
    assert await rig.vm.wait(seq) is Lost.TIMEOUT
    rig.fake.poll()
    await asyncio.sleep(0.02)

    assert [verdict.event_seq for verdict in rig.unclaimed] == [seq]
    assert rig.unclaimed[0].effects == []
    await asyncio.sleep(0.2)
    assert rig.broken == []


async def test_restart_loses_waiters_at_once(rig: Rig) -> None:
    waiting = asyncio.ensure_future(rig.vm.wait(rig.submit()))
    await asyncio.sleep(0)
    rig.fake.fail()

    assert await asyncio.wait_for(waiting, 0.04) is Lost.DOWN
    assert not rig.vm.ready
    rig.fake.take()
    rig.fake.begin()
    await asyncio.sleep(0.01)
    assert rig.vm.ready
    assert rig.restarts == [1, 2]
    seq = rig.submit()
    rig.fake.poll()
    assert isinstance(rig.vm.poll(seq), Verdict)


async def test_restart_seen_by_poll(rig: Rig) -> None:
    assert rig.vm.ready
    seq = rig.submit()
    rig.fake.take()
    rig.fake.begin()

    assert rig.vm.poll(seq) is Lost.DOWN


async def test_broken_rules_end_the_channel(rig: Rig) -> None:
    waiting = asyncio.ensure_future(rig.vm.wait(rig.submit()))
    await asyncio.sleep(0)
    rig.fake.emit([(99, 0, 0, 0, 0, b"")])

    assert await asyncio.wait_for(waiting, 1) is Lost.BROKEN
    assert "unknown kind 99" in rig.broken[0]
    assert await rig.vm.wait(5) is Lost.BROKEN


async def test_restarts_without_end_break_the_channel(rig: Rig) -> None:
    for _ in range(70):
        rig.fake.begin()
        await asyncio.sleep(0)
    await asyncio.sleep(0.05)

    assert rig.broken == ["VM claims to restart without end"]


async def test_a_cancelled_waiter_abandons_its_event(rig: Rig) -> None:
    seq = rig.submit()
    waiting = asyncio.ensure_future(rig.vm.wait(seq))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    rig.fake.poll()
    await asyncio.sleep(0.02)

    assert rig.unclaimed[0].effects == []


async def test_wake_ups_are_not_lost() -> None:
    """Many round trips against a VM that sleeps after each: one lost wake-up would hang."""
    fds = memfd.create_channel(65536)
    told: list[object] = []
    hooks = Hooks(told.append, told.append, told.append, told.append)
    vm = AsyncVm(
        VmClient(fds),
        asyncio.get_running_loop(),
        hooks,
        timeout_ns=5_000_000_000,
        spin_ns=30_000 if (os.cpu_count() or 1) > 1 else 0,
    )
    fake = FakeVm(fds, keep_seen=False).start()
    fake.begin()
    for _ in range(3000):
        stream_id = vm.client.open_stream(b"", 0)
        seq = vm.submit(stream_id, HEADERS, b"", True, 0)
        outcome = vm.poll(seq) or await vm.wait(seq)
        assert isinstance(outcome, Verdict)
    vm.close()
    fake.stop()
