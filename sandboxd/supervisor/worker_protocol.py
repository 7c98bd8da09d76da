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

from google.protobuf.message import DecodeError

from sandboxd.errors import WorkerError
from sandboxd.limits import KIB
from sandboxd.log import one_line
from sandboxd.protos import control_pb2 as control
from sandboxd.supervisor.callouts import CalloutPiece
from sandboxd.supervisor.folders import read_changes
from sandboxd.supervisor.plugin_metrics import read_report
from sandboxd.supervisor.questions import read_question
from sandboxd.supervisor.worker_events import (
    Event,
    PluginLoaded,
    Pong,
    Ready,
    SharedAsk,
    VmClosed,
    VmFailed,
    VmStarted,
    VmUsage,
    WorkerFailed,
)

MAX_LAYERS = 64
MAX_TEXT_BYTES = 4096
METRICS_FRAMES_PER_VM = 400
"""
Each time the metrics are asked for: what hostcore sends at most, 16 MiB of 100 000 metrics, in frames of 48 KiB or 2048
metrics.
"""
MAX_MESSAGE_BYTES = 1024
MAX_PIECE_BYTES = 48 * KIB
"""Of a callout."""
MAX_NAME_BYTES = 256
MAX_QUESTIONS = 4
MAX_FRAMES = 20


class VmState(enum.StrEnum):
    """A VM as the supervisor knows it."""

    STARTING = "starting"
    RUNNING = "running"
    FAILED = "failed"
    """It failed and waits for leave to start again."""
    DOWN = "down"
    """It failed and stays so: its channel is of no use any more."""
    CLOSING = "closing"


@dataclass(slots=True)
class VmView:
    """What the supervisor believes of one VM of a worker."""

    plugin_id: int
    state: VmState = VmState.STARTING
    starts: int = 1
    """How often it may have started by now: once by OpenVm, and once for each leave."""
    generation: int = 0
    """The last that the worker said has started."""
    failed_generation: int = 0
    """The last that the worker said has failed."""
    crashes: int = 0
    asking: int = 0
    """Questions for shared data that is kept outside, not answered yet."""

    @property
    def waits(self) -> bool:
        """Whether it has failed as often as it was allowed to start: leave is due."""
        return self.failed_generation == self.starts


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
    metrics_frames: int = 0
    """How many frames with metrics may still come."""

    def expect_metrics(self) -> None:
        """The worker is about to be asked for metrics: so many frames it may send."""
        fresh = METRICS_FRAMES_PER_VM * len(self.vms)
        self.metrics_frames = min(self.metrics_frames + fresh, 4 * fresh)

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
    _without_leave(started.vm_id, started.generation, vm)
    if started.generation <= max(vm.generation, vm.failed_generation):
        raise WorkerError(f"started VM {started.vm_id} with generation {started.generation} after {vm.generation}")
    vm.generation = started.generation
    if vm.state is not VmState.CLOSING:
        vm.state = VmState.RUNNING
    return VmStarted(started.vm_id, started.generation, started.start_ns)


def _vm_failed(view: WorkerView, frame: control.FromWorker) -> Event:
    failed = frame.vm_failed
    vm = view._vm(failed.vm_id)
    _without_leave(failed.vm_id, failed.generation, vm)
    if failed.generation < max(vm.generation, vm.failed_generation + 1):
        raise WorkerError(f"failed VM {failed.vm_id} of generation {failed.generation} after {vm.generation}")
    vm.failed_generation = failed.generation
    vm.crashes += 1
    if vm.state is not VmState.CLOSING:
        is_final = failed.cause == control.FAILURE_CAUSE_PROTOCOL
        vm.state = VmState.DOWN if is_final else VmState.FAILED
    return VmFailed(
        vm_id=failed.vm_id,
        generation=failed.generation,
        cause=cause_name(failed.cause),
        while_starting=failed.while_starting,
        message=one_line(failed.message, MAX_MESSAGE_BYTES),
        callback=one_line(failed.callback, MAX_NAME_BYTES),
        backtrace=tuple(one_line(frame, MAX_NAME_BYTES) for frame in failed.backtrace[:MAX_FRAMES]),
    )


def _without_leave(vm_id: int, generation: int, vm: VmView) -> None:
    """
    Refuse a generation that nobody allowed: a worker must not hide crashes by starting VMs again by itself.
    """
    if not 0 < generation <= vm.starts:
        raise WorkerError(f"speaks of generation {generation} of VM {vm_id}; it had leave for {vm.starts}")


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
        vm = view._vm(usage.vm_id)
        if usage.generation > vm.starts:
            _without_leave(usage.vm_id, usage.generation, vm)
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


def _vm_metrics(view: WorkerView, frame: control.FromWorker) -> Event:
    report = read_report(frame.vm_metrics)
    vm = view._vm(report.vm_id)
    view.metrics_frames -= 1
    if view.metrics_frames < 0:
        raise WorkerError("sent more metrics than it was asked for")
    if report.generation > vm.generation:
        raise WorkerError(f"reported metrics of VM {report.vm_id}, generation {report.generation}, before it started")
    return report


def _callout(view: WorkerView, frame: control.FromWorker) -> Event:
    """What it asks for is the broker's to read."""
    asked = frame.callout
    view._vm(asked.vm_id)
    if len(asked.data) > MAX_PIECE_BYTES:
        raise WorkerError(f"sent a piece of a callout of {len(asked.data)} bytes")
    return CalloutPiece(asked.vm_id, asked.call_id, asked.data, asked.more)


def _shared_ask(view: WorkerView, frame: control.FromWorker) -> Event:
    """A VM that waits asks nothing else, but for one that has given up."""
    asked = frame.shared_ask
    vm = view._vm(asked.vm_id)
    if vm.asking == MAX_QUESTIONS:
        raise WorkerError(f"asked for VM {asked.vm_id} while it waits for answers")
    vm.asking += 1
    return SharedAsk(asked.vm_id, vm.plugin_id, asked.number, read_question(asked.data))


def _file_changes(view: WorkerView, frame: control.FromWorker) -> Event:
    vm = view._vm(frame.file_changes.vm_id)
    return read_changes(frame.file_changes, vm.plugin_id)


_HANDLERS: dict[str, Callable[[WorkerView, control.FromWorker], Event]] = {
    "ready": _ready,
    "plugin_loaded": _plugin_loaded,
    "vm_started": _vm_started,
    "vm_failed": _vm_failed,
    "vm_closed": _vm_closed,
    "pong": _pong,
    "vm_metrics": _vm_metrics,
    "callout": _callout,
    "file_changes": _file_changes,
    "shared_ask": _shared_ask,
    "error": _error,
}


def cause_name(cause: int) -> str:
    """Return ``trap`` for ``FAILURE_CAUSE_TRAP`` and so on; ``unknown`` for a number without a name."""
    try:
        name = control.FailureCause.Name(control.FailureCause.ValueType(cause))
    except (ValueError, AttributeError):
        return "unknown"
    return name.removeprefix("FAILURE_CAUSE_").lower()
