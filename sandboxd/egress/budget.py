"""How much of the broker's memory a tenant's calls may hold: requests that come in, responses that wait. Pure."""

from __future__ import annotations

from sandboxd import limits


class BudgetSpentError(Exception):
    """The tenant's calls hold all that they may."""


class Budget:
    """Of one tenant."""

    def __init__(self, most: int = limits.MAX_CALLOUT_TENANT_BYTES) -> None:
        self._most = most
        self.used = 0

    def lease(self) -> Lease:
        """Return an empty share for one call."""
        return Lease(self)

    def take(self, size: int) -> None:
        """Take from what is left. Raises BudgetSpentError."""
        if self.used + size > self._most:
            raise BudgetSpentError(f"calls of the tenant hold {self.used} of {self._most} bytes")
        self.used += size

    def give(self, size: int) -> None:
        """Give back."""
        self.used -= size


class Lease:
    """What one call holds of its tenant's budget."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self.held = 0

    def take(self, size: int) -> None:
        """Hold more. Raises BudgetSpentError."""
        self._budget.take(size)
        self.held += size

    def give(self, size: int) -> None:
        """Give some back."""
        self._budget.give(size)
        self.held -= size

    def close(self) -> None:
        """Give all back."""
        self.give(self.held)
