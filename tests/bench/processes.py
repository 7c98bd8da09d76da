"""What processes use: CPU time, memory and descriptors of a process with all that it started, by ``/proc``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True)
class Usage:
    """What some processes hold at a moment."""

    rss_bytes: int = 0
    fds: int = 0
    threads: int = 0


def tree(pid: int) -> list[int]:
    """Return a process and all its descendants: of the daemon, its fronts, waiters, workers and spares."""
    root = psutil.Process(pid)
    return [pid, *(child.pid for child in root.children(recursive=True))]


def cpu_s(pids: Iterable[int]) -> float:
    """Return the CPU time so far of processes, user and system, as ``/proc/PID/stat`` counts it."""
    return sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in pids)


def fine_cpu_ns(pids: Iterable[int]) -> int:
    """Return the CPU time so far of processes' living threads in nanoseconds: for who does next to nothing."""
    return sum(
        int(path.read_text().split()[0]) for pid in pids for path in Path(f"/proc/{pid}/task").glob("*/schedstat")
    )


def usage(pids: Iterable[int]) -> Usage:
    """Return what processes hold together; those that have ended meanwhile hold nothing."""
    found = Usage()
    for pid in pids:
        try:
            one = psutil.Process(pid)
            found = Usage(
                found.rss_bytes + one.memory_info().rss,
                found.fds + one.num_fds(),
                found.threads + one.num_threads(),
            )
        except psutil.NoSuchProcess:
            continue
    return found
