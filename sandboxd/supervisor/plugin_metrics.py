"""
Metrics that plugins define: what workers report, checked as hostile and added up per plugin. Pure.

Counters and histograms go on where a VM that was started anew, or is gone, left off; gauges are the sum over the VMs
that run.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from sandboxd.errors import WorkerError
from sandboxd.limits import METRICS_PER_FRAME
from sandboxd.protos import control_pb2 as control

MAX_NAME_BYTES: Final = 512
"""hostcore's own cap."""
MAX_BUCKETS: Final = 65
_MASK: Final = (1 << 64) - 1


class MetricType(enum.IntEnum):
    """``proxy_metric_type_t``."""

    COUNTER = 0
    GAUGE = 1
    HISTOGRAM = 2


@dataclass(frozen=True, slots=True)
class Key:
    """What tells a metric of a plugin from another."""

    type: MetricType
    name: str


@dataclass(frozen=True, slots=True)
class Value:
    """
    A counter's or gauge's value, or the sum of a histogram's samples with the number of samples of 0, of 1, of 2 to 3,
    of 4 to 7 and so on.
    """

    value: int
    buckets: tuple[int, ...] = ()

    def plus(self, other: Value) -> Value:
        """Return the sum, modulo 2^64 as the guest's own numbers."""
        short, long = sorted((self.buckets, other.buckets), key=len)
        padded = short + (0,) * (len(long) - len(short))
        buckets = tuple((a + b) & _MASK for a, b in zip(padded, long, strict=True))
        return Value((self.value + other.value) & _MASK, buckets)


@dataclass(frozen=True, slots=True)
class Report:
    """A piece of one VM's metrics."""

    vm_id: int
    generation: int
    metrics: tuple[tuple[Key, Value], ...]
    more: bool


def read_report(frame: control.VmMetrics) -> Report:
    """
    Check a frame.

    Raises:
        WorkerError: no honest worker sends such.
    """
    if len(frame.metrics) > METRICS_PER_FRAME:
        raise WorkerError(f"reported {len(frame.metrics)} metrics in one frame; {METRICS_PER_FRAME} are the most")
    return Report(frame.vm_id, frame.generation, tuple(_read(metric) for metric in frame.metrics), frame.more)


def _read(metric: control.Metric) -> tuple[Key, Value]:
    if metric.type > MetricType.HISTOGRAM or len(metric.name) > MAX_NAME_BYTES or len(metric.buckets) > MAX_BUCKETS:
        raise WorkerError(f"reported a metric of type {metric.type} with {len(metric.name)} bytes of name")
    kind = MetricType(metric.type)
    if metric.buckets and kind is not MetricType.HISTOGRAM:
        raise WorkerError("reported buckets of a metric that is no histogram")
    return Key(kind, _printable(metric.name)), Value(metric.value, tuple(metric.buckets))


def _printable(name: bytes) -> str:
    """Return a name that can be shown anywhere; names that differ only in what cannot be shown become one."""
    text = name.decode("utf-8", "replace")
    return text if text.isprintable() else "".join(c if c.isprintable() else "\ufffd" for c in text)


@dataclass(slots=True)
class _Vm:
    generation: int = 0
    now: dict[Key, Value] = field(default_factory=dict)
    arriving: dict[Key, Value] = field(default_factory=dict)


class PluginMetrics:
    """
    The metrics of one plugin, over all workers that run it.

    Args:
        most: how many are kept; further names are counted in `dropped` and forgotten.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._past: dict[Key, Value] = {}
        self._vms: dict[int, _Vm] = {}
        self.dropped = 0
        """Reports of metrics that are not kept."""

    def take(self, report: Report) -> None:
        """Take a piece; the values change when the last has come."""
        vm = self._vms.setdefault(report.vm_id, _Vm())
        if report.generation != vm.generation:
            self._retire(vm)
            vm.generation = report.generation
        for key, value in report.metrics:
            if key in vm.arriving or len(vm.arriving) < self.most:
                vm.arriving[key] = value
            else:
                self.dropped += 1
        if not report.more:
            vm.now, vm.arriving = vm.arriving, {}

    def gone(self, vm_id: int) -> None:
        """A VM has ended; what it counted stays."""
        vm = self._vms.pop(vm_id, None)
        if vm is not None:
            self._retire(vm)

    def _retire(self, vm: _Vm) -> None:
        for key, value in vm.now.items():
            if key.type is not MetricType.GAUGE and (key in self._past or len(self._past) < self.most):
                self._past[key] = self._past.get(key, Value(0)).plus(value)
        vm.now, vm.arriving = {}, {}

    def totals(self) -> Mapping[Key, Value]:
        """Return the plugin's metrics, at most as many as are kept."""
        found = dict(self._past)
        for vm in self._vms.values():
            for key, value in vm.now.items():
                if key in found or len(found) < self.most:
                    found[key] = found.get(key, Value(0)).plus(value)
        return found
