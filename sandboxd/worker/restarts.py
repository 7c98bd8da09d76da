"""
Whether a VM that failed may start again. Pure.

The worker decides nothing here: when a VM comes back, and whether it does, is the supervisor's ledger's to say
(`sandboxd.supervisor.ledger`), which gives leave for one start at a time. An honest worker keeps to it; one that was
taken over gains nothing by ignoring it, since the supervisor takes a start without leave for a broken protocol and
kills the worker.
"""

from __future__ import annotations


class Leave:
    """
    Counts leaves and failures of one VM. The main thread gives, the VM's thread takes.

    Args:
        at_once: how many restarts of a VM that has served need no leave; for tools with one guest of their own. A VM
            that fails while it starts always waits.
    """

    def __init__(self, at_once: int = 0) -> None:
        self._at_once = at_once
        self._given = 0
        self._taken = 0
        self.failures = 0
        """Ever."""

    def give(self) -> None:
        """Allow one start more. For one thread."""
        self._given += 1

    def take(self) -> bool:
        """Use a leave up; return whether there was one. For one other thread."""
        if self._taken == self._given:
            return False
        self._taken += 1
        return True

    def failed(self, *, while_starting: bool) -> bool:
        """Take note of a failure; return whether the VM may start again at once."""
        self.failures += 1
        if while_starting or not self._at_once:
            return False
        self._at_once -= 1
        return True
