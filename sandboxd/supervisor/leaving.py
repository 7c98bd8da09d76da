"""
How the daemon ends though threads of it hang: in a disk that does not answer, in a program that takes its time.

Python waits for every thread of a pool, twice and without end: as the event loop is closed, and as the process ends.
"""

from __future__ import annotations

import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Final

_log = logging.getLogger(__name__)

LEAVE_S: Final = 8.0
"""How long threads may go on when all is closed: folders have changes to write."""


class UnwaitedExecutor(ThreadPoolExecutor):
    """An event loop's pool that is not waited for when the loop is closed."""

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = True) -> None:  # noqa: ARG002 - theirs
        """Begin no more work, and let go of what has begun."""
        super().shutdown(wait=False, cancel_futures=cancel_futures)


def leave_in_time(status: int, leave_s: float = LEAVE_S) -> None:
    """
    See to it that this process ends; call as its last act, before its own end.

    Args:
        status: the exit status if threads have to be left behind.
        leave_s: how long they may go on.
    """
    # A daemon's timer, in Python's words: the process does not wait for it, and it goes on while others are waited for.
    timer = threading.Timer(leave_s, _leave, (status,))
    timer.daemon = True
    timer.start()


def _leave(status: int) -> None:
    main = threading.main_thread()
    names = sorted(thread.name for thread in threading.enumerate() if thread is not main and not thread.daemon)
    try:
        _log.warning("left behind, for they did not end: %s", ", ".join(names) or main.name)
    finally:
        os._exit(status)
