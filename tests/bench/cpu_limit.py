"""
How far past its CPU limit a call is when it is stopped, by the CPU clock of the thread that runs it.

The worker's own account of the thread before the event and after the failure is taken, and from it what an event costs
whose guest traps at once: waking up, the call into the VM and its end are not the guest's doing. VMs are started again
in between, outside the measured time.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

from sandboxd.channel import layout, pairs
from sandboxd.channel.sync_vm import VmLost
from sandboxd.protos import control_pb2 as control
from tests.support.modules import bundle, misdeed
from tests.support.worker_process import OneVm

LIMITS_MS = (5, 50)
FIGURES = (
    "cpu_limit_error_ms",
    "cpu_limit_error_max_ms",
    *(f"cpu_limit_{limit}ms_error_{part}_ms" for limit in LIMITS_MS for part in ("p50", "min", "max")),
)
KILLS = 30
"""Of each limit."""
BASELINES = 15

_REQUEST = pairs.encode([(b":method", b"GET"), (b":path", b"/"), (b":authority", b"bench.local")])
_numbers = itertools.count(1)


def _cpu_ns(one: OneVm) -> int:
    number = next(_numbers)
    one.worker.send(control.ToWorker(ping=control.Ping(number=number)))
    pong = one.worker.receive("pong")
    return int(pong.vms[0].cpu_ns)


def _failures(name: str, cpu_ms: int, count: int) -> Iterator[tuple[float, str]]:
    """Yield the milliseconds of CPU from the event to the end of the VM, and the cause."""
    with OneVm(bundle(misdeed(name)), cpu_ms=cpu_ms, restarts=0) as one:
        for generation in range(1, count + 1):
            one.worker.receive("vm_started")
            one.vm.wait_ready(10)
            time.sleep(0.03)  # let VM and watchdog fall asleep
            before = _cpu_ns(one)
            stream = one.vm.client.open_stream(b"", time.time_ns())
            try:
                one.vm.call(stream, layout.REQUEST_HEADERS, _REQUEST, end_of_stream=True)
            except VmLost:
                pass
            else:
                raise AssertionError(f"{name} was not stopped")
            failure = one.worker.receive("vm_failed")
            assert failure.generation == generation
            time.sleep(0.01)  # until the thread has torn the VM down
            yield (_cpu_ns(one) - before) / 1e6, control.FailureCause.Name(failure.cause)
            one.worker.send(control.ToWorker(restart_vm=control.RestartVm(vm_id=1)))


def errors_ms(limit_ms: int, kills: int) -> list[float]:
    """Return how far past the limit each of so many calls was."""
    overhead = statistics.median(taken for taken, _ in _failures("trap_in_request_headers", limit_ms, BASELINES))
    found = []
    for taken, cause in _failures("loop_in_request_headers", limit_ms, kills):
        assert cause == "FAILURE_CAUSE_CPU_LIMIT", cause
        found.append(taken - overhead - limit_ms)
    return found


def measure(kills: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Return ``cpu_limit_error_ms``, the median at the limit where it is largest, and the details of each limit."""
    figures: dict[str, Any] = {}
    medians, worst = [], []
    for limit_ms in LIMITS_MS:
        errors = errors_ms(limit_ms, kills)
        medians.append(statistics.median(errors))
        worst.append(max(errors))
        figures[f"cpu_limit_{limit_ms}ms_error_p50_ms"] = round(medians[-1], 3)
        figures[f"cpu_limit_{limit_ms}ms_error_min_ms"] = round(min(errors), 3)
        figures[f"cpu_limit_{limit_ms}ms_error_max_ms"] = round(worst[-1], 3)
    say(f"CPU limit: {kills} kills at each of {', '.join(f'{limit} ms' for limit in LIMITS_MS)} done")
    return {"cpu_limit_error_ms": round(max(medians), 3), "cpu_limit_error_max_ms": round(max(worst), 3), **figures}
