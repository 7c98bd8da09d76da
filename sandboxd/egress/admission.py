"""Who may call now: concurrency and rate, by tenant and upstream. A call without room is denied, never queued. Pure."""

from __future__ import annotations

from collections import Counter

from sandboxd.egress.rules import DeniedError
from sandboxd.policy.callouts import Upstream
from sandboxd.supervisor.throttle import Throttle


class Admission:
    """Of one tenant: all its workers together, whatever version of the policy they run."""

    def __init__(self) -> None:
        self._open: Counter[str] = Counter()
        self._rates: dict[tuple[str, float], Throttle] = {}

    def enter(self, upstream: Upstream, concurrency: int, now_s: float) -> None:
        """
        Count a call in; `leave` follows if this returns.

        Args:
            upstream: where it goes.
            concurrency: the tenant's.
            now_s: a clock that never goes back.

        Raises:
            DeniedError: there is no room.
        """
        if self._open.total() >= concurrency:
            raise DeniedError("callouts.concurrency", f"{concurrency} calls of the tenant are in flight")
        if self._open[upstream.name] >= upstream.concurrency:
            raise DeniedError("concurrency", f"{upstream.concurrency} calls are in flight")
        if upstream.rate is not None and not self._throttle(upstream.name, upstream.rate).admits(now_s):
            raise DeniedError("rate", f"more than {upstream.rate:g} calls a second")
        self._open[upstream.name] += 1

    def leave(self, upstream: Upstream) -> None:
        """Count a call out."""
        self._open[upstream.name] -= 1
        if not self._open[upstream.name]:
            del self._open[upstream.name]

    def _throttle(self, name: str, rate: float) -> Throttle:
        key = (name, rate)
        if key not in self._rates:
            self._rates = {other: found for other, found in self._rates.items() if other[0] != name}
            self._rates[key] = Throttle(per_second=rate, burst=max(1.0, rate))
        return self._rates[key]
