"""
cgroup v2: one leaf per worker and compiler under the subtree that was delegated to the daemon.

Pure path and text logic, and small reads and writes; every function takes its root, so that a plain
directory can stand in for the kernel's. The daemon itself sits in a leaf of its own, because a cgroup with
children that have controllers may hold no process.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sandboxd.errors import JailError
from sandboxd.limits import GIB

MOUNT: Final = Path("/sys/fs/cgroup")
CONTROLLERS: Final = ("memory", "cpu", "pids")
DAEMON_LEAF: Final = "daemon"
TENANT_PREFIX: Final = "tenant-"
"""Keeps a tenant that is called ``daemon`` or ``cgroup.procs`` away from ours and the kernel's names."""

PERIOD_US: Final = 100_000
MIN_QUOTA_US: Final = 1000
"""The kernel refuses less."""
HIGH_FRACTION: Final = 32
"""
memory.high lies one part in so many below memory.max: reclaim and slow down first, kill later.

The kernel's delay grows with the square of how far above memory.high a group is. Without swap there is
nothing to reclaim, so a wide gap would never end in a kill: the worker would crawl for minutes and answer
nobody. In this one it is through in less than a second.
"""

COMPILER_PREFIX: Final = "compiler-"
COMPILER_MEMORY_BYTES: Final = 2 * GIB
"""Ten times what the largest modules of the common SDKs need, and a bound on what a hostile one gets."""
COMPILER_PIDS: Final = 8
COMPILER_WEIGHT: Final = 25
"""A quarter of a worker's: who is served goes before who is being prepared."""

_HINT: Final = (
    "start under systemd with Delegate=yes, or give the daemon's user a writable cgroup v2 subtree "
    "with the memory, cpu and pids controllers"
)
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_REMOVE_TRIES: Final = 50
_REMOVE_PAUSE_S: Final = 0.01


@dataclass(frozen=True, slots=True)
class CgroupFacts:
    """What the machine offers the daemon."""

    path: str = ""
    """The daemon's own cgroup under the v2 mount; empty if there is none to use."""
    controllers: tuple[str, ...] = ()
    """Of `CONTROLLERS`, those that children may be given."""
    reason: str = ""
    """Why tenants cannot have cgroups here; empty: they can."""


@dataclass(frozen=True, slots=True)
class CgroupLimits:
    """What one tenant's processes may use together."""

    memory_bytes: int
    cpus: float | None = None
    """None: no quota; the weight still shares fairly."""
    pids: int = 16
    """Threads of all processes, the waiter included."""
    cpu_weight: int = 100


@dataclass(frozen=True, slots=True)
class CgroupUsage:
    """What a tenant uses; a figure that the kernel does not give is 0."""

    memory_bytes: int
    memory_peak_bytes: int
    pids: int
    cpu_us: int
    throttled_us: int
    oom_kills: int
    memory_pressure_us: int
    """Time in which some process waited for memory; from the pressure file's ``some`` line."""
    cpu_pressure_us: int


def read_cgroup_facts(mount: Path = MOUNT, membership: Path = Path("/proc/self/cgroup")) -> CgroupFacts:
    """Look at the daemon's own place in the hierarchy."""
    if not (mount / "cgroup.controllers").is_file():
        return CgroupFacts(reason=f"{mount} is not a cgroup v2 hierarchy; {_HINT}")
    try:
        lines = membership.read_text().splitlines()
    except OSError as error:
        return CgroupFacts(reason=str(error))
    own = next((line[3:] for line in lines if line.startswith("0::")), "")
    if not own.startswith("/") or ".." in own.split("/"):
        return CgroupFacts(reason=f"the daemon is in no cgroup that it can see; {_HINT}")
    path = mount / own.lstrip("/")
    if path.name == DAEMON_LEAF:
        path = path.parent  # after a re-exec, we are in the leaf already
    controllers = tuple(name for name in CONTROLLERS if name in _words(path / "cgroup.controllers"))
    lacking = [name for name in CONTROLLERS if name not in controllers]
    if lacking:
        return CgroupFacts(str(path), controllers, f"controllers are missing: {', '.join(lacking)}; {_HINT}")
    if not os.access(path / "cgroup.subtree_control", os.W_OK) or not os.access(path, os.W_OK):
        return CgroupFacts(str(path), controllers, f"{path} is not delegated to this user; {_HINT}")
    return CgroupFacts(str(path), controllers)


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


def settings(limits: CgroupLimits) -> dict[str, str]:
    """
    Return the control files of a tenant's leaf and their texts, in the order in which to write them. Pure.
    """
    quota = "max" if limits.cpus is None else str(max(MIN_QUOTA_US, round(limits.cpus * PERIOD_US)))
    return {
        "memory.max": str(limits.memory_bytes),
        "memory.high": str(limits.memory_bytes - limits.memory_bytes // HIGH_FRACTION),
        "memory.swap.max": "0",
        "memory.oom.group": "1",
        "cpu.max": f"{quota} {PERIOD_US}",
        "cpu.weight": str(limits.cpu_weight),
        "pids.max": str(limits.pids),
    }


_OPTIONAL: Final = ("memory.swap.max",)
"""
Files that a kernel may lack: no swap accounting means that there is no swap to forbid, or nobody to ask.
"""


def leaf_name(tenant: str, prefix: str = TENANT_PREFIX) -> str:
    """Return a tenant's directory name. Raises ValueError for a name that could leave the subtree."""
    if not _NAME.fullmatch(tenant):
        raise ValueError(f"{tenant!r} cannot be the name of a cgroup")
    return prefix + tenant


def prepare_subtree(root: Path) -> None:
    """
    Move the daemon's processes into a leaf and hand the controllers to the children.

    Raises:
        JailError: the subtree is not ours.
    """
    leaf = root / DAEMON_LEAF
    with _errors("cgroup"):
        leaf.mkdir(exist_ok=True)
        for pid in (root / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                _write(leaf / "cgroup.procs", pid)
        _write(root / "cgroup.subtree_control", " ".join(f"+{name}" for name in CONTROLLERS))


class TenantCgroup:
    """The leaf of one tenant, or with another prefix, of something else that is limited in the same way."""

    def __init__(self, root: Path, tenant: str, prefix: str = TENANT_PREFIX) -> None:
        self.path = root / leaf_name(tenant, prefix)

    def create(self, limits: CgroupLimits) -> None:
        """Make the leaf, or take over one that a dead daemon left, and set its limits. Raises JailError."""
        with _errors("cgroup"):
            self.path.mkdir(exist_ok=True)
            self.set_limits(limits)

    def set_limits(self, limits: CgroupLimits) -> None:
        """Change the limits of a living tenant. Raises JailError."""
        for name, text in settings(limits).items():
            with _errors(f"cgroup {name}"):
                try:
                    _write(self.path / name, text)
                except FileNotFoundError:
                    if name not in _OPTIONAL:
                        raise

    def add(self, pid: int) -> None:
        """Move a process in, before it has read a byte of the tenant. Raises JailError."""
        with _errors("cgroup"):
            _write(self.path / "cgroup.procs", str(pid))

    def pids(self) -> tuple[int, ...]:
        """Return the processes inside, by their pids in the reader's namespace."""
        return tuple(int(word) for word in _words(self.path / "cgroup.procs"))

    def kill(self) -> None:
        """End every process inside at once, those being forked included. Nothing to do if it is gone."""
        with contextlib.suppress(FileNotFoundError):
            _write(self.path / "cgroup.kill", "1")

    def remove(self) -> None:
        """Kill what is inside and remove the leaf; bounded in time. Raises JailError if it will not go."""
        self.kill()
        for attempt in range(_REMOVE_TRIES):
            try:
                self.path.rmdir()
            except FileNotFoundError:
                return
            except OSError as error:
                if attempt == _REMOVE_TRIES - 1:
                    raise JailError("cgroup", error.errno or 0, f"{self.path} cannot be removed") from error
                time.sleep(_REMOVE_PAUSE_S)
            else:
                return

    def usage(self) -> CgroupUsage:
        """Read what the tenant uses."""
        cpu, events = self._table("cpu.stat"), self._table("memory.events")
        return CgroupUsage(
            memory_bytes=self._number("memory.current"),
            memory_peak_bytes=self._number("memory.peak"),
            pids=self._number("pids.current"),
            cpu_us=cpu.get("usage_usec", 0),
            throttled_us=cpu.get("throttled_usec", 0),
            oom_kills=events.get("oom_group_kill", events.get("oom_kill", 0)),
            memory_pressure_us=pressure_total(self._text("memory.pressure")),
            cpu_pressure_us=pressure_total(self._text("cpu.pressure")),
        )

    def _text(self, name: str) -> str:
        try:
            return (self.path / name).read_text()
        except OSError:
            return ""

    def _number(self, name: str) -> int:
        text = self._text(name).strip()
        return int(text) if text.isdigit() else 0

    def _table(self, name: str) -> dict[str, int]:
        pairs = (line.split() for line in self._text(name).splitlines())
        return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def pressure_total(text: str) -> int:
    """Return the ``total`` of the ``some`` line of a pressure file in microseconds; 0 without one. Pure."""
    match = re.search(r"^some .*\btotal=(\d+)", text, re.MULTILINE)
    return int(match[1]) if match else 0


def stale_leaves(root: Path, tenants: frozenset[str]) -> tuple[Path, ...]:
    """Return the tenants' leaves under ``root`` that belong to none of ``tenants``."""
    known = {leaf_name(tenant) for tenant in tenants}
    return tuple(path for path in sorted(root.glob(f"{TENANT_PREFIX}*")) if path.is_dir() and path.name not in known)


def stale_compilers(root: Path) -> tuple[TenantCgroup, ...]:
    """Return the compilers' leaves that a dead daemon left."""
    names = (path.name.removeprefix(COMPILER_PREFIX) for path in sorted(root.glob(f"{COMPILER_PREFIX}*")))
    return tuple(TenantCgroup(root, name, COMPILER_PREFIX) for name in names)


def _write(path: Path, text: str) -> None:
    """One write without creating the file: on cgroupfs a file that is not there is an answer."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_TRUNC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


@contextlib.contextmanager
def _errors(step: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise JailError(step, error.errno or 0, _HINT) from error
