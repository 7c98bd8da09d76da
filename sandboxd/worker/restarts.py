"""
When a VM that failed comes back. Pure; the caller brings clock and chance.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

MAX_DOUBLINGS: Final = 6
"""The back-off grows to 64 times its first value at most, or to the window if that is shorter."""

JITTER: Final = 0.2
"""Share of a delay that is left to chance, so that the VMs of a plugin do not all come back at once."""

QUARANTINE_FACTOR: Final = 10
"""After too many crashes in the window: this many back-offs between two starts."""


def _chance() -> float:
    return int.from_bytes(os.urandom(2), "little") / 65535


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """The policy's ``failure.restart``."""

    backoff_ns: int
    max_crashes: int
    window_ns: int


class Restarts:
    """
    Remembers the crashes of one VM.

    Args:
        policy: see `RestartPolicy`.
        chance: returns a number from 0 to 1.
    """

    def __init__(self, policy: RestartPolicy, chance: Callable[[], float] = _chance) -> None:
        self._policy = policy
        self._chance = chance
        self._crashes: deque[int] = deque(maxlen=max(policy.max_crashes, MAX_DOUBLINGS) + 1)
        self.total = 0
        """Crashes ever."""

    def delay_ns(self, now_ns: int) -> int:
        """
        Take note of a crash; return how long to wait before the next start. The first in the window waits not
        at all.
        """
        self.total += 1
        self._crashes.append(now_ns)
        while self._crashes[0] < now_ns - self._policy.window_ns:
            self._crashes.popleft()
        crashes = len(self._crashes)
        if crashes == 1 and self._policy.max_crashes:
            return 0
        if crashes > self._policy.max_crashes:
            return self._jittered(self._policy.backoff_ns * QUARANTINE_FACTOR)
        grown = self._policy.backoff_ns << min(crashes - 2, MAX_DOUBLINGS)
        return self._jittered(min(grown, max(self._policy.backoff_ns, self._policy.window_ns)))

    def _jittered(self, delay_ns: int) -> int:
        return int(delay_ns * (1 - JITTER / 2 + JITTER * self._chance()))
