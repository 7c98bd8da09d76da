"""
The numbers that `docs/specification.md` promises, read from its tables, and what a run makes of them. Pure but for
`read`.

A row is ``| `figure` | promise | ...``, where a promise is ``< N``, ``>= N`` or ``-`` for a figure that is measured
and not promised.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PATH: Final = Path(__file__).resolve().parents[2] / "docs" / "specification.md"
_ROW: Final = re.compile(r"^\| `(\w+)` \| *([^|]*?) *\|", re.MULTILINE)
_PROMISE: Final = re.compile(r"(<|>=) ([0-9.]+)")


@dataclass(frozen=True, slots=True)
class Row:
    """One figure with what is promised of it."""

    figure: str
    relation: str
    """``<``, ``>=``, or empty: nothing."""
    bound: float = 0.0

    def holds(self, value: float) -> bool:
        """Return whether a value keeps the promise."""
        return not self.relation or (value < self.bound if self.relation == "<" else value >= self.bound)


def parse(text: str) -> tuple[Row, ...]:
    """Read the rows of a text. Raises ValueError for a promise that is none, and for a figure with two rows."""
    rows: dict[str, Row] = {}
    for figure, promise in _ROW.findall(text):
        found = _PROMISE.fullmatch(promise)
        if found is None and promise != "-":
            raise ValueError(f"the promise of {figure} is {promise!r}; allowed: '< N', '>= N', '-'")
        if figure in rows:
            raise ValueError(f"{figure} has two rows")
        rows[figure] = Row(figure, found[1], float(found[2])) if found else Row(figure, "")
    return tuple(rows.values())


def read() -> tuple[Row, ...]:
    """Read the specification. Raises as `parse`."""
    return parse(PATH.read_text())


def misses(rows: tuple[Row, ...], figures: Mapping[str, object]) -> Iterator[str]:
    """Yield a line for each promise that a run did not keep, or did not measure."""
    for row in rows:
        value = figures.get(row.figure)
        if not isinstance(value, int | float):
            yield f"{row.figure}: not measured"
        elif not row.holds(value):
            yield f"{row.figure}: {value}, promised {row.relation} {row.bound:g}"
