"""The broker's counters as the supervisor takes them: checked, for the broker reads what strangers send. Pure."""

from __future__ import annotations

import json
from typing import Any, Final, TypeAlias

MAX_COUNT: Final = (1 << 63) - 1

EgressCounters: TypeAlias = dict[str, dict[str, dict[str, int]]]
"""By plugin (``tenant/plugin``), upstream and counter."""


def read_counters(text: str) -> EgressCounters:
    """
    Return the counters.

    Raises:
        ValueError: it is no JSON, or of another form.
        RecursionError: it is JSON without bottom.
    """
    found: EgressCounters = json.loads(text)
    for upstreams in _values(found):
        for counters in _values(upstreams):
            for number in _values(counters):
                if type(number) is not int or not 0 <= number <= MAX_COUNT:
                    raise ValueError("a counter that is no number")
    return found


def _values(found: Any) -> list[Any]:
    if not isinstance(found, dict):
        raise ValueError("counters in a form of their own")
    return list(found.values())
