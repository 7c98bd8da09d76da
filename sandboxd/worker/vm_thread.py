"""
One VM on one thread: start, poll, sleep, fail, start again.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from dataclasses import dataclass
from typing import Final

from sandboxd.limits import MS_NS, WASM_PAGE_BYTES
from sandboxd.protos import control_pb2 as control
from sandboxd.vm import config_blob
from sandboxd.vm.config_blob import CALLBACK_NAMES
from sandboxd.vm.instance import (
    POLL_NO_SPACE,
    POLL_PROTOCOL,
    POLL_SLEEP,
    POLL_STOPPED,
    POLL_WAKE_CLIENT,
    Vm,
    VmStatus,
)
from sandboxd.vm.plugin import LoadedPlugin
from sandboxd.vm.traps import VIOLATIONS, FailureCause, GuestFailure
from sandboxd.worker.control import ControlSocket
from sandboxd.worker.header import ChannelHeader, VmState
from sandboxd.worker.restarts import RestartPolicy, Restarts
from sandboxd.worker.watchdog import Watch, Watchdog

MEMORY_FULL: Final = 15 / 16
"""
A guest that gives up (``unreachable``) with this share of its memory in use is said to have run out of
memory.
"""


@dataclass(frozen=True, slots=True)
class VmSpec:
    """What `OpenVm` and `LoadPlugin` say of a VM. The VM's thread owns the descriptors."""

    vm_id: int
    plugin: LoadedPlugin
    channel_fd: int
    vm_event_fd: int
    client_event_fd: int
    configuration: bytes
    ring_bytes: int
    spin: int
    cpu_per_call_ns: int
    start_cpu_ns: int
    restart: RestartPolicy


class VmThread:
    """
    Runs a VM until `close` or the end of the process.

    Args:
        spec: what to run.
        socket: where to report.
        watchdog: who keeps the CPU limit.
    """

    def __init__(self, spec: VmSpec, socket: ControlSocket, watchdog: Watchdog) -> None:
        self._spec = spec
        self._socket = socket
        self._watchdog = watchdog
        self._header = ChannelHeader(spec.channel_fd)
        self._restarts = Restarts(spec.restart)
        self._poller = select.poll()
        self._poller.register(spec.vm_event_fd, select.POLLIN)
        self._closing = False
        self._cpu_clock: int | None = None
        self._callback = ""
        self._vm: Vm | None = None
        self._usage = (0, 0, 0)
        self._thread = threading.Thread(target=self._run, name=f"vm-{spec.vm_id}", daemon=True)
        self._watch = Watch(self._header, spec.cpu_per_call_ns, spec.start_cpu_ns, self._cpu_ns)

    def start(self) -> None:
        """Start the thread."""
        self._watchdog.add(self._watch)
        self._thread.start()

    def close(self) -> None:
        """Ask the VM to end; `VmClosed` is sent when it has. A call that runs is broken off."""
        self._closing = True
        self._watch.stop()
        _raise_event(self._spec.vm_event_fd)

    @property
    def running(self) -> bool:
        """Whether the VM's thread is inside the engine or about to be."""
        return self._watch.running

    def usage(self) -> control.VmUsage:
        """Return what the VM uses, as of its last pause. Any thread may call it."""
        streams, heap, memory = self._usage
        return control.VmUsage(
            vm_id=self._spec.vm_id,
            generation=self._header.generation,
            streams_open=streams,
            heap_used_bytes=heap,
            guest_memory_bytes=memory,
            cpu_ns=self._cpu_ns(),
            crashes=self._restarts.total,
        )

    def _cpu_ns(self) -> int:
        """Return the CPU time of the VM's thread; 0 before it begins and after it has ended."""
        try:
            return 0 if self._cpu_clock is None else time.clock_gettime_ns(self._cpu_clock)
        except OSError:
            return 0

    def _run(self) -> None:
        # Asked for by the thread itself: for a thread that has ended, the question would be undefined
        # behaviour.
        self._cpu_clock = time.pthread_getcpuclockid(threading.get_ident())
        try:
            while not self._closing:
                try:
                    self._one_generation()
                    self._wait_for_close()  # the client has shut it down
                except GuestFailure as failure:
                    self._fail(failure)
        except BaseException as error:  # a bug of ours must not leave a silent, dead VM
            self._header.state = VmState.GONE
            _raise_event(self._spec.client_event_fd)
            self._socket.send(error=control.WorkerError(message=f"vm {self._spec.vm_id}: {error!r}"[:4096]))
            os._exit(70)
        self._end()

    def _one_generation(self) -> None:
        """Start a VM and run it until the client shuts it down or it is closed. Raises `GuestFailure`."""
        started = time.monotonic_ns()
        generation = self._header.generation + 1
        self._header.generation = generation
        self._watch.begin_start()
        self._running()
        try:
            self._vm = Vm(self._spec.plugin, self._spec.channel_fd, self._spec.ring_bytes, self._watch.should_stop)
            self._vm.configure(
                config_blob.refresh(
                    self._spec.configuration,
                    entropy=os.urandom(config_blob.ENTROPY_BYTES),
                    start_time_ns=time.time_ns(),
                    generation=generation,
                )
            )
            self._vm.start()
            self._watch.end_start()
            self._note_usage()
            self._header.state = VmState.READY
            _raise_event(self._spec.client_event_fd)
            self._socket.send(
                vm_started=control.VmStarted(
                    vm_id=self._spec.vm_id,
                    generation=generation,
                    start_ns=time.monotonic_ns() - started,
                )
            )
            self._poll_until_stopped(self._vm)
            self._header.state = VmState.GONE
            _raise_event(self._spec.client_event_fd)
        except GuestFailure as failure:
            raise self._explained(failure) from None
        finally:
            self._watch.running = False
            self._drop_vm()

    def _poll_until_stopped(self, vm: Vm) -> None:
        spin = self._spec.spin
        while not self._closing:
            result = vm.poll(spin)
            if result & POLL_WAKE_CLIENT:
                _raise_event(self._spec.client_event_fd)
            if result & POLL_STOPPED:
                return
            if result & POLL_PROTOCOL:
                raise GuestFailure(FailureCause.PROTOCOL, "the submission ring is broken")
            if result & (POLL_SLEEP | POLL_NO_SPACE):
                self._note_usage()
                self._watch.running = False
                self._poller.poll()
                self._drain_event()
                self._running()

    def _running(self) -> None:
        self._watch.running = True
        self._watchdog.wake()

    def _fail(self, failure: GuestFailure) -> None:
        """Report, and wait until the VM may start again."""
        starting = self._watch.starting
        self._watch.end_start()
        self._header.end_call()
        if self._closing:
            return
        final = failure.cause is FailureCause.PROTOCOL
        delay = self._restarts.delay_ns(time.monotonic_ns())
        self._header.state = VmState.GONE if final else VmState.FAILED
        _raise_event(self._spec.client_event_fd)
        self._socket.send(
            vm_failed=control.VmFailed(
                vm_id=self._spec.vm_id,
                generation=self._header.generation,
                cause=f"FAILURE_CAUSE_{failure.cause.name}",
                while_starting=starting,
                message=failure.text,
                callback=self._callback,
                retry_in_ns=0 if final else max(1, delay),
            )
        )
        if final:
            self._wait_for_close()
        self._wait(delay)

    def _explained(self, failure: GuestFailure) -> GuestFailure:
        """Return the failure with what hostcore knows of it; the VM still lives."""
        self._callback = ""
        if self._vm is None:
            return failure
        status = self._vm.status()
        self._callback = CALLBACK_NAMES.get(status.in_callback, "")
        memory = self._vm.guest_memory_bytes()
        limit = self._spec.plugin.manifest.memory_pages[1] * WASM_PAGE_BYTES
        cause, message = _cause(failure, status, memory >= limit * MEMORY_FULL)
        if cause in (FailureCause.TRAP, FailureCause.MEMORY_LIMIT):
            message += f" (guest memory {memory} of {limit} bytes)"
        return GuestFailure(cause, message, failure.backtrace, failure.code)

    def _note_usage(self) -> None:
        if self._vm is not None:
            status = self._vm.status()
            self._usage = (status.streams_open, status.heap_used_bytes, self._vm.guest_memory_bytes())

    def _wait(self, nanoseconds: int) -> None:
        """Sleep so long, or until `close`. The client's wake-ups meanwhile are for nobody."""
        deadline = time.monotonic_ns() + nanoseconds
        while not self._closing and (left := deadline - time.monotonic_ns()) > 0:
            self._poller.poll(left / MS_NS)
            self._drain_event()

    def _wait_for_close(self) -> None:
        while not self._closing:
            self._poller.poll()
            self._drain_event()

    def _drain_event(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._spec.vm_event_fd)

    def _drop_vm(self) -> None:
        if self._vm is not None:
            self._vm.close()
            self._vm = None

    def _end(self) -> None:
        self._watchdog.remove(self._watch)
        self._header.state = VmState.GONE
        _raise_event(self._spec.client_event_fd)
        for fd in (self._spec.channel_fd, self._spec.vm_event_fd, self._spec.client_event_fd):
            os.close(fd)
        self._socket.send(vm_closed=control.VmClosed(vm_id=self._spec.vm_id))


def _cause(failure: GuestFailure, status: VmStatus, memory_full: bool) -> tuple[FailureCause, str]:
    if failure.cause is not FailureCause.TRAP:
        return failure.cause, failure.message
    if status.exited:
        return FailureCause.EXIT, f"the guest called proc_exit({status.exit_code})"
    if status.violation:
        return VIOLATIONS.get(
            status.violation, (FailureCause.ABI_VIOLATION, f"hostcore raised violation {status.violation}")
        )
    if failure.gave_up and memory_full:
        return FailureCause.MEMORY_LIMIT, failure.message
    return FailureCause.TRAP, failure.message


def _raise_event(fd: int) -> None:
    # A full counter means that the other side has its wake-up already.
    with contextlib.suppress(BlockingIOError):
        os.eventfd_write(fd, 1)
