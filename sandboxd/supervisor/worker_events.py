"""What a worker has said: each kind of frame that passed the checks of `worker_protocol`, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from sandboxd.supervisor.callouts import CalloutPiece
from sandboxd.supervisor.folders import FileChanges
from sandboxd.supervisor.plugin_metrics import Report
from sandboxd.supervisor.questions import Question


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
    backtrace: tuple[str, ...] = ()
    """Of the guest, innermost function first."""


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


@dataclass(frozen=True, slots=True)
class SharedAsk:
    """A VM asks for shared data that is kept outside."""

    vm_id: int
    plugin_id: int
    number: int
    question: Question


Event: TypeAlias = (
    Ready
    | PluginLoaded
    | VmStarted
    | VmFailed
    | VmClosed
    | Pong
    | Report
    | CalloutPiece
    | FileChanges
    | SharedAsk
    | WorkerFailed
)
