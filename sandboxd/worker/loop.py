"""
The worker's main thread: frames from the supervisor, in order.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sandboxd.errors import SandboxdError, WorkerError
from sandboxd.limits import DEFAULT_TABLE_ELEMENTS
from sandboxd.protos import control_pb2 as control
from sandboxd.vm.config_blob import MAX_BLOB_BYTES
from sandboxd.vm.engine import new_engine
from sandboxd.vm.instance import SharedRegion
from sandboxd.vm.plugin import LoadedPlugin, load_plugin_fd, sealed_size
from sandboxd.vm.traps import clean
from sandboxd.vm.window import checked_shared_size
from sandboxd.worker.control import ControlSocket, Frame
from sandboxd.worker.errands import Errands
from sandboxd.worker.exchange import WorkerExchange
from sandboxd.worker.remote_shared import RemoteShared
from sandboxd.worker.vm_spec import VmSpec
from sandboxd.worker.vm_thread import VmThread
from sandboxd.worker.watchdog import Watchdog


@dataclass(frozen=True, slots=True)
class Plugin:
    """A loaded plugin and its limits."""

    loaded: LoadedPlugin
    cpu_per_call_ns: int
    start_cpu_ns: int
    table_elements: int


class Loop:
    """
    Serves the control socket until the supervisor closes it.

    Args:
        socket: the control socket.
        lock: called once, when all plugins are loaded: from then on no code can be loaded any more.
    """

    def __init__(self, socket: ControlSocket, lock: Callable[[], None]) -> None:
        self._socket = socket
        self._lock: Callable[[], None] | None = lock
        self._engine = new_engine()
        self._watchdog = Watchdog(self._engine.increment_epoch)
        self._plugins: dict[int, Plugin] = {}
        self._vms: dict[int, VmThread] = {}
        self._exchange = WorkerExchange(socket, self._errands_of)
        self._remote = RemoteShared(socket)
        self._handlers: dict[str, Callable[[Any, tuple[int, ...]], None]] = {
            "load_plugin": self._load_plugin,
            "open_vm": self._open_vm,
            "close_vm": self._close_vm,
            "restart_vm": self._restart_vm,
            "callout_answer": self._callout_answer,
            "shared_answer": self._shared_answer,
            "read_metrics": self._read_metrics,
            "ping": self._ping,
        }

    def run(self) -> None:
        """
        Serve until the end.

        Raises:
            WorkerError: the supervisor sent what makes no sense.
        """
        self._watchdog.start()
        while (frame := self._socket.receive()) is not None:
            self._handle(frame)

    def _handle(self, frame: Frame) -> None:
        handler = self._handlers.get(frame.kind)
        if handler is None:
            raise WorkerError(f"control frame {frame.kind} is not expected now")
        handler(frame.body, frame.fds)

    def _load_plugin(self, request: control.LoadPlugin, fds: tuple[int, ...]) -> None:
        if self._lock is None:
            os.close(fds[0])
            raise WorkerError("a plugin cannot be loaded once a VM was opened")
        if request.plugin_id in self._plugins:
            raise WorkerError(f"plugin {request.plugin_id} is loaded already")
        started, problem = time.monotonic_ns(), ""
        try:
            loaded = load_plugin_fd(self._engine, fds[0])
            self._plugins[request.plugin_id] = Plugin(
                loaded, request.cpu_per_call_ns, request.start_cpu_ns, request.table_elements or DEFAULT_TABLE_ELEMENTS
            )
        except SandboxdError as error:
            problem = clean(str(error), 4000) or "unknown"
        finally:
            os.close(fds[0])
        self._socket.send(
            plugin_loaded=control.PluginLoaded(
                plugin_id=request.plugin_id, error=problem, load_ns=time.monotonic_ns() - started
            )
        )

    def _open_vm(self, request: control.OpenVm, fds: tuple[int, ...]) -> None:
        plugin = self._plugins.get(request.plugin_id)
        if plugin is None or request.vm_id in self._vms:
            raise WorkerError(f"cannot open VM {request.vm_id} of plugin {request.plugin_id}")
        if self._lock is not None:
            self._lock()
            self._lock = None
        channel_fd, vm_event_fd, client_event_fd, configuration_fd, *shared_fds = fds
        configuration = _configuration(configuration_fd)
        sealed_size(channel_fd, 1 << 30)
        vm = VmThread(
            VmSpec(
                vm_id=request.vm_id,
                plugin_id=request.plugin_id,
                plugin=plugin.loaded,
                channel_fd=channel_fd,
                vm_event_fd=vm_event_fd,
                client_event_fd=client_event_fd,
                configuration=configuration,
                ring_bytes=request.ring_bytes,
                spin=request.spin,
                cpu_per_call_ns=plugin.cpu_per_call_ns,
                start_cpu_ns=plugin.start_cpu_ns,
                table_elements=plugin.table_elements,
                restarts=request.restarts,
                shared=_shared(shared_fds, request.vm_id),
                ask=functools.partial(self._remote.ask, request.vm_id),
            ),
            self._socket,
            self._watchdog,
            self._exchange,
        )
        self._vms[request.vm_id] = vm
        vm.start()

    def _close_vm(self, request: control.CloseVm, _fds: tuple[int, ...]) -> None:
        vm = self._vms.pop(request.vm_id, None)
        if vm is None:
            raise WorkerError(f"cannot close VM {request.vm_id}: there is none")
        vm.close()
        # A call that runs asks its watch only when the epoch moves.
        self._engine.increment_epoch()

    def _errands_of(self, vm_id: int) -> Errands | None:
        vm = self._vms.get(vm_id)
        return None if vm is None else vm.errands

    def _restart_vm(self, request: control.RestartVm, fds: tuple[int, ...]) -> None:
        configuration = _configuration(fds[0]) if fds else None
        vm = self._vms.get(request.vm_id)
        if vm is None:
            raise WorkerError(f"cannot restart VM {request.vm_id}: there is none")
        vm.restart(configuration)

    def _callout_answer(self, request: control.CalloutAnswer, _fds: tuple[int, ...]) -> None:
        self._exchange.answer(request)

    def _shared_answer(self, request: control.SharedAnswer, _fds: tuple[int, ...]) -> None:
        self._remote.answer(request)

    def _read_metrics(self, request: control.ReadMetrics, _fds: tuple[int, ...]) -> None:
        for vm in self._vms.values():
            if request.plugin_id in (0, vm.plugin_id):
                vm.errands.want_metrics()

    def _ping(self, request: control.Ping, _fds: tuple[int, ...]) -> None:
        self._socket.send(pong=control.Pong(number=request.number, vms=[vm.usage() for vm in self._vms.values()]))


def _configuration(fd: int) -> bytes:
    """Read a configuration blob, and close its file."""
    try:
        return os.pread(fd, sealed_size(fd, MAX_BLOB_BYTES), 0)
    finally:
        os.close(fd)


def _shared(fds: list[int], vm_id: int) -> SharedRegion | None:
    """Return the tenant's shared region, if it came with the frame."""
    return SharedRegion(fds[0], checked_shared_size(fds[0]), vm_id) if fds else None
