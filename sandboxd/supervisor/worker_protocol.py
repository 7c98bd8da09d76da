"""
What a worker may say: its frames, checked as hostile, turned into events.

Pure: bytes in, events out, no sockets and no clocks. The checks know which plugins and VMs the worker was
given and in which state they are; whatever does not fit raises `WorkerError`, and the caller kills the
worker.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from google.protobuf.message import DecodeError

from sandboxd.errors import WorkerError
from sandboxd.log import one_line
from sandboxd.protos import control_pb2 as control

MAX_LAYERS = 64
MAX_TEXT_BYTES = 4096
MAX_NAME_BYTES = 256


class VmState(enum.StrEnum):
    """A VM as the supervisor knows it."""

    STARTING = "starting"
    RUNNING = "running"
    FAILED = "failed"
    """It failed and the worker starts it again later."""
    DOWN = "down"
    """It failed and stays so until the operator asks."""
    CLOSING = "closing"


@dataclass(slots=True)
class VmView:
    """What the supervisor believes of one VM of a worker."""

    plugin_id: int
    state: VmState = VmState.STARTING
    generation: int = 0
    crashes: int = 0


@dataclass(frozen=True, slots=True)
class Ready:
    """The worker applied its set-up."""

    layers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PluginLoaded:
    """A plugin's artefact was loaded, or not."""

    plugin_id: int
    error: str
    """Empty: loaded."""
    load_ns: int


@dataclass(frozen=True, slots=True)
class VmStarted:
    """A VM runs."""

    vm_id: int
    generation: int
    start_ns: int


@dataclass(frozen=True, slots=True)
class VmFailed:
    """A VM trapped, went past a limit, or did not start."""

    vm_id: int
    generation: int
    cause: str
    """Lower-case name of the ``FailureCause``."""
    while_starting: bool
    message: str
    callback: str
    retry_in_ns: int
    """0: not before the operator asks."""


@dataclass(frozen=True, slots=True)
class VmClosed:
    """A VM is gone as asked."""

    vm_id: int


@dataclass(frozen=True, slots=True)
class VmUsage:
    """What one VM uses."""

    vm_id: int
    generation: int
    streams_open: int
    heap_used_bytes: int
    guest_memory_bytes: int
    cpu_ns: int
    crashes: int


@dataclass(frozen=True, slots=True)
class Pong:
    """The worker's main thread is alive."""

    number: int
    vms: tuple[VmUsage, ...]


@dataclass(frozen=True, slots=True)
class WorkerFailed:
    """The worker cannot go on and says why."""

    message: str


Event: TypeAlias = Ready | PluginLoaded | VmStarted | VmFailed | VmClosed | Pong | WorkerFailed


@dataclass(slots=True)
class WorkerView:
    """Everything that this worker may speak of."""

    ready: bool = False
    gave_up: bool = False
    plugins: dict[int, bool] = field(default_factory=dict)
    """Plugin id to whether the worker has answered for it."""
    vms: dict[int, VmView] = field(default_factory=dict)
    last_ping: int = 0
    last_pong: int = 0

    def feed(self, data: bytes) -> Event:
        """
        Check one frame, take note of it, and return what it says.

        Raises:
            WorkerError: no honest worker says this now.
        """
        frame = control.FromWorker()
        try:
            frame.ParseFromString(data)
        except DecodeError as error:
            raise WorkerError("sent a frame that is not protobuf") from error
        kind = frame.WhichOneof("frame")
        if kind is None:
            raise WorkerError("sent an empty frame")
        if self.gave_up and kind == "error":
            raise WorkerError("gave up twice")
        if self.ready == (kind == "ready"):
            raise WorkerError(f"sent {kind} " + ("twice" if self.ready else "before it was ready"))
        return _HANDLERS[kind](self, frame)

    def _vm(self, vm_id: int) -> VmView:
        view = self.vms.get(vm_id)
        if view is None:
            raise WorkerError(f"spoke of VM {vm_id}, which it was not given")
        return view


def _ready(view: WorkerView, frame: control.FromWorker) -> Event:
    if len(frame.ready.layers) > MAX_LAYERS:
        raise WorkerError("named too many isolation layers")
    view.ready = True
    return Ready(tuple(one_line(layer, MAX_NAME_BYTES) for layer in frame.ready.layers))


def _plugin_loaded(view: WorkerView, frame: control.FromWorker) -> Event:
    loaded = frame.plugin_loaded
    if view.plugins.get(loaded.plugin_id, True):
        raise WorkerError(f"answered for plugin {loaded.plugin_id}, which it was not asked to load")
    view.plugins[loaded.plugin_id] = True
    return PluginLoaded(loaded.plugin_id, one_line(loaded.error, MAX_TEXT_BYTES), loaded.load_ns)


def _vm_started(view: WorkerView, frame: control.FromWorker) -> Event:
    started = frame.vm_started
    vm = view._vm(started.vm_id)
    if started.generation <= vm.generation:
        raise WorkerError(f"started VM {started.vm_id} with generation {started.generation} after {vm.generation}")
    vm.generation = started.generation
    if vm.state is not VmState.CLOSING:
        vm.state = VmState.RUNNING
    return VmStarted(started.vm_id, started.generation, started.start_ns)


def _vm_failed(view: WorkerView, frame: control.FromWorker) -> Event:
    failed = frame.vm_failed
    vm = view._vm(failed.vm_id)
    if failed.generation < vm.generation:
        raise WorkerError(f"failed VM {failed.vm_id} of generation {failed.generation} after {vm.generation}")
    vm.crashes += 1
    if vm.state is not VmState.CLOSING:
        vm.state = VmState.FAILED if failed.retry_in_ns else VmState.DOWN
    return VmFailed(
        vm_id=failed.vm_id,
        generation=failed.generation,
        cause=cause_name(failed.cause),
        while_starting=failed.while_starting,
        message=one_line(failed.message, MAX_TEXT_BYTES),
        callback=one_line(failed.callback, MAX_NAME_BYTES),
        retry_in_ns=failed.retry_in_ns,
    )


def _vm_closed(view: WorkerView, frame: control.FromWorker) -> Event:
    vm_id = frame.vm_closed.vm_id
    if view._vm(vm_id).state is not VmState.CLOSING:
        raise WorkerError(f"closed VM {vm_id} unasked")
    del view.vms[vm_id]
    return VmClosed(vm_id)


def _pong(view: WorkerView, frame: control.FromWorker) -> Event:
    pong = frame.pong
    if not view.last_pong < pong.number <= view.last_ping:
        raise WorkerError(f"answered ping {pong.number}; {view.last_ping} was the last")
    view.last_pong = pong.number
    if len(pong.vms) > len(view.vms):
        raise WorkerError("reported more VMs than it was given")
    for usage in pong.vms:
        view._vm(usage.vm_id)
    return Pong(
        pong.number,
        tuple(
            VmUsage(
                vm_id=usage.vm_id,
                generation=usage.generation,
                streams_open=usage.streams_open,
                heap_used_bytes=usage.heap_used_bytes,
                guest_memory_bytes=usage.guest_memory_bytes,
                cpu_ns=usage.cpu_ns,
                crashes=usage.crashes,
            )
            for usage in pong.vms
        ),
    )


def _error(view: WorkerView, frame: control.FromWorker) -> Event:
    view.gave_up = True
    return WorkerFailed(one_line(frame.error.message, MAX_TEXT_BYTES))


_HANDLERS: dict[str, Callable[[WorkerView, control.FromWorker], Event]] = {
    "ready": _ready,
    "plugin_loaded": _plugin_loaded,
    "vm_started": _vm_started,
    "vm_failed": _vm_failed,
    "vm_closed": _vm_closed,
    "pong": _pong,
    "error": _error,
}


def cause_name(cause: int) -> str:
    """Return ``trap`` for ``FAILURE_CAUSE_TRAP`` and so on; ``unknown`` for a number without a name."""
    try:
        name = control.FailureCause.Name(control.FailureCause.ValueType(cause))
    except (ValueError, AttributeError):
        return "unknown"
    return name.removeprefix("FAILURE_CAUSE_").lower()
