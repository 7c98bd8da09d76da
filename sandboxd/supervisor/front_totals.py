"""
What the fronts have counted of each plugin, over all fronts and over those that are gone. Pure.

A front's counters end with its process; without what it had counted until then the sums would go backwards.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Iterable, Mapping
from typing import Final

UNKNOWN: Final = "-/-"
"""The fronts' key for streams that name no plugin that there is."""
OTHER: Final = "other"
MAX_NAMES: Final = 512
"""Different counters of one plugin, over all fronts; further ones are counted together as `OTHER`."""

Counts = Mapping[str, Mapping[str, int]]
"""``tenant/plugin`` to the counters' names and values."""


def read(text: str) -> Counts:
    """Return a front's word as counters; what is none is left out."""
    found: dict[str, dict[str, int]] = {}
    with contextlib.suppress(ValueError, RecursionError):
        parsed = json.loads(text)
        for key, counters in parsed.items() if isinstance(parsed, dict) else ():
            if isinstance(counters, dict):
                found[key] = {name: value for name, value in counters.items() if isinstance(value, int)}
    return found


class FrontTotals:
    """The sums."""

    def __init__(self) -> None:
        self._past: dict[str, dict[str, int]] = {}

    def gone(self, counted: Counts) -> None:
        """A front is gone, and this was its last word."""
        _add(self._past, counted)

    def totals(self, live: Iterable[Counts], configured: Collection[str]) -> Counts:
        """
        Return the sums.

        Args:
            live: what each front that is there has counted.
            configured: keys of the plugins that there are; others are forgotten.
        """
        known = {*configured, UNKNOWN}
        self._past = {key: counters for key, counters in self._past.items() if key in known}
        found = {key: dict(counters) for key, counters in self._past.items()}
        for counted in live:
            _add(found, {key: counters for key, counters in counted.items() if key in known})
        return found


def _add(to: dict[str, dict[str, int]], counted: Counts) -> None:
    for key, counters in counted.items():
        into = to.setdefault(key, {})
        for name, value in counters.items():
            kept = name if name in into or len(into) < MAX_NAMES else OTHER
            into[kept] = into.get(kept, 0) + value
