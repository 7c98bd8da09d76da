"""
Numbers that carry their unit, as an operator writes them: ``5ms``, ``32MiB``. Pure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from sandboxd import limits

WITH_UNIT = re.compile(r"(\d{1,15}(?:\.\d{1,9})?) ?([A-Za-z]+)")
"""A decimal and its unit."""


@dataclass(frozen=True, slots=True)
class Quantity:
    """A kind of number that carries its unit."""

    what: str
    example: str
    units: dict[str, int]
    """Smallest first."""

    def show(self, value: int) -> str:
        """Write a value with the largest unit that divides it."""
        unit = next(unit for unit in reversed(self.units) if value % self.units[unit] == 0)
        return f"{value // self.units[unit]}{unit}"


DURATION = Quantity(
    "a duration",
    "5ms",
    {"ns": 1, "us": limits.US_NS, "ms": limits.MS_NS, "s": limits.S_NS, "m": 60 * limits.S_NS},
)
SIZE = Quantity("a size", "32MiB", {"B": 1, "KiB": limits.KIB, "MiB": limits.MIB, "GiB": limits.GIB})


def scaled(number: str, unit: int) -> int | None:
    """Multiply a decimal exactly; None if the result is not whole."""
    whole, _, fraction = number.partition(".")
    value, rest = divmod(int(whole + fraction) * unit, 10 ** len(fraction))
    return None if rest else value
