"""
What a read-modify-write of shared data costs: `proxy_get_shared_data`, then `proxy_set_shared_data` with its number.

The guest counts in one key, the hottest there can be; first one VM alone (its CPU time), then eight VMs of one worker
at once (the wall time of one update among them). The count is looked at in the end: a figure of lost updates is none.
"""

from __future__ import annotations

import itertools
import mmap
import os
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from wasmtime import wat2wasm

from sandboxd.channel import layout, pairs
from sandboxd.channel.client import VmClient
from sandboxd.channel.memfd import create_channel, create_shared_region
from sandboxd.channel.sync_vm import SyncVm
from sandboxd.protos import control_pb2 as control
from tests.support.counter import counter_wat
from tests.support.modules import bundle
from tests.support.worker_process import LIMITS, OneVm, configuration

FIGURES = ("shared_data_ns", "shared_data_8vms_ns")
TIMES = 50_000
VMS = 8
_REGION_BYTES = 1 << 20
_numbers = itertools.count(1)
_SETS_AT = 256
"""Counter of the region: values set ever."""
_REQUEST = pairs.encode([(b":method", b"GET"), (b":path", b"/"), (b":authority", b"bench.local")])


def _submit(vm: SyncVm) -> int:
    stream = vm.client.open_stream(b"", time.time_ns())
    return vm.client.submit(stream, layout.REQUEST_HEADERS, _REQUEST, True, time.time_ns())


def _together_ns(vms: list[SyncVm]) -> float:
    """Run one request on each VM at once; return the wall time of one update among all of them."""
    started = time.perf_counter_ns()
    events = [_submit(vm) for vm in vms]
    for vm in vms:
        vm.client.flush()
    for vm, event in zip(vms, events, strict=True):
        vm.wait(event, 60)
    return (time.perf_counter_ns() - started) / TIMES / len(vms)


def _alone_ns(one: OneVm) -> float:
    """Return the CPU time of one update, by the worker's own account of the VM's thread."""
    before = _cpu_ns(one)
    _together_ns([one.vm])
    return (_cpu_ns(one) - before) / TIMES


def _cpu_ns(one: OneVm) -> int:
    one.worker.send(control.ToWorker(ping=control.Ping(number=next(_numbers))))
    return next(usage.cpu_ns for usage in one.worker.receive("pong").vms if usage.vm_id == 1)


def measure(rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Return the figures: medians over rounds."""
    module = bundle(bytes(wat2wasm(counter_wat(TIMES))))
    limits = {"limits": replace(LIMITS, host_calls_per_event=0)}
    region = create_shared_region(_REGION_BYTES)
    with ExitStack() as stack:
        stack.callback(os.close, region)
        one = stack.enter_context(OneVm(module, cpu_ms=60_000, shared_fd=region, **limits))
        one.vm.wait_ready(10)
        one.worker.receive("vm_started")
        vms = [one.vm]
        for number in range(2, VMS + 1):
            vm = SyncVm(VmClient(create_channel(65536)))
            stack.callback(vm.close)
            one.worker.open(vm.client.fds, configuration(module.manifest, 65536, **limits), number, shared_fd=region)
            vm.wait_ready(10)
            one.worker.receive("vm_started")
            vms.append(vm)
        alone = [_alone_ns(one) for _ in range(rounds)]
        crowded = [_together_ns(vms) for _ in range(rounds)]
        with mmap.mmap(region, _REGION_BYTES) as shared:
            sets = int.from_bytes(shared[_SETS_AT : _SETS_AT + 4], "little")
        expected = TIMES * rounds * (1 + VMS)
        assert sets == expected, f"{sets} updates, expected {expected}"
    say(f"shared data: {rounds} rounds done")
    return {
        "shared_data_ns": round(statistics.median(alone), 1),
        "shared_data_8vms_ns": round(statistics.median(crowded), 1),
    }
