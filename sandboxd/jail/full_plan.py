"""
The jail as data: what one worker asks for and what the machine can give, turned into an ordered tuple of
steps.

Pure. The supervisor makes the plan and sends it encoded; the worker applies it (`sandboxd.jail.enter`) and
decides nothing. `ORDER` states for each step why it stands where it does.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from sandboxd.errors import JailError
from sandboxd.jail.facts import MachineFacts
from sandboxd.jail.landlock import has_scopes
from sandboxd.jail.layers import ALWAYS_REQUIRED, Layer


class Phase(enum.StrEnum):
    """When a step is applied, and by whom."""

    OUTSIDE = "outside"
    """By the process that was started, with one thread, after its imports and before it forks."""
    WAITER = "waiter"
    """By that same process after the fork; it only waits from then on."""
    INSIDE = "inside"
    """By the fork's child, process 1 of its PID namespace: the worker."""
    LOADED = "loaded"
    """By the worker once its modules are loaded, for all its threads."""


Argument = int | str | tuple[int, ...] | tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Step:
    """One step; ``name`` is a function of `sandboxd.jail.enter`, ``arguments`` are its keyword arguments."""

    phase: Phase
    name: str
    layer: Layer
    arguments: tuple[tuple[str, Argument], ...] = ()


@dataclass(frozen=True, slots=True)
class JailPlan:
    """What a worker applies."""

    steps: tuple[Step, ...]
    missing: tuple[tuple[Layer, str], ...] = ()
    """Layers that this machine cannot give and nobody required, each with the reason."""

    def phase(self, phase: Phase) -> tuple[Step, ...]:
        """Return the steps of one phase in order."""
        return tuple(step for step in self.steps if step.phase is phase)

    def layers(self) -> tuple[Layer, ...]:
        """
        Return the layers that are in force once the plan is applied, each once, in the order of `Layer`.
        """
        applied = {step.layer for step in self.steps}
        return tuple(layer for layer in Layer if layer in applied)


@dataclass(frozen=True, slots=True)
class Programs:
    """The assembled filters (`sandboxd.jail.filters.build`)."""

    worker: bytes
    no_new_exec: bytes
    waiter: bytes


@dataclass(frozen=True, slots=True)
class JailRequest:
    """What one worker's jail shall be."""

    programs: Programs
    control_fd: int
    """The control socket: the only one that may be sent to and received from."""
    uid: int = 0
    """Of the tenant's own when the supervisor is privileged; 0: a user namespace with one id."""
    gid: int = 0
    max_open_files: int = 4096
    max_threads: int = 64
    """RLIMIT_NPROC, the waiter counted in."""
    address_space_bytes: int = 0
    """0: no limit; the engine reserves far more than it touches."""
    extra_fds: tuple[int, ...] = ()
    """Further descriptors that stay open; a compiler's job and result."""
    file_bytes: int = 0
    """Largest file, memfds included, that may be written; 0: none at all."""
    cpu_seconds: int = 0
    """CPU time after which the kernel kills; 0: no limit (a worker has limits per call)."""
    require: frozenset[Layer] = frozenset()
    tolerate: frozenset[Layer] = frozenset()
    """Layers of `ALWAYS_REQUIRED` that the operator explicitly does without on this machine."""
    disable_tsc: bool = False
    own_core: bool = False


NOT_ASKED_FOR: Final = "not asked for"

INSIDE_ID: Final = 65534
"""The one uid and gid of a user namespace: nobody. A worker does not even learn whose uid it runs under."""

ORDER: Final = {
    "close_fds": "first: whatever is still open would be copied into both processes",
    "clear_environment": "before the fork, so that neither process keeps it",
    "oom_first": "while /proc is there: if memory runs out, a worker dies and not what serves the others",
    "user_namespace": "before all other namespaces: it gives the right to make them, and they belong to it",
    "single_id_map": "right after the user namespace, while /proc is there and the process is dumpable",
    "namespace": "before the fork: PID and time namespaces hold for the next child only",
    "fork": "between OUTSIDE and INSIDE: the child is process 1, the parent waits",
    "empty_root": "after the imports, as nothing opens later; before Landlock, which forbids mounting",
    "host_name": "while CAP_SYS_ADMIN is held in the namespace",
    "rlimits": "before the change of uid: they hold from the first moment of the new uid",
    "new_keyring": "before seccomp; takes the parent's session keyring out of reach",
    "bounding_set": "needs CAP_SETPCAP, so before the change of uid takes it away",
    "change_uid": "after all that needs root; clears capabilities, the dumpable flag and the death signal",
    "drop_capabilities": "after the last step that needs one",
    "no_new_privs": "before Landlock and seccomp: without it both would need CAP_SYS_ADMIN",
    "non_dumpable": "after the change of uid; before it the id maps could not be written",
    "parent_death_signal": "after the change of uid, which clears it; checks that the parent still lives",
    "speculation": "before seccomp, which forbids prctl",
    "tsc": "before seccomp, which forbids prctl; after it no clock is read by RDTSC",
    "own_core": "before seccomp, which forbids prctl",
    "landlock": "after no_new_privs and after the last mount",
    "seccomp": "last: a filter needs to allow nothing that only the steps above use",
    "seal_executable": "after loading, before mdwe: takes write from what is still writable and executable",
    "mdwe": "after loading, before the filter that forbids prctl",
    "no_new_exec": "last of all",
}
"""Why each step stands where it does. A test holds every plan against it."""


def plan(request: JailRequest, facts: MachineFacts) -> JailPlan:
    """
    Return the plan for one worker on this machine.

    Raises:
        JailError: a required layer cannot be had; names the layer and what the operator can do.
    """
    missing = dict(unavailable(request, facts))
    needed = (ALWAYS_REQUIRED - request.tolerate) | request.require
    for layer in Layer:
        if layer in missing and layer in needed and layer is not Layer.CGROUP:
            raise JailError(layer.value, 0, missing[layer])
    steps = tuple(step for step in _all_steps(request, facts) if step.layer not in missing)
    return JailPlan(steps, tuple((layer, reason) for layer, reason in missing.items()))


def unavailable(request: JailRequest, facts: MachineFacts) -> Iterable[tuple[Layer, str]]:
    """
    Yield the layers that this machine cannot give, each with the reason. The cgroup is the supervisor's
    business.
    """
    if not request.uid and facts.namespaces.get("user"):
        yield Layer.UID, facts.namespaces["user"]
    for layer, kind in _NAMESPACE_KINDS:
        if facts.namespaces.get(kind):
            yield layer, facts.namespaces[kind]
    if not facts.seccomp:
        yield Layer.SECCOMP, "the kernel has no seccomp filters that kill a process (CONFIG_SECCOMP_FILTER)"
        yield Layer.NO_NEW_EXEC, "the kernel has no seccomp filters"
    if not facts.landlock_abi:
        yield Layer.LANDLOCK, "needs Linux 5.13 and landlock among the kernel's lsm= modules"
    if not has_scopes(facts.landlock_abi):
        yield Layer.LANDLOCK_SCOPES, "needs Linux 6.12"
    if not facts.mdwe:
        yield Layer.MDWE, "needs Linux 6.3"
    yield from _unavailable_prctls(request, facts)


def _unavailable_prctls(request: JailRequest, facts: MachineFacts) -> Iterable[tuple[Layer, str]]:
    if not facts.keyrings:
        yield Layer.KEYRING, "the kernel has no keyrings, so none can leak"
    if not any(state == "controllable" for state in facts.speculation.values()):
        states = ", ".join(f"{name}: {state}" for name, state in facts.speculation.items())
        yield Layer.SPECULATION, f"nothing that a process could switch off ({states})"
    if not request.disable_tsc:
        yield Layer.TSC, NOT_ASKED_FOR
    elif facts.architecture != "x86_64":
        yield Layer.TSC, "only x86 has the switch"
    if not request.own_core:
        yield Layer.CORE_SCHEDULING, NOT_ASKED_FOR
    elif not facts.core_scheduling:
        yield Layer.CORE_SCHEDULING, "needs CONFIG_SCHED_CORE and a processor with sibling threads"


_NAMESPACE_KINDS: Final = (
    (Layer.NETWORK_NAMESPACE, "network"),
    (Layer.IPC_NAMESPACE, "ipc"),
    (Layer.UTS_NAMESPACE, "uts"),
    (Layer.CGROUP_NAMESPACE, "cgroup"),
    (Layer.MOUNT_NAMESPACE, "mount"),
    (Layer.TIME_NAMESPACE, "time"),
    (Layer.PID_NAMESPACE, "pid"),
)


def _all_steps(request: JailRequest, facts: MachineFacts) -> Iterable[Step]:
    yield from _outside(request)
    yield from _waiter(request, facts)
    yield from _inside(request, facts)
    yield Step(Phase.LOADED, "seal_executable", Layer.NO_NEW_EXEC)
    yield Step(Phase.LOADED, "mdwe", Layer.MDWE)
    second = (("program", request.programs.no_new_exec.hex()),)
    yield Step(Phase.LOADED, "no_new_exec", Layer.NO_NEW_EXEC, second)


def _outside(request: JailRequest) -> Iterable[Step]:
    yield Step(Phase.OUTSIDE, "close_fds", Layer.FDS, (("keep", (0, 1, 2, request.control_fd, *request.extra_fds)),))
    yield Step(Phase.OUTSIDE, "clear_environment", Layer.ENVIRONMENT)
    yield Step(Phase.OUTSIDE, "oom_first", Layer.RLIMITS)
    if not request.uid:
        yield Step(Phase.OUTSIDE, "user_namespace", Layer.UID)
        yield Step(Phase.OUTSIDE, "single_id_map", Layer.UID, (("inside", INSIDE_ID),))
    for layer, kind in _NAMESPACE_KINDS:
        yield Step(Phase.OUTSIDE, "namespace", layer, (("kind", kind),))


def _waiter(request: JailRequest, facts: MachineFacts) -> Iterable[Step]:
    yield Step(Phase.WAITER, "rlimits", Layer.RLIMITS, (("limits", (("CORE", 0),)),))
    yield from _drop_privileges(request, facts, Phase.WAITER)
    arguments = (("program", request.programs.waiter.hex()),)
    yield Step(Phase.WAITER, "seccomp", Layer.SECCOMP, arguments)


def _inside(request: JailRequest, facts: MachineFacts) -> Iterable[Step]:
    inside = Phase.INSIDE
    yield Step(inside, "empty_root", Layer.MOUNT_NAMESPACE, (("mount_point", facts.mount_point),))
    yield Step(inside, "host_name", Layer.UTS_NAMESPACE, (("host_name", "jail"),))
    yield Step(inside, "rlimits", Layer.RLIMITS, (("limits", _limits(request)),))
    yield Step(inside, "new_keyring", Layer.KEYRING)
    yield from _drop_privileges(request, facts, inside)
    controls = [name for name, state in facts.speculation.items() if state == "controllable"]
    for name in controls:
        yield Step(inside, "speculation", Layer.SPECULATION, (("control", name),))
    yield Step(inside, "tsc", Layer.TSC)
    yield Step(inside, "own_core", Layer.CORE_SCHEDULING)
    abi = ("abi", facts.landlock_abi)
    yield Step(inside, "landlock", Layer.LANDLOCK, (abi, ("scopes", 0)))
    yield Step(inside, "landlock", Layer.LANDLOCK_SCOPES, (abi, ("scopes", 1)))
    yield Step(inside, "seccomp", Layer.SECCOMP, (("program", request.programs.worker.hex()),))


def _drop_privileges(request: JailRequest, facts: MachineFacts, phase: Phase) -> Iterable[Step]:
    if request.uid or not facts.namespaces.get("user"):
        # Without either there is no right to empty it, and no capability that no_new_privs would let back in.
        yield Step(phase, "bounding_set", Layer.CAPABILITIES)
    if request.uid:
        yield Step(phase, "change_uid", Layer.UID, (("uid", request.uid), ("gid", request.gid)))
    yield Step(phase, "drop_capabilities", Layer.CAPABILITIES)
    yield Step(phase, "no_new_privs", Layer.NO_NEW_PRIVS)
    yield Step(phase, "non_dumpable", Layer.NON_DUMPABLE)
    yield Step(phase, "parent_death_signal", Layer.PARENT_DEATH_SIGNAL)


def _limits(request: JailRequest) -> tuple[tuple[str, int], ...]:
    """Resource limits by their kernel names; soft and hard are the same."""
    limits = {
        "CORE": 0,  # a core would write the worker's memory to a file
        "FSIZE": request.file_bytes,
        "MEMLOCK": 0,
        "MSGQUEUE": 0,
        "SIGPENDING": 64,
        "NOFILE": request.max_open_files,
        "NPROC": request.max_threads,
    }
    if request.address_space_bytes:
        limits["AS"] = request.address_space_bytes
    if request.cpu_seconds:
        limits["CPU"] = request.cpu_seconds
    return tuple(limits.items())


def encode(jail_plan: JailPlan) -> bytes:
    """Return the plan as JSON, for the worker's first frame."""
    steps = [[s.phase, s.name, s.layer, dict(s.arguments)] for s in jail_plan.steps]
    return json.dumps({"steps": steps, "missing": jail_plan.missing}, separators=(",", ":")).encode()


def decode(data: bytes) -> JailPlan:
    """Read an encoded plan; it comes from the supervisor, so anything odd is a bug. Raises ValueError."""
    document = json.loads(data)
    steps = tuple(
        Step(Phase(phase), name, Layer(layer), tuple((key, _freeze(value)) for key, value in arguments.items()))
        for phase, name, layer, arguments in document["steps"]
    )
    return JailPlan(steps, tuple((Layer(layer), reason) for layer, reason in document["missing"]))


def _freeze(value: Any) -> Any:
    return tuple(_freeze(item) for item in value) if isinstance(value, list) else value
