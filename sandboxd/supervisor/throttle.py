"""How many log lines somebody's misbehaviour may cost. Pure; the clock is the caller's."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Throttle:
    """A token bucket: ``burst`` at once, ``per_second`` in the long run."""

    per_second: float
    burst: float
    _left: float = -1.0
    _last_s: float = 0.0

    def admits(self, now_s: float) -> bool:
        """Return whether one more passes."""
        if self._left < 0:
            self._left, self._last_s = self.burst, now_s
        self._left = min(self.burst, self._left + (now_s - self._last_s) * self.per_second)
        self._last_s = now_s
        if self._left < 1:
            return False
        self._left -= 1
        return True

    def spend(self, amount: float, now_s: float) -> float:
        """Take so much, more than there is if need be; return how long to wait until the debt is paid."""
        if self._last_s == 0.0 and self._left < 0:
            self._left = self.burst
        else:
            self._left = min(self.burst, self._left + (now_s - self._last_s) * self.per_second)
        self._last_s = now_s
        self._left -= amount
        return max(0.0, -self._left / self.per_second)
