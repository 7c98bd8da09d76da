"""
One VM on one thread: start, poll, sleep, fail, start again.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time

from sandboxd.limits import WASM_PAGE_BYTES
from sandboxd.protos import control_pb2 as control
from sandboxd.vm import config_blob
from sandboxd.vm.config_blob import CALLBACK_NAMES
from sandboxd.vm.hostcore_answers import (
    POLL_INBOX,
    POLL_NO_SPACE,
    POLL_OUTBOX,
    POLL_PROTOCOL,
    POLL_SLEEP,
    POLL_STOPPED,
    POLL_WAKE_CLIENT,
    POLL_YIELD,
    VmStatus,
)
from sandboxd.vm.instance import Vm
from sandboxd.vm.traps import FailureCause, GuestFailure
from sandboxd.worker.bell import ChannelBell, raise_event
from sandboxd.worker.control import ControlSocket
from sandboxd.worker.errands import Errands, Exchange
from sandboxd.worker.failure_cause import MEMORY_FULL, cause_of
from sandboxd.worker.header import ChannelHeader, VmState
from sandboxd.worker.restarts import Leave
from sandboxd.worker.threads import CpuClock, start_thread
from sandboxd.worker.vm_spec import VmSpec
from sandboxd.worker.watchdog import Watch, Watchdog


class VmThread:
    """
    Runs a VM until `close` or the end of the process.

    Args:
        spec: what to run.
        socket: where to report.
        watchdog: who keeps the CPU limit.
        exchange: where the guest's requests go.
    """

    def __init__(self, spec: VmSpec, socket: ControlSocket, watchdog: Watchdog, exchange: Exchange) -> None:
        self._spec = spec
        self._socket = socket
        self._watchdog = watchdog
        self._header = ChannelHeader(spec.channel_fd)
        self._leave = Leave(spec.restarts)
        self._configuration = spec.configuration
        self._generation = 0
        self._bell = ChannelBell(self._header, spec.vm_event_fd)
        self.errands = Errands(spec.vm_id, self._bell, exchange)
        """What the VM gets and asks for beside its channel; `Errands` says what other threads may call."""
        self._poller = select.poll()
        self._poller.register(spec.vm_event_fd, select.POLLIN)
        self._closing = False
        self._cpu_ns = CpuClock()
        self._callback = ""
        self._vm: Vm | None = None
        self._usage = (0, 0, 0)
        self._thread = threading.Thread(target=self._run, name=f"vm-{spec.vm_id}", daemon=True)
        self._watch = Watch(self._header, spec.cpu_per_call_ns, spec.start_cpu_ns, self._cpu_ns)

    def start(self) -> None:
        """Start the thread."""
        self._watchdog.add(self._watch)
        start_thread(self._thread)

    def close(self) -> None:
        """Ask the VM to end; `VmClosed` is sent when it has. A call that runs is broken off."""
        self._closing = True
        self._watch.stop()
        self._bell.wake()  # the thread may have ended by now, and its descriptors with it

    def restart(self, configuration: bytes | None = None) -> None:
        """
        Give leave for one more start; one that has not failed yet uses it after its next failure.

        ``configuration``: what it starts with from then on; None: the same as before.
        """
        if configuration is not None:
            self._configuration = configuration
        self._leave.give()
        self._bell.wake()

    @property
    def plugin_id(self) -> int:
        """Of the plugin that runs."""
        return self._spec.plugin_id

    @property
    def running(self) -> bool:
        """Whether the VM's thread is inside the engine or about to be."""
        return self._watch.running

    def usage(self) -> control.VmUsage:
        """Return what the VM uses, as of its last pause. Any thread may call it."""
        streams, heap, memory = self._usage
        return control.VmUsage(
            vm_id=self._spec.vm_id,
            generation=self._generation,
            streams_open=streams,
            heap_used_bytes=heap,
            guest_memory_bytes=memory,
            cpu_ns=self._cpu_ns(),
            crashes=self._leave.failures,
        )

    def _run(self) -> None:
        self._cpu_ns.begin()
        try:
            while not self._closing:
                try:
                    self._one_generation()
                    self._wait_for_close()  # the client has shut it down
                except GuestFailure as failure:
                    self._fail(failure)
        except BaseException as error:  # a bug of ours must not leave a silent, dead VM
            self._header.state = VmState.GONE
            raise_event(self._spec.client_event_fd)
            self._socket.send(error=control.WorkerError(message=f"vm {self._spec.vm_id}: {error!r}"[:4096]))
            os._exit(70)
        self._end()

    def _one_generation(self) -> None:
        """Start a VM and run it until the client shuts it down or it is closed. Raises `GuestFailure`."""
        started = time.monotonic_ns()
        # Not from the header: whoever else has the channel could write another number there.
        self._generation += 1
        generation = self._header.generation = self._generation
        self._watch.begin_start()
        self._running()
        self.errands.reset(generation)
        shared = self._spec.shared
        try:
            self._vm = Vm(
                self._spec.plugin,
                self._spec.channel_fd,
                self._spec.ring_bytes,
                self._watch.should_stop,
                shared,
                ask=self._spec.ask,
                table_elements=self._spec.table_elements,
            )
            self._vm.configure(
                config_blob.refresh(
                    self._configuration,
                    entropy=os.urandom(config_blob.ENTROPY_BYTES),
                    start_time_ns=time.time_ns(),
                    generation=generation,
                    shared=None if shared is None else (shared.size, shared.number),
                )
            )
            self._vm.start()
            self._watch.end_start()
            self._note_usage(self._vm)
            self._header.state = VmState.READY
            raise_event(self._spec.client_event_fd)
            self._socket.send(
                vm_started=control.VmStarted(
                    vm_id=self._spec.vm_id,
                    generation=generation,
                    start_ns=time.monotonic_ns() - started,
                )
            )
            self._poll_until_stopped(self._vm)
            self._header.state = VmState.GONE
            raise_event(self._spec.client_event_fd)
        except GuestFailure as failure:
            raise self._explained(failure) from None
        finally:
            self._watch.running = False
            self._drop_vm()

    def _poll_until_stopped(self, vm: Vm) -> None:
        spin = self._spec.spin
        while not self._closing:
            result = vm.poll(spin)
            if result & POLL_YIELD:
                # It looks in vain so far: whoever else wants this CPU, the client before all, has it at once.
                os.sched_yield()
                continue
            if result & POLL_WAKE_CLIENT:
                raise_event(self._spec.client_event_fd)
            if result & POLL_OUTBOX:
                self.errands.send(vm)
            if result & POLL_STOPPED:
                return
            if result & POLL_PROTOCOL:
                raise GuestFailure(FailureCause.PROTOCOL, "the submission ring is broken")
            if result & POLL_INBOX:
                self.errands.deliver(vm)
            if result & (POLL_SLEEP | POLL_NO_SPACE):
                self._sleep(vm, ready=bool(result & POLL_SLEEP))

    def _sleep(self, vm: Vm, *, ready: bool) -> None:
        """Sleep until there is something to do; ``ready``: the VM may be given what is due."""
        status = self._note_usage(vm)
        timeout_ms = self.errands.sleep_ms(status) if ready else None
        self._watch.running = False
        self._poller.poll(timeout_ms)
        self._drain_event()
        self._running()
        if timeout_ms is not None:
            self.errands.deliver(vm)

    def _running(self) -> None:
        self._watch.running = True
        self._watchdog.wake()

    def _fail(self, failure: GuestFailure) -> None:
        """Report, and wait for leave to start again: when that is, the supervisor's ledger decides."""
        starting = self._watch.starting
        self._watch.end_start()
        self._header.end_call()
        if self._closing:
            return
        final = failure.cause is FailureCause.PROTOCOL
        at_once = self._leave.failed(while_starting=starting)
        self._header.set_failure(failure.cause)  # before the state, which is what the client looks at
        self._header.state = VmState.GONE if final else VmState.FAILED
        raise_event(self._spec.client_event_fd)
        self._socket.send(
            vm_failed=control.VmFailed(
                vm_id=self._spec.vm_id,
                generation=self._generation,
                cause=f"FAILURE_CAUSE_{failure.cause.name}",
                while_starting=starting,
                message=failure.message_text,
                callback=self._callback,
                backtrace=failure.backtrace,
            )
        )
        if final:
            self._wait_for_close()
        elif not at_once:
            self._wait_for_leave()

    def _explained(self, failure: GuestFailure) -> GuestFailure:
        """Return the failure with what hostcore knows of it; the VM still lives."""
        self._callback = ""
        if self._vm is None:
            return failure
        status = self._vm.status()
        self._callback = CALLBACK_NAMES.get(status.in_callback, "")
        memory = self._vm.guest_memory_bytes()
        limit = self._spec.plugin.manifest.memory_pages[1] * WASM_PAGE_BYTES
        cause, message = cause_of(failure, status, memory >= limit * MEMORY_FULL)
        if cause in (FailureCause.TRAP, FailureCause.MEMORY_LIMIT):
            message += f" (guest memory {memory} of {limit} bytes)"
        return GuestFailure(cause, message, failure.backtrace, failure.code)

    def _note_usage(self, vm: Vm) -> VmStatus:
        status = vm.status()
        self._usage = (status.streams_open, status.heap_used_bytes, vm.guest_memory_bytes())
        return status

    def _wait_for_leave(self) -> None:
        """Sleep until `restart` or `close`. The client's wake-ups meanwhile are for nobody."""
        while not self._closing and not self._leave.take():
            self._poller.poll()
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
        self.errands.reset(self._generation)
        self._bell.close()
        self._header.state = VmState.GONE
        raise_event(self._spec.client_event_fd)
        for fd in (self._spec.channel_fd, self._spec.vm_event_fd, self._spec.client_event_fd):
            os.close(fd)
        if self._spec.shared is not None:
            os.close(self._spec.shared.fd)
        self._socket.send(vm_closed=control.VmClosed(vm_id=self._spec.vm_id))
