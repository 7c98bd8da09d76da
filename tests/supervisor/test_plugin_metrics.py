"""Plugins' metrics: frames of a hostile worker, sums over VMs and restarts, and the text for Prometheus."""

from __future__ import annotations

import re

import pytest

from sandboxd.errors import WorkerError
from sandboxd.limits import METRICS_PER_FRAME
from sandboxd.protos import control_pb2 as control
from sandboxd.supervisor.metrics_text import exposition
from sandboxd.supervisor.plugin_families import PluginTotals, plugin_families
from sandboxd.supervisor.plugin_metrics import Key, MetricType, PluginMetrics, Report, Value, read_report
from sandboxd.supervisor.worker_protocol import VmView, WorkerView

COUNTER, GAUGE, HISTOGRAM = Key(MetricType.COUNTER, "c"), Key(MetricType.GAUGE, "g"), Key(MetricType.HISTOGRAM, "h")


def report(vm_id: int, generation: int, *metrics: tuple[Key, Value], more: bool = False) -> Report:
    """One piece."""
    return Report(vm_id, generation, metrics, more)


def test_frame_of_an_honest_worker() -> None:
    frame = control.VmMetrics(vm_id=3, generation=2, more=True)
    frame.metrics.add(type=0, name=b"c", value=5)
    frame.metrics.add(type=2, name=b"\xff", value=9, buckets=[1, 0, 2])

    assert read_report(frame) == Report(
        3, 2, ((COUNTER, Value(5)), (Key(MetricType.HISTOGRAM, "\ufffd"), Value(9, (1, 0, 2)))), True
    )


def test_names_can_be_shown_anywhere() -> None:
    """On a terminal as well; the operator's is no place for a guest's control characters."""
    frame = control.VmMetrics(vm_id=3, generation=2)
    frame.metrics.add(type=0, name="a\x1b[2Jb\u202e\nc".encode(), value=5)

    assert read_report(frame).metrics[0][0].name == "a\ufffd[2Jb\ufffd\ufffdc"


@pytest.mark.parametrize(
    "metric",
    [
        control.Metric(type=3, name=b"c"),
        control.Metric(type=0, name=b"c" * 513),
        control.Metric(type=2, name=b"c", buckets=[0] * 66),
        control.Metric(type=0, name=b"c", buckets=[1]),
    ],
)
def test_frame_of_a_hostile_worker(metric: control.Metric) -> None:
    with pytest.raises(WorkerError):
        read_report(control.VmMetrics(metrics=[metric]))


def test_number_of_metrics_in_a_frame_is_bounded() -> None:
    """Reading them keeps the supervisor's loop from everybody else."""
    metrics = [control.Metric()] * METRICS_PER_FRAME
    assert len(read_report(control.VmMetrics(metrics=metrics)).metrics) == METRICS_PER_FRAME

    with pytest.raises(WorkerError, match="reported 2049 metrics in one frame; 2048 are the most"):
        read_report(control.VmMetrics(metrics=[*metrics, control.Metric()]))


def test_sum_over_vms_pieces_and_restarts() -> None:
    metrics = PluginMetrics(10)
    metrics.take(report(1, 1, (COUNTER, Value(5)), more=True))
    assert metrics.totals() == {}
    metrics.take(report(1, 1, (GAUGE, Value(2)), (HISTOGRAM, Value(3, (0, 1, 1)))))
    metrics.take(report(2, 1, (COUNTER, Value(1)), (GAUGE, Value(4)), (HISTOGRAM, Value(0, (2,)))))
    assert metrics.totals() == {COUNTER: Value(6), GAUGE: Value(6), HISTOGRAM: Value(3, (2, 1, 1))}

    metrics.take(report(1, 2, (COUNTER, Value(1))))
    metrics.gone(2)

    assert metrics.totals() == {COUNTER: Value(7), HISTOGRAM: Value(3, (2, 1, 1))}


def test_numbers_wrap_as_the_guests() -> None:
    assert Value(2**64 - 1).plus(Value(2)) == Value(1)


def test_number_of_series_is_bounded() -> None:
    """Over pieces, over VMs and over restarts."""
    metrics = PluginMetrics(3)
    for generation in range(1, 5):
        many = [(Key(MetricType.COUNTER, f"{generation} {n}"), Value(1)) for n in range(10)]
        metrics.take(report(1, generation, *many, more=True))
        metrics.take(report(1, generation, *many))
        metrics.take(report(2, generation, (Key(MetricType.COUNTER, f"other {generation}"), Value(1))))

    assert len(metrics.totals()) == 3
    assert metrics.dropped == 4 * 14


def test_text_for_prometheus() -> None:
    hostile = Key(MetricType.COUNTER, 'x"} 1\n# evil\\')
    totals = {COUNTER: Value(7), GAUGE: Value(2), HISTOGRAM: Value(1001, (1, 1, 0, 1)), hostile: Value(1)}
    text = exposition(plugin_families([PluginTotals("b", "p", {}), PluginTotals("a", "p", totals, dropped=4)]))

    assert 'sandboxd_plugin_counter_total{tenant="a",plugin="p",name="c"} 7\n' in text
    assert 'sandboxd_plugin_counter_total{tenant="a",plugin="p",name="x\\"} 1\\n# evil\\\\"} 1\n' in text
    assert 'sandboxd_plugin_gauge{tenant="a",plugin="p",name="g"} 2\n' in text
    buckets = re.findall(r'_bucket\{.*le="(.*)"\} (\d+)', text)
    assert buckets == [("0", "1"), ("1", "2"), ("3", "2"), ("7", "3"), ("+Inf", "3")]
    assert 'sandboxd_plugin_histogram_sum{tenant="a",plugin="p",name="h"} 1001\n' in text
    assert 'sandboxd_plugin_histogram_count{tenant="a",plugin="p",name="h"} 3\n' in text
    assert 'sandboxd_plugin_metrics_dropped_total{tenant="a",plugin="p"} 4\n' in text
    assert 'sandboxd_plugin_metrics_dropped_total{tenant="b",plugin="p"} 0\n' in text
    assert all(line.startswith(("# ", "sandboxd_plugin_")) for line in text.splitlines())


def test_worker_reports_only_what_it_was_asked_for() -> None:
    """Of its own VMs, of generations that have started, and only so often."""
    view = WorkerView(ready=True, vms={7: VmView(1, generation=2)})

    def frame(vm_id: int, generation: int) -> bytes:
        return control.FromWorker(vm_metrics=control.VmMetrics(vm_id=vm_id, generation=generation)).SerializeToString()

    with pytest.raises(WorkerError, match="asked for"):
        view.feed(frame(7, 2))
    view.metrics_frames = 0
    view.expect_metrics()
    assert view.feed(frame(7, 2)) == Report(7, 2, (), False)
    for vm_id, generation in ((8, 1), (7, 3)):
        with pytest.raises(WorkerError):
            view.feed(frame(vm_id, generation))
    view.metrics_frames = 1
    view.feed(frame(7, 2))
    with pytest.raises(WorkerError, match="asked for"):
        view.feed(frame(7, 2))
