"""When what failed is started again: one start is planned at a time, and each failure makes the next one later."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from sandboxd.supervisor.backoff import Backoff

_log = logging.getLogger(__name__)

MIN_DELAY_S = 1.0
"""Before a start is tried again that failed in a way that nobody reckoned with."""


class Comeback:
    """
    The next start of one tenant that nobody has asked for.

    Args:
        lock: held while the tenant is changed, by a planned start too.
    """

    def __init__(self, lock: asyncio.Lock) -> None:
        self._loop = asyncio.get_running_loop()
        self._lock = lock
        self._backoff = Backoff()
        """Of starts that failed without any plugin's doing."""
        self._planned: asyncio.Task[None] | None = None

    @property
    def is_planned(self) -> bool:
        """Whether a start lies ahead; not while it is being made."""
        return self._planned is not None

    def delay_s(self) -> float:
        """Take note of a failure that is no plugin's doing; return how many seconds to wait."""
        return self._backoff.failed(self._loop.time())

    def plan(self, start: Callable[[], Awaitable[None]], delay_s: float) -> None:
        """
        Call ``start``, with the lock held, in so many seconds; what was planned before is off. If it raises, it is
        called again later.
        """
        self.cancel()
        self._planned = self._loop.create_task(self._later(start, delay_s))

    async def _later(self, start: Callable[[], Awaitable[None]], delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        async with self._lock:
            self._planned = None
            try:
                await start()
            except Exception:
                _log.exception("a planned start failed; it is tried again")
                if self._planned is None:
                    self.plan(start, max(MIN_DELAY_S, self.delay_s()))

    def cancel(self) -> None:
        """Nothing is planned any more; a start that is being made goes on."""
        if self._planned is not None and self._planned is not asyncio.current_task():
            self._planned.cancel()
        self._planned = None

    def start_afresh(self) -> None:
        """Forget the plan and all failures: the operator asked for a start."""
        self.cancel()
        self._backoff.reset()
