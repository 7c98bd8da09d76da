"""What a tenant's streams get, in one word."""

from __future__ import annotations

import enum


class TenantState(enum.StrEnum):
    """What a tenant's streams get."""

    STARTING = "starting"
    RUNNING = "running"
    """Every plugin runs."""
    DEGRADED = "degraded"
    """Some plugins do not run; their streams get the failure policy."""
    FAILED = "failed"
    """No plugin runs."""
    REFUSED = "refused"
    """The policy requires a layer of isolation that the machine does not have."""
    REMOVED = "removed"
