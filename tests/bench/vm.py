"""What one VM in one worker costs: host calls, streams, starts, memory. No proxy, no gRPC."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from sandboxd.channel import layout, pairs
from sandboxd.channel.errors import ChannelBroken
from sandboxd.channel.sync_vm import SyncVm, VmLost
from sandboxd.jail.jailer import Jailer, this_machine
from sandboxd.jail.layers import Layer
from sandboxd.policy.load import parse_policy
from sandboxd.policy.model import PluginPolicy
from sandboxd.supervisor.local import LocalSandbox
from tests.support import guests
from tests.support.guests import Guest

READS = 50_000
READ_EVENTS = 7
MORE_VMS = 8
STREAMS = 100
"""In flight together, so that the worker never waits for the client: their answers fit into the ring."""

FIGURES = (
    "hostcall_ns",
    "stream_worker_us",
    "stream_roundtrip_us",
    "seccomp_cost_ratio",
    "vm_restart_ms",
    "worker_start_ms",
    "worker_rss_mib",
    "vm_mib",
)

REQUEST = (
    (b":method", b"GET"),
    (b":path", b"/x"),
    (b":authority", b"bench.local"),
    (b":scheme", b"http"),
    (b"user-agent", b"bench"),
    (b"accept", b"*/*"),
    (b"x-forwarded-proto", b"http"),
    (b"x-request-id", b"3c2a3d4e-0000-4000-8000-000000000000"),
)
RESPONSE = (
    (b":status", b"200"),
    (b"content-length", b"12"),
    (b"content-type", b"text/plain"),
    (b"date", b"Sat, 01 Jan 2000 00:00:00 GMT"),
    (b"server", b"envoy"),
)


def _plugin(guest: Guest) -> PluginPolicy:
    roomy = {"cpu_per_call": "5s", "host_calls_per_event": 10_000_000}
    restart = {"backoff": "0s", "max_crashes": 1000}
    entry = guest.plugin(limits=roomy, failure={"restart": restart})
    text = json.dumps({"tenant": "bench", "plugins": [entry]})
    return parse_policy(text, "bench.yaml", module_root=Path()).plugins[0]


def _headers(*more: tuple[bytes, bytes]) -> bytes:
    return pairs.encode([*REQUEST, *more])


def _hostcall_ns(vm: SyncVm) -> float:
    """Time events with many reads of a header against others with none; each takes some milliseconds only."""

    def event_ns(reads: int) -> int:
        stream = vm.client.open_stream(b"", time.time_ns())
        headers = _headers((b"x-probe", b"a value to read"), (b"x-reads", b"%d" % reads))
        started = time.perf_counter_ns()
        vm.call(stream, layout.REQUEST_HEADERS, headers, end_of_stream=True)
        taken = time.perf_counter_ns() - started
        vm.close_stream(stream)
        return taken

    return statistics.median((event_ns(READS) - event_ns(0)) / READS for _ in range(READ_EVENTS))


def _submit_stream(vm: SyncVm, request: bytes, response: bytes) -> int:
    """Submit a whole stream without waiting; return its last event."""
    now = time.time_ns()
    stream = vm.client.open_stream(b"", now)
    vm.client.submit(stream, layout.REQUEST_HEADERS, request, True, now)
    vm.client.submit(stream, layout.RESPONSE_HEADERS, response, True, now)
    return vm.client.close_stream(stream, False, now)


def _stream_worker_us(sandbox: LocalSandbox, vm: SyncVm) -> float:
    """Take the CPU time of the VM's thread over many streams, by the worker's own account."""
    request, response = _headers(), pairs.encode(list(RESPONSE))

    def cpu_ns() -> int:
        return sum(usage.cpu_ns for usage in sandbox.usage())

    before, streams = cpu_ns(), 0
    for _ in range(20):
        for last in [_submit_stream(vm, request, response) for _ in range(STREAMS)]:
            if vm.client.is_outstanding(last):
                vm.wait(last, 10)
            streams += 1
    return (cpu_ns() - before) / streams / 1000


def _stream_roundtrip_us(vm: SyncVm) -> float:
    """Time a stream from the client's side, one event after the other, as a front with nothing else to do."""
    request, response = _headers(), pairs.encode(list(RESPONSE))
    started, streams = time.perf_counter_ns(), 500
    for _ in range(streams):
        stream = vm.client.open_stream(b"", time.time_ns())
        vm.call(stream, layout.REQUEST_HEADERS, request, end_of_stream=True)
        vm.call(stream, layout.RESPONSE_HEADERS, response, end_of_stream=True)
        vm.close_stream(stream)
    return (time.perf_counter_ns() - started) / streams / 1000


def _restart_ms(vm: SyncVm) -> float:
    """Time from sending the event that traps to the next VM being ready for events."""
    generation = vm.client.generation
    stream = vm.client.open_stream(b"", time.time_ns())
    started = time.perf_counter_ns()
    try:
        vm.call(stream, layout.REQUEST_HEADERS, _headers((b"x-probe", b"panic")), end_of_stream=True)
    except (VmLost, ChannelBroken):
        pass
    else:
        raise AssertionError("the guest did not trap")
    while vm.client.vm_state != layout.VM_READY or vm.client.restart_unseen or vm.client.generation == generation:
        vm.client.drain()
        assert time.perf_counter_ns() - started < 10e9, "the VM did not come back"
    return (time.perf_counter_ns() - started) / 1e6


def _worker_start_ms(prepared: LocalSandbox) -> tuple[float, float]:
    """Return the time from exec to a VM that serves, and the worker's resident memory then."""
    started = time.perf_counter_ns()
    with LocalSandbox(prepared.plugin, prepared=prepared.prepared) as sandbox:
        sandbox.open_vm()
        taken_ms = (time.perf_counter_ns() - started) / 1e6
        return taken_ms, psutil.Process(sandbox.pid).memory_info().rss / (1 << 20)


def _vm_mib(sandbox: LocalSandbox) -> float:
    """Return what a further VM of a plugin adds to the worker's resident memory, idle."""

    def rss() -> int:
        return int(psutil.Process(sandbox.pid).memory_info().rss)

    before = rss()
    for _ in range(MORE_VMS):
        sandbox.open_vm()
    return (rss() - before) / MORE_VMS / (1 << 20)


def _without_filters() -> Jailer:
    """Return what jails as always, but for the two system call filters."""
    here = this_machine()
    tolerate = here.tolerate | {Layer.SECCOMP, Layer.NO_NEW_EXEC}
    return replace(here, facts=replace(here.facts, seccomp=False), tolerate=tolerate)


def measure(rounds: int, directory: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Return the figures of VM and worker: medians over rounds."""
    cache = directory / "vm-cache"
    cache.mkdir(mode=0o700)
    found: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        found.setdefault(name, []).append(value)

    with (
        LocalSandbox(_plugin(guests.C_BENCH), cache_directory=cache) as reader,
        LocalSandbox(_plugin(guests.HTTP_HEADERS), cache_directory=cache) as streamer,
        LocalSandbox(_plugin(guests.PROBE), cache_directory=cache) as trapper,
        LocalSandbox(streamer.plugin, prepared=streamer.prepared, jailer=_without_filters()) as unfiltered,
    ):
        assert "seccomp" not in unfiltered.layers
        assert "seccomp" in streamer.layers
        reading, streaming, trapping = reader.open_vm(), streamer.open_vm(), trapper.open_vm()
        bare = unfiltered.open_vm()
        for _ in range(rounds):
            note("hostcall_ns", _hostcall_ns(reading))
            note("stream_worker_us", _stream_worker_us(streamer, streaming))
            note("stream_roundtrip_us", _stream_roundtrip_us(streaming))
            note("seccomp_cost_ratio", found["stream_roundtrip_us"][-1] / _stream_roundtrip_us(bare))
            note("vm_restart_ms", _restart_ms(trapping))
            start_ms, rss_mib = _worker_start_ms(streamer)
            note("worker_start_ms", start_ms)
            note("worker_rss_mib", rss_mib)
        note("vm_mib", _vm_mib(streamer))
    say(f"worker and VM: {rounds} rounds done")
    return {name: round(statistics.median(values), 2) for name, values in found.items()}
