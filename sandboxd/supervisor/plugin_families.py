"""
The families of the metrics that plugins have defined. Pure.

The names that a guest gives are hostile text and stand in a label, never in the name of a family: the families are
three, whatever the guests do. How many series a plugin may have is its policy's ``limits.metrics``; how many lines all
plugins get together is bounded here, so that no scrape grows without end.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from sandboxd.supervisor.metrics_text import Family, Kind, Sample
from sandboxd.supervisor.plugin_metrics import Key, MetricType, Value

MAX_LINES: Final = 100_000
"""Of all plugins' metrics; a histogram takes one line per bucket and three more."""


@dataclass(frozen=True, slots=True)
class PluginTotals:
    """One plugin's metrics."""

    tenant: str
    plugin: str
    totals: Mapping[Key, Value]
    dropped: int = 0


_FAMILIES = {
    MetricType.COUNTER: ("sandboxd_plugin_counter_total", Kind.COUNTER, "Counters that plugins have defined."),
    MetricType.GAUGE: ("sandboxd_plugin_gauge", Kind.GAUGE, "Gauges that plugins have defined, summed over their VMs."),
    MetricType.HISTOGRAM: ("sandboxd_plugin_histogram", Kind.HISTOGRAM, "Histograms that plugins have defined."),
}


def plugin_families(plugins: Iterable[PluginTotals], most_lines: int = MAX_LINES) -> list[Family]:
    """Return the families, series in a fixed order; those past ``most_lines`` are left out and counted."""
    listed = sorted(plugins, key=lambda item: (item.tenant, item.plugin))
    families = {kind: Family(*described) for kind, described in _FAMILIES.items()}
    left_out = 0
    for item in listed:
        for key in sorted(item.totals, key=lambda key: (key.type, key.name)):
            lines = list(_series(item, key, item.totals[key]))
            if len(lines) > most_lines:
                left_out += 1
                continue
            most_lines -= len(lines)
            families[key.type].samples.extend(lines)
    dropped = Family("sandboxd_plugin_metrics_dropped_total", Kind.COUNTER, "Reports of metrics over limits.metrics.")
    for item in listed:
        dropped.add(item.dropped, tenant=item.tenant, plugin=item.plugin)
    rest = Family("sandboxd_plugin_metrics_left_out", Kind.GAUGE, "Metrics of plugins that there is no room for here.")
    rest.add(left_out)
    return [*families.values(), dropped, rest]


def _series(item: PluginTotals, key: Key, value: Value) -> Iterator[Sample]:
    labels = {"tenant": item.tenant, "plugin": item.plugin, "name": key.name}
    if key.type is not MetricType.HISTOGRAM:
        yield Sample(labels, value.value)
        return
    count = 0
    for number, samples in enumerate(value.buckets):
        count += samples
        yield Sample({**labels, "le": str((1 << number) - 1)}, count, "_bucket")
    yield Sample({**labels, "le": "+Inf"}, count, "_bucket")
    yield Sample(labels, value.value, "_sum")
    yield Sample(labels, count, "_count")
