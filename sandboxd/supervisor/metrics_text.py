"""
Plugins' metrics as Prometheus reads them (text format 0.0.4). Pure.

The names that a guest gives are hostile text and stand in a label, never in the name of a family: the families are
three, whatever the guests do, and how many series each plugin may have is its policy's ``limits.metrics``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from sandboxd.supervisor.plugin_metrics import Key, MetricType, Value

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class PluginTotals:
    """One plugin's metrics."""

    tenant: str
    plugin: str
    totals: Mapping[Key, Value]
    dropped: int = 0


_FAMILIES = {
    MetricType.COUNTER: ("sandboxd_plugin_counter_total", "counter", "Counters that plugins have defined."),
    MetricType.GAUGE: ("sandboxd_plugin_gauge", "gauge", "Gauges that plugins have defined, summed over their VMs."),
    MetricType.HISTOGRAM: ("sandboxd_plugin_histogram", "histogram", "Histograms that plugins have defined."),
}
_DROPPED = "sandboxd_plugin_metrics_dropped_total"


def render(plugins: Iterable[PluginTotals]) -> str:
    """Return the text; families and series in a fixed order."""
    listed = sorted(plugins, key=lambda item: (item.tenant, item.plugin))
    return "".join(f"{line}\n" for line in _lines(listed))


def _lines(plugins: list[PluginTotals]) -> Iterator[str]:
    for kind, (name, text_type, text) in _FAMILIES.items():
        yield f"# HELP {name} {text}"
        yield f"# TYPE {name} {text_type}"
        for item in plugins:
            for key in sorted(item.totals, key=lambda key: key.name):
                if key.type is kind:
                    yield from _series(name, _labels(item, key.name), kind, item.totals[key])
    yield f"# HELP {_DROPPED} Reports of metrics over the plugin's limit."
    yield f"# TYPE {_DROPPED} counter"
    for item in plugins:
        yield f"{_DROPPED}{{{_labels(item)}}} {item.dropped}"


def _series(name: str, labels: str, kind: MetricType, value: Value) -> Iterator[str]:
    if kind is not MetricType.HISTOGRAM:
        yield f"{name}{{{labels}}} {value.value}"
        return
    count = 0
    for number, samples in enumerate(value.buckets):
        count += samples
        yield f'{name}_bucket{{{labels},le="{(1 << number) - 1}"}} {count}'
    yield f'{name}_bucket{{{labels},le="+Inf"}} {count}'
    yield f"{name}_sum{{{labels}}} {value.value}"
    yield f"{name}_count{{{labels}}} {count}"


def _labels(item: PluginTotals, name: str | None = None) -> str:
    pairs = [("tenant", item.tenant), ("plugin", item.plugin)]
    if name is not None:
        pairs.append(("name", name))
    return ",".join(f'{label}="{_escaped(text)}"' for label, text in pairs)


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
