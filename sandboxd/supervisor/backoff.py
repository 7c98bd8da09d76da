"""When a failed process is started again: at once the first time, then ever later, with jitter. Pure."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

FIRST_DELAY_S = 0.25
MAX_DELAY_S = 30.0
CALM_S = 60.0
"""A process that ran this long has earned a fresh start."""


@dataclass(slots=True)
class Backoff:
    """The delay before each start. The clock is the caller's, in seconds."""

    first_delay_s: float = FIRST_DELAY_S
    max_delay_s: float = MAX_DELAY_S
    calm_s: float = CALM_S
    jitter: Callable[[], float] = random.random
    """0 to 1; spreads the starts of many tenants that failed together."""
    failures: int = 0
    """Since the last calm time."""
    _last_failure_s: float = field(default=float("-inf"))

    def failed(self, now_s: float) -> float:
        """Take note of a failure and return how many seconds to wait: 0 for the first since the calm."""
        if now_s - self._last_failure_s > self.calm_s:
            self.failures = 0
        self._last_failure_s = now_s
        self.failures += 1
        if self.failures == 1:
            return 0.0
        delay = min(self.max_delay_s, self.first_delay_s * 2.0 ** min(self.failures - 2, 32))
        return delay * (0.75 + 0.5 * self.jitter())

    def reset(self) -> None:
        """Forget all failures: the operator asked for a start."""
        self.failures = 0
        self._last_failure_s = float("-inf")
