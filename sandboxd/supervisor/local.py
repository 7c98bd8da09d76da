"""
One plugin in a real worker, driven from synchronous code: for ``sandboxd check``, ``sandboxd run``, tests and
benches.

The same compiler, worker, channel and checks as the daemon; only the event loop is missing.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from pathlib import Path
from typing import Self, TypeVar

from sandboxd import limits
from sandboxd.channel import layout
from sandboxd.channel.client import VmClient
from sandboxd.channel.completions import Effect, EventLimits
from sandboxd.channel.errors import ChannelBroken
from sandboxd.channel.memfd import ChannelFds, create_channel
from sandboxd.channel.sync_vm import SyncVm
from sandboxd.errors import WorkerError
from sandboxd.jail.jailer import Jailer
from sandboxd.jail.waiter import worker_pid
from sandboxd.log import one_line
from sandboxd.policy.model import PluginPolicy, SharedPolicy
from sandboxd.protos import control_pb2 as control
from sandboxd.supervisor import exits, frames, launch
from sandboxd.supervisor.deployment import LOAD_TIMEOUT_S, START_SLACK_S
from sandboxd.supervisor.prepare import PreparedPlugin, prepare_plugin
from sandboxd.supervisor.process import READY_TIMEOUT_S, STOP_GRACE_S
from sandboxd.supervisor.shared_region import SharedRegion
from sandboxd.supervisor.vms import failure_text
from sandboxd.supervisor.worker_events import (
    Event,
    PluginLoaded,
    Pong,
    Ready,
    VmFailed,
    VmStarted,
    VmUsage,
    WorkerFailed,
)
from sandboxd.supervisor.worker_protocol import VmState, VmView, WorkerView

_PLUGIN_ID = 1
_EventT = TypeVar("_EventT", bound=Event)


class VmStartError(WorkerError):
    """The plugin's VM did not start."""

    def __init__(self, failure: VmFailed, policy: PluginPolicy, log_lines: tuple[tuple[int, str], ...] = ()) -> None:
        self.failure = failure
        self.log_lines = log_lines
        """What the guest logged while starting: level and text."""
        super().__init__(failure_text(failure, policy))


RESTARTS = 1 << 20
"""A VM that has served starts again at once: here nobody keeps a ledger."""


class LocalSandbox:
    """
    A worker with one plugin loaded; a context manager.

    Args:
        plugin: its policy.
        cache_directory: of compiled modules; None: compile anew.
        prepared: the plugin if it is compiled already.
        tenant: name for the worker.
        ring_bytes: size of each ring of its channels.
        spin: empty looks at a ring before a VM sleeps.
        jailer: of its processes; None: this machine's, with nothing tolerated.
        shared: what the tenant allows in its shared region; None: the defaults.

    The worker ends with the thread that made the sandbox.

    Raises:
        ModuleRejected: the module cannot be used.
        JailError: the machine cannot give a layer that every worker needs.
        WorkerError: the worker did not start or could not load the plugin.
    """

    def __init__(
        self,
        plugin: PluginPolicy,
        *,
        cache_directory: Path | None = None,
        prepared: PreparedPlugin | None = None,
        tenant: str = "local",
        ring_bytes: int = limits.DEFAULT_RING_BYTES,
        spin: int = 0,
        jailer: Jailer | None = None,
        shared: SharedPolicy | None = None,
    ) -> None:
        self.prepared = prepared or prepare_plugin(plugin, cache_directory, jailer)
        self.plugin = plugin
        self.view = WorkerView()
        self.failures: list[VmFailed] = []
        self.layers: tuple[str, ...] = ()
        self.load_ns = 0
        self.start_ns = 0
        self._ring_bytes = ring_bytes
        self._spin = spin
        self._next_vm_id = 1
        self._vms: list[SyncVm] = []
        self._shared_policy = shared or SharedPolicy()
        self._shared = SharedRegion(self._shared_policy.memory_bytes)
        with frames.Pair() as pair:
            self._process: subprocess.Popen[bytes] = launch.start(pair.theirs)
            self._socket: socket.socket = pair.ours
            control_fd = pair.theirs.fileno()
        try:
            self._begin(launch.WorkerSpec(tenant, jailer=jailer), control_fd)
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """Of the worker; raises OSError once it is gone."""
        return worker_pid(self._process.pid)

    def _begin(self, spec: launch.WorkerSpec, control_fd: int) -> None:
        self._send(spec.setup(spec.plan(control_fd, self._process.pid)))
        self.layers = self._wait_for(Ready, READY_TIMEOUT_S).layers
        self.view.plugins[_PLUGIN_ID] = False
        self._send(control.ToWorker(load_plugin=self.prepared.load_request(_PLUGIN_ID)), (self.prepared.bundle.fd,))
        loaded = self._wait_for(PluginLoaded, LOAD_TIMEOUT_S)
        if loaded.error:
            raise WorkerError(f"the worker could not load plugin {self.plugin.name}: {loaded.error}")
        self.load_ns = loaded.load_ns

    def open_vm(self) -> SyncVm:
        """
        Start one more VM on a channel of its own; it lives as long as the sandbox.

        Raises:
            VmStartError: it trapped, went past a limit, or refused to start.
            WorkerError: the worker died.
        """
        channel = create_channel(self._ring_bytes)
        vm = SyncVm(VmClient(channel, self._event_limits()))
        self._vms.append(vm)
        try:
            self._start_vm(channel)
            vm.wait_ready(START_SLACK_S)
        except VmStartError as error:
            raise VmStartError(error.failure, self.plugin, _loose_log(vm)) from None
        return vm

    def open_channel(self) -> ChannelFds:
        """Start one more VM and return its channel, which the caller closes; raises as `open_vm`."""
        channel = create_channel(self._ring_bytes)
        try:
            self._start_vm(channel)
        except BaseException:
            channel.close()
            raise
        return channel

    def _start_vm(self, channel: ChannelFds) -> None:
        vm_id = self._next_vm_id
        self._next_vm_id += 1
        blob = self.prepared.configuration(self._ring_bytes, shared=self._shared_policy)
        request = self.prepared.open_request(vm_id, _PLUGIN_ID, self._ring_bytes, self._spin, restarts=RESTARTS)
        self.view.vms[vm_id] = VmView(_PLUGIN_ID, starts=1 + RESTARTS)
        self._send(
            control.ToWorker(open_vm=request),
            (channel.memfd, channel.vm_event_fd, channel.client_event_fd, blob.fd, self._shared.fd),
        )
        self._wait_started(vm_id)

    def usage(self, timeout_s: float = 5.0) -> tuple[VmUsage, ...]:
        """Ask the worker what its VMs use."""
        self.view.last_ping += 1
        number = self.view.last_ping
        self._send(control.ToWorker(ping=control.Ping(number=number)))
        while (pong := self._wait_for(Pong, timeout_s)).number < number:
            pass
        return pong.vms

    def poll(self) -> None:
        """Read what the worker has said meanwhile, without waiting; failures of VMs end in `failures`."""
        with contextlib.suppress(TimeoutError):
            while True:
                self._note(self._receive(0.0))

    def last_failure(self, timeout_s: float = 1.0) -> str:
        """
        Return what the worker said of the last failure as ``: failed in ...``; empty if it says nothing.
        """
        deadline_s = time.monotonic() + timeout_s
        with contextlib.suppress(TimeoutError, WorkerError):
            while not self.failures:
                self._note(self._receive(deadline_s - time.monotonic()))
        return f": {failure_text(self.failures.pop(), self.plugin)}" if self.failures else ""

    def close(self) -> None:
        """End the worker; bounded in time."""
        for vm in self._vms:
            vm.close()
        self._vms.clear()
        self._socket.close()
        try:
            self._process.wait(STOP_GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stderr is not None:
            self._process.stderr.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- frames ---

    def _event_limits(self) -> EventLimits:
        asked = self.plugin.limits
        return EventLimits.of(asked.body_buffer_bytes, asked.log_lines_per_event, asked.log_bytes_per_event)

    def _wait_started(self, vm_id: int) -> None:
        timeout_s = self.plugin.limits.start_time_ns / 1e9 + START_SLACK_S
        deadline_s = time.monotonic() + timeout_s
        while True:
            try:
                event = self._receive(deadline_s - time.monotonic())
            except TimeoutError:
                raise WorkerError(f"the VM did not start in {timeout_s:.0f} seconds") from None
            self._note(event)
            if isinstance(event, VmStarted) and event.vm_id == vm_id:
                self.start_ns = event.start_ns
                return
            if isinstance(event, VmFailed) and event.vm_id == vm_id:
                self.view.vms[vm_id].state = VmState.DOWN
                raise VmStartError(event, self.plugin)

    def _wait_for(self, kind: type[_EventT], timeout_s: float) -> _EventT:
        deadline_s = time.monotonic() + timeout_s
        while True:
            try:
                event = self._receive(deadline_s - time.monotonic())
            except TimeoutError:
                raise WorkerError(f"the worker said no {kind.__name__} in {timeout_s:.0f} seconds") from None
            if isinstance(event, kind):
                return event
            self._note(event)

    def _note(self, event: Event) -> None:
        if isinstance(event, VmFailed):
            self.failures.append(event)
        elif isinstance(event, WorkerFailed):
            raise WorkerError(f"the worker gave up: {event.message}")

    def _send(self, frame: control.ToWorker, fds: tuple[int, ...] = ()) -> None:
        try:
            frames.send(self._socket, frames.encode(frame), fds)
        except OSError:
            raise self._death() from None

    def _receive(self, timeout_s: float) -> Event:
        self._socket.settimeout(max(0.0, timeout_s))
        try:
            data = frames.receive_plain(self._socket)
        except BlockingIOError:
            raise TimeoutError from None
        except ConnectionError:
            data = b""
        if not data:
            raise self._death()
        return self.view.feed(data)

    def _death(self) -> WorkerError:
        try:
            code = self._process.wait(STOP_GRACE_S)
        except subprocess.TimeoutExpired:
            return WorkerError("the worker closed its control socket")
        return WorkerError(f"the worker {exits.sentence(code)}{self._last_words()}")

    def _last_words(self) -> str:
        assert self._process.stderr is not None
        fd = self._process.stderr.fileno()
        os.set_blocking(fd, False)
        try:
            words = exits.last_words(os.read(fd, 65536))
        except BlockingIOError:
            words = ""
        return f"; its last words: {words}" if words else ""


def _loose_log(vm: SyncVm) -> tuple[tuple[int, str], ...]:
    with contextlib.suppress(ChannelBroken):
        for completion in vm.client.drain():
            if isinstance(completion, Effect):
                vm.loose.append(completion)
    lines = [effect for effect in vm.loose if effect.kind == layout.LOG]
    return tuple((line.arg, one_line(line.payload.decode("utf-8", "replace"), 1000)) for line in lines)
