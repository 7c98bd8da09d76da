"""
Plugins whose part of the policy has changed begin with a clean sheet: it may have been their configuration.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from sandboxd.policy.model import TenantPolicy
from sandboxd.supervisor.ledger import Ledger


class CleanSheets:
    """
    A context manager, round the start of a version.

    Args:
        ledger: the daemon's.
        before: the version before; None: there is none.
        after: the version that is to start.
        keep_if: asked at the end, whether it counts. If not, the sheets are given back: they are of the version that
            goes on.
    """

    def __init__(
        self, ledger: Ledger, before: TenantPolicy | None, after: TenantPolicy, *, keep_if: Callable[[], bool]
    ) -> None:
        self._ledger = ledger
        self._tenant = after.tenant
        known = {plugin.name: plugin for plugin in before.plugins} if before is not None else {}
        self._changed = [p.name for p in after.plugins if p.name in known and known[p.name] != p]
        self._keep_if = keep_if

    def __enter__(self) -> None:
        self._taken = [sheet for name in self._changed for sheet in self._ledger.sheets(self._tenant, name)]
        for name in self._changed:
            self._ledger.lift(self._tenant, name)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._keep_if():
            self._ledger.put_back(self._taken)
