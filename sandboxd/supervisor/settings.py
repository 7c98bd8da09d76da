"""What all deployments share of the daemon's configuration."""

from __future__ import annotations

from dataclasses import dataclass

DRAIN_SLACK_S = 2.0
"""The fronts keep the drain time; a front that forgot to answer must not keep a worker or a VM alive."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How channels are made, and how long they may drain."""

    ring_bytes: int
    worker_spin: int
    """Empty looks at the ring before a VM sleeps."""
    drain_timeout_s: float
    """How long the fronts let open streams go on."""
    log_level: int = 0
    """Lowest level of a guest's lines that is sent at all, 0 (trace) to 5 (critical)."""

    @property
    def drained_after_s(self) -> float:
        """When the supervisor waits for the fronts no longer."""
        return self.drain_timeout_s + DRAIN_SLACK_S
