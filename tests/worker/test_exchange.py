"""What a worker tells the supervisor on behalf of its VMs, frame by frame."""

from __future__ import annotations

import struct
from typing import Any
from unittest.mock import Mock

import pytest

from sandboxd.limits import MAX_METRICS, METRICS_PER_FRAME
from sandboxd.protos import control_pb2 as control
from sandboxd.supervisor.plugin_metrics import read_report
from sandboxd.supervisor.worker_protocol import METRICS_FRAMES_PER_VM
from sandboxd.worker.control import ControlSocket
from sandboxd.worker.errands import Errands
from sandboxd.worker.exchange import WorkerExchange


class Told(ControlSocket):
    """Keeps what would be sent."""

    def __init__(self) -> None:
        self.metrics: list[control.VmMetrics] = []

    def send(self, **frame: Any) -> None:
        """Keep it as it is now: the caller may go on with it."""
        self.metrics.append(control.VmMetrics.FromString(frame["vm_metrics"].SerializeToString()))


def counter(number: int, padding: int = 0) -> bytes:
    """A metric as hostcore sends it."""
    name = b"%d" % number + b"x" * padding
    return struct.pack("<IIIQ", 0, len(name), 0, number) + name


@pytest.mark.parametrize("count", [0, 1, METRICS_PER_FRAME, METRICS_PER_FRAME + 1, MAX_METRICS])
def test_metrics_go_in_frames_that_the_supervisor_takes(count: int) -> None:
    """All of them, in order, however small each is; as many frames as one VM may send."""
    told = Told()
    exchange = WorkerExchange(told, lambda _: None)
    exchange.metrics(Errands(7, Mock(), exchange), b"".join(map(counter, range(count))))

    reports = [read_report(frame) for frame in told.metrics]
    assert [value.value for report in reports for _, value in report.metrics] == list(range(count))
    assert [report.more for report in reports] == [True] * (len(reports) - 1) + [False]
    assert len(reports) <= METRICS_FRAMES_PER_VM


def test_long_metrics_go_in_frames_that_fit_the_socket() -> None:
    """By their size, before there are too many of them."""
    told = Told()
    exchange = WorkerExchange(told, lambda _: None)
    exchange.metrics(Errands(7, Mock(), exchange), b"".join(counter(number, 500) for number in range(1000)))

    assert sum(len(frame.metrics) for frame in told.metrics) == 1000
    assert max(frame.ByteSize() for frame in told.metrics) <= 50_000
