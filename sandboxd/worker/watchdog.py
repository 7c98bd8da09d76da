"""
The CPU limit: a thread that looks at each running VM about once a millisecond.

Nothing is paid per event. A VM shows in its channel's header when guest code begins and ends; the watchdog
remembers how much CPU the VM's thread had used when it first saw the call. A call that is past its limit is
marked, and the engine's epoch is moved: every VM that runs then asks (`Watch.should_stop`), and only the
marked one is told to stop.

How exact that is: a call is seen at most one sample after it began, so that much of it may go unnoticed; it is never
stopped early. A call that is near its limit is looked at again when it can have reached it: a thread uses no more CPU
than time passes. What remains is how long the kernel lets the watchdog wait for a core.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final, Protocol

from sandboxd.limits import MS_NS, US_NS
from sandboxd.worker.threads import start_thread

MIN_PERIOD_NS: Final = 200 * US_NS
MAX_PERIOD_NS: Final = MS_NS
"""Between two looks at a VM that runs: bounds how much of a call goes unnoticed."""
START_PERIOD_NS: Final = 10 * MS_NS
"""As above while it starts: its beginning is known exactly."""
SHORTEST_SLEEP_NS: Final = 50 * US_NS
"""The kernel's timers are no finer."""
IDLE_NS: Final = 20 * MS_NS
"""
Of looking at nothing but sleeping VMs before the watchdog sleeps itself: under load, waking it costs more than
looking.
"""


class Stamp(Protocol):
    """What shows when guest code begins and ends: a channel's header."""

    @property
    def call_stamp(self) -> int:
        """Odd while guest code runs; different for each call."""


class Watch:
    """
    What the watchdog knows of one VM. The VM's thread calls all but `look`.

    Args:
        stamp: the channel's header.
        call_limit_ns: CPU of one call of the guest.
        start_limit_ns: CPU of the whole start.
        cpu_ns: returns the CPU time of the VM's thread; any thread may call it.
    """

    def __init__(self, stamp: Stamp, call_limit_ns: int, start_limit_ns: int, cpu_ns: Callable[[], int]) -> None:
        self._stamp = stamp
        self._call_limit_ns = call_limit_ns
        self._start_limit_ns = start_limit_ns
        self._cpu_ns = cpu_ns
        self._seen_stamp = 0
        self._seen_cpu_ns = 0
        self._start_cpu_ns = 0
        self._over_stamp: int | None = None
        self._over_start = False
        self._stop = False
        self.next_look_ns = self.period_ns
        """From the last look, when the next one is wanted."""
        self.starting = False
        self.running = False
        """The thread is inside the engine, or about to be. Otherwise it sleeps and needs no watching."""

    @property
    def period_ns(self) -> int:
        """How often this VM wants to be looked at, at least, while it runs."""
        return max(MIN_PERIOD_NS, min(MAX_PERIOD_NS, self._call_limit_ns // 4))

    def begin_start(self) -> None:
        """Count what follows against the start's limit."""
        self._over_start = False
        self._over_stamp = None
        self._start_cpu_ns = self._cpu_ns()
        self.starting = True

    def end_start(self) -> None:
        """Count what follows call by call."""
        self.starting = False

    def stop(self) -> None:
        """Have `should_stop` say yes from now on, whatever the call has used. Any thread may call it."""
        self._stop = True

    def should_stop(self) -> bool:
        """
        Return whether the call that runs now must end. Asked on the VM's thread when the epoch has moved.
        """
        if self._stop:
            return True
        if self.starting:
            return self._over_start
        # The marked call may have ended since; its successor is innocent.
        return self._over_stamp is not None and self._over_stamp == self._stamp.call_stamp

    def look(self) -> bool:
        """Return whether the VM has gone past a limit since the last look. The watchdog's thread calls it."""
        if self.starting:
            return self._look_at_start()
        self.next_look_ns = self.period_ns
        stamp = self._stamp.call_stamp
        if not stamp & 1:
            return False
        if stamp != self._seen_stamp:
            self._seen_stamp, self._seen_cpu_ns = stamp, self._cpu_ns()
            return False
        if self._over_stamp == stamp:
            return False
        left_ns = self._call_limit_ns - (self._cpu_ns() - self._seen_cpu_ns)
        if left_ns < 0:
            self._over_stamp = stamp
            return True
        self.next_look_ns = min(self.next_look_ns, left_ns)
        return False

    def _look_at_start(self) -> bool:
        left_ns = self._start_limit_ns - (self._cpu_ns() - self._start_cpu_ns)
        self.next_look_ns = max(MIN_PERIOD_NS, min(START_PERIOD_NS, left_ns))
        if left_ns < 0 and not self._over_start:
            self._over_start = True
            return True
        return False


class Watchdog:
    """
    The thread.

    Args:
        interrupt: makes every running VM ask its `Watch`: moves the engine's epoch.
        sleep: waits so many seconds; for tests.
    """

    def __init__(self, interrupt: Callable[[], None], sleep: Callable[[float], None] = time.sleep) -> None:
        self._interrupt = interrupt
        self._sleep = sleep
        self._watches: tuple[Watch, ...] = ()
        self._lock = threading.Lock()
        self._awake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        start_thread(self._thread)

    def add(self, watch: Watch) -> None:
        """Watch a VM from now on."""
        with self._lock:
            self._watches = (*self._watches, watch)

    def remove(self, watch: Watch) -> None:
        """Watch it no more. The thread may be inside one last look."""
        with self._lock:
            self._watches = tuple(other for other in self._watches if other is not watch)

    def wake(self) -> None:
        """A VM has begun to run: look at it. Cheap when the watchdog is awake already."""
        if not self._awake.is_set():
            self._awake.set()

    def round(self) -> int:
        """Look at every running VM once; return in how many nanoseconds to look again, 0 if none runs."""
        over, next_look_ns = False, 0
        for watch in self._watches:
            if watch.running:
                over |= watch.look()
                next_look_ns = min(next_look_ns or watch.next_look_ns, watch.next_look_ns)
        if over:
            self._interrupt()
        return max(SHORTEST_SLEEP_NS, next_look_ns) if next_look_ns else 0

    def _run(self) -> None:
        idle_ns = 0
        while True:
            sleep_ns = self.round()
            idle_ns = 0 if sleep_ns else idle_ns + MAX_PERIOD_NS
            if idle_ns > IDLE_NS:
                self._awake.clear()
                # A VM that began to run before the clear() found the flag set and did not wake us.
                sleep_ns = self.round()
                if not sleep_ns:
                    self._awake.wait()
                    sleep_ns = self.round()
                idle_ns = 0
            self._sleep((sleep_ns or MAX_PERIOD_NS) / 1e9)
