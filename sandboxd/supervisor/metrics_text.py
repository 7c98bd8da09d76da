"""
Metrics as Prometheus reads them (text format 0.0.4). Pure.

A family's name, type and help text are always ours; whatever a tenant, a plugin or a guest has chosen stands in a
label's value. So the families are the same whatever guests do, and only the number of series can grow; who makes the
samples bounds that.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
Json = dict[str, Any]


class Kind(enum.StrEnum):
    """Prometheus's types, of those that are used here."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Sample:
    """One series and its value now."""

    labels: Mapping[str, str]
    """In the order in which they are written."""
    value: float
    suffix: str = ""
    """``_bucket``, ``_sum`` or ``_count`` of a histogram."""


@dataclass(slots=True)
class Family:
    """All series of one name."""

    name: str
    kind: Kind
    help: str
    """Without line breaks and backslashes."""
    samples: list[Sample] = field(default_factory=list)

    def add(self, value: float, suffix: str = "", **labels: str) -> None:
        """Add a series."""
        self.samples.append(Sample(labels, value, suffix))


def exposition(families: Iterable[Family]) -> str:
    """Return the text, ready to be served."""
    return "".join(f"{line}\n" for family in families for line in _lines(family))


def _lines(family: Family) -> Iterator[str]:
    yield f"# HELP {family.name} {family.help}"
    yield f"# TYPE {family.name} {family.kind}"
    for sample in family.samples:
        labels = ",".join(f'{name}="{_escaped(text)}"' for name, text in sample.labels.items())
        yield f"{family.name}{sample.suffix}{f'{{{labels}}}' if labels else ''} {_number(sample.value)}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return repr(value) if isinstance(value, float) else str(value)


def only(families: Iterable[Family], tenant: str, plugin: str) -> list[Family]:
    """Return the series of one tenant, or of one plugin of it; with empty names all."""
    wanted = {name: text for name, text in (("tenant", tenant), ("plugin", plugin)) if text}
    if not wanted:
        return list(families)
    found = []
    for family in families:
        samples = [one for one in family.samples if wanted.items() <= one.labels.items()]
        if samples:
            found.append(Family(family.name, family.kind, family.help, samples))
    return found


def to_json(families: Iterable[Family]) -> list[Json]:
    """Return the families as plain data."""
    return [
        {
            "name": family.name,
            "type": str(family.kind),
            "help": family.help,
            "samples": [
                {"suffix": one.suffix, "labels": dict(one.labels), "value": one.value} for one in family.samples
            ],
        }
        for family in families
    ]


def from_json(families: Iterable[Json]) -> list[Family]:
    """Return what `to_json` was given."""
    return [
        Family(
            one["name"],
            Kind(one["type"]),
            one["help"],
            [Sample(sample["labels"], sample["value"], sample["suffix"]) for sample in one["samples"]],
        )
        for one in families
    ]
