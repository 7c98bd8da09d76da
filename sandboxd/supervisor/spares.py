"""
Workers that are executed ahead of need, so that one that dies is replaced in milliseconds.

Most of a worker's start is the interpreter and its imports, and none of that depends on the tenant. A spare has it
behind it and waits for its first frame, which is its jail's plan, as every worker does: it holds no policy, no key
and no byte of a tenant. It was executed, not forked from a template: workers that are forks of one process share
the addresses of everything in it, and an attacker who has one would know the layout of all.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import Final

from sandboxd.supervisor.launch import Launched, launch

_log = logging.getLogger(__name__)

REFILL_PAUSE_S: Final = 0.3
"""From the last take to the next start: whoever took one shall have the processors to get going."""


class Spares:
    """
    Args:
        count: how many are kept; 0: none, each worker is executed when it is needed.
    """

    def __init__(self, count: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._count = count
        self._idle: deque[Launched] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._open = False

    def start(self) -> None:
        """Begin to keep spares; until now `take` starts workers one by one."""
        self._open = True
        self._plan_refill()

    def take(self) -> Launched:
        """
        Return a process that waits for its setup: a spare, or a fresh one.

        Raises:
            OSError: none can be started.
        """
        try:
            while self._idle:
                spare = self._idle.popleft()
                if spare.process.poll() is None:
                    return spare
                _log.warning("a spare worker ended with status %d before it was needed", spare.process.returncode)
                spare.close()
            return launch()
        finally:
            self._plan_refill()

    def pids(self) -> tuple[int, ...]:
        """Return the processes that wait."""
        return tuple(spare.process.pid for spare in self._idle)

    def close(self) -> None:
        """End all spares; bounded in time."""
        self._open = False
        self._stop_timer()
        while self._idle:
            self._idle.popleft().close()

    def _plan_refill(self) -> None:
        self._stop_timer()
        if self._open and len(self._idle) < self._count:
            self._timer = self._loop.call_later(REFILL_PAUSE_S, self._refill)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refill(self) -> None:
        self._timer = None
        try:
            self._idle.append(launch())
        except OSError as error:  # whoever needs one will be told; it is tried again then
            _log.error("no spare worker can be started: %s", error)
            return
        self._plan_refill()
