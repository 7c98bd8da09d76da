"""The CPU limit's bookkeeping, with a clock and stamps of our own."""

from __future__ import annotations

import pytest

from sandboxd.limits import MS_NS
from sandboxd.worker.watchdog import IDLE_NS, MAX_PERIOD_NS, MIN_PERIOD_NS, SHORTEST_SLEEP_NS, Watch, Watchdog


class Thread:
    """A VM's thread: what it shows, and what it has used."""

    def __init__(self) -> None:
        self.call_stamp = 0
        self.cpu = 0

    def watch(self, call_ms: int = 5, start_ms: int = 100) -> Watch:
        """Return a watch of it."""
        watch = Watch(self, call_ms * MS_NS, start_ms * MS_NS, lambda: self.cpu)
        watch.running = True
        return watch

    def run(self, milliseconds: int) -> None:
        """Use CPU."""
        self.cpu += milliseconds * MS_NS


def test_long_call_is_stopped() -> None:
    """Once past its limit, reported once."""
    thread = Thread()
    watch = thread.watch()
    thread.call_stamp = 1

    looks = []
    for _ in range(4):
        looks.append(watch.look())
        thread.run(3)

    assert looks == [False, False, True, False]
    assert watch.should_stop()


def test_many_short_calls_are_not() -> None:
    """Their sum does not matter."""
    thread = Thread()
    watch = thread.watch()

    for call in range(1, 200, 2):
        thread.call_stamp = call
        assert not watch.look()
        thread.run(4)
        assert not watch.look()
        thread.call_stamp = call + 1
        assert not watch.look()
    assert not watch.should_stop()


def test_successor_of_a_marked_call_is_innocent() -> None:
    """The call may end between the mark and the question."""
    thread = Thread()
    watch = thread.watch()
    thread.call_stamp = 1
    watch.look()
    thread.run(6)
    assert watch.look()

    thread.call_stamp = 3

    assert not watch.should_stop()


def test_waiting_is_not_counted() -> None:
    """CPU of the thread, not wall clock: a preempted guest is not punished."""
    thread = Thread()
    watch = thread.watch()
    thread.call_stamp = 1

    assert not any(watch.look() for _ in range(1000))


def test_start_has_its_own_limit() -> None:
    """All its calls together, and only until it ends."""
    thread = Thread()
    watch = thread.watch()
    thread.run(1000)
    watch.begin_start()

    for stamp in range(1, 20, 2):
        thread.call_stamp = stamp
        thread.run(10)
        assert not watch.look()
        assert not watch.should_stop()
    thread.run(1)
    assert watch.look()
    assert watch.should_stop()
    watch.end_start()
    assert not watch.should_stop()


def test_stop_holds_for_whatever_runs() -> None:
    """A VM that is closed."""
    watch = Thread().watch()
    watch.stop()

    assert watch.should_stop()


@pytest.mark.parametrize(("call_ms", "period"), [(0, MIN_PERIOD_NS), (2, MS_NS // 2), (1000, MAX_PERIOD_NS)])
def test_period_follows_the_limit(call_ms: int, period: int) -> None:
    """At most a millisecond: so much of a call may go unnoticed."""
    assert Thread().watch(call_ms).period_ns == period


def test_a_call_near_its_limit_is_looked_at_when_it_can_be_there() -> None:
    """Not a whole period later."""
    thread = Thread()
    watch = thread.watch()
    thread.call_stamp = 1
    watch.look()
    assert watch.next_look_ns == MAX_PERIOD_NS
    thread.cpu += 5 * MS_NS - 1000

    assert not watch.look()
    assert watch.next_look_ns == 1000
    thread.cpu += 1000
    assert not watch.look()  # the limit itself is allowed
    thread.cpu += 1
    assert watch.look()


def test_the_shortest_pause_of_all_vms_counts() -> None:
    """One VM near its limit beside one that has just begun; never a busy loop."""
    watchdog = Watchdog(lambda: None)
    near, fresh = Thread(), Thread()
    for thread in (near, fresh):
        watchdog.add(thread.watch())
        thread.call_stamp = 1
    assert watchdog.round() == MAX_PERIOD_NS
    near.cpu += 5 * MS_NS - 300_000

    assert watchdog.round() == 300_000
    near.cpu += 299_999
    assert watchdog.round() == SHORTEST_SLEEP_NS


def test_round_interrupts_once_for_all_offenders() -> None:
    """And looks only at VMs that run."""
    interrupts: list[int] = []
    watchdog = Watchdog(lambda: interrupts.append(1))
    threads = [Thread() for _ in range(3)]
    watches = [thread.watch() for thread in threads]
    watches[2].running = False
    for watch in watches:
        watchdog.add(watch)
    for thread in threads:
        thread.call_stamp = 1
    assert watchdog.round()
    for thread in threads:
        thread.run(9)

    assert watchdog.round()

    assert interrupts == [1]
    assert [watch.should_stop() for watch in watches] == [True, True, False]
    for watch in watches:
        watchdog.remove(watch)
    assert not watchdog.round()


def test_watchdog_sleeps_when_nothing_runs_and_wakes() -> None:
    """After some looks at nothing it waits; a VM that begins to run wakes it."""
    import threading

    sleeps: list[float] = []
    slept = threading.Semaphore(0)

    def sleep(seconds: float) -> None:
        sleeps.append(seconds)
        slept.release()

    watchdog = Watchdog(lambda: None, sleep)
    watchdog.start()
    for _ in range(IDLE_NS // MAX_PERIOD_NS):
        assert slept.acquire(timeout=5)
    assert not slept.acquire(timeout=0.2)

    watchdog.wake()

    assert slept.acquire(timeout=5)
