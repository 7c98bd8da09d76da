"""Starting threads under a limit of threads, and the CPU time that one has used."""

from __future__ import annotations

import threading
import time

from sandboxd.errors import WorkerError


def start_thread(thread: threading.Thread) -> None:
    """
    Start a thread.

    Raises:
        WorkerError: the kernel gives no more. It counts in two ways: the worker's cgroup, and all processes of its uid.
    """
    try:
        thread.start()
    except RuntimeError as error:
        raise WorkerError(
            f"no thread for {thread.name}: {error}; the limit is isolation.pids, and processes with this worker's uid"
            " count towards it, also those of another daemon with the same worker.uid_base"
        ) from error


class CpuClock:
    """
    Returns the CPU time of a thread; 0 before it begins and after it has ended.

    Not a method of `sandboxd.worker.vm_thread.VmThread`: the watchdog's `Watch` keeps it, and a circle would keep the
    channel's mapping, and with it the channel's memory, until the garbage collector comes by.
    """

    def __init__(self) -> None:
        self._clock: int | None = None

    def begin(self) -> None:
        """Called by the thread itself: for a thread that has ended, the question would be undefined behaviour."""
        self._clock = time.pthread_getcpuclockid(threading.get_ident())

    def __call__(self) -> int:
        try:
            return 0 if self._clock is None else time.clock_gettime_ns(self._clock)
        except OSError:
            return 0
