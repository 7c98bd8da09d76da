"""When what failed is started again: at once the first time, then ever later, with jitter. Pure."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

FIRST_DELAY_S = 0.25
MAX_DELAY_S = 30.0
SHARED_DELAY_S = 2.0
"""Longest pause of what all tenants wait for: who can make it fail shall not keep it away from the others."""
CALM_S = 60.0
"""What ran this long has earned a fresh start."""

MAX_DOUBLINGS: Final = 10
JITTER: Final = 0.5
"""Share of a delay that is left to chance, so that many that failed together do not come back together."""


def delay_s(failures: int, first_s: float, longest_s: float, chance: float) -> float:
    """
    Return how many seconds to wait before the next start.

    Args:
        failures: in a row, with the one at hand.
        first_s: the delay after the second one; each further failure doubles it.
        longest_s: it grows no longer than this.
        chance: 0 to 1.
    """
    if failures <= 1:
        return 0.0
    grown = first_s * 2.0 ** min(failures - 2, MAX_DOUBLINGS)
    return min(grown, max(first_s, longest_s)) * (1 - JITTER / 2 + JITTER * chance)


@dataclass(slots=True)
class Backoff:
    """
    The delays of what is no plugin's crash: front processes, workers that the machine cannot start, compilers. The
    clock is the caller's, in seconds.
    """

    first_delay_s: float = FIRST_DELAY_S
    max_delay_s: float = MAX_DELAY_S
    calm_s: float = CALM_S
    jitter: Callable[[], float] = random.random
    """0 to 1."""
    failures: int = 0
    """Since the last calm time."""
    _last_failure_s: float = field(default=float("-inf"))

    def failed(self, now_s: float) -> float:
        """Take note of a failure and return how many seconds to wait: 0 for the first since the calm."""
        if now_s - self._last_failure_s > self.calm_s:
            self.failures = 0
        self._last_failure_s = now_s
        self.failures += 1
        return delay_s(self.failures, self.first_delay_s, self.max_delay_s, self.jitter())

    def reset(self) -> None:
        """Forget all failures: the operator asked for a start."""
        self.failures = 0
        self._last_failure_s = float("-inf")
