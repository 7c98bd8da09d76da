"""
Which steps a worker or compiler takes to lock itself down, in which order, and why in that order.

Pure: data about steps, no system call. The steps here cost nothing and need no privilege. The place of
further layers (namespaces, cgroup, Landlock, seccomp) is given by the order: what needs files or privilege
comes before `BecomeUser`, what forbids system calls comes last.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeAlias

from sandboxd.jail.layers import Layer

STANDARD_FDS: Final = frozenset({0, 1, 2})


@dataclass(frozen=True, slots=True)
class CloseOtherFds:
    """Close every file descriptor but these."""

    keep: frozenset[int]


@dataclass(frozen=True, slots=True)
class LimitResource:
    """
    Set soft and hard limit of a resource, named as in ``resource``: ``RLIMIT_CORE``. A lower hard limit
    stays.
    """

    resource: str
    value: int


@dataclass(frozen=True, slots=True)
class BecomeUser:
    """Drop all groups, then take these ids for good."""

    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class NotDumpable:
    """No core file, no ptrace by others of the same user, no reading of ``/proc/PID/mem``."""


@dataclass(frozen=True, slots=True)
class DieWithParent:
    """Be killed when the thread that started this process ends."""

    parent_pid: int
    """As the process saw it when it began; a different parent now means that the real one is gone already."""


@dataclass(frozen=True, slots=True)
class NoNewPrivileges:
    """Nothing that is executed from here on can gain privileges."""


Step: TypeAlias = CloseOtherFds | LimitResource | BecomeUser | NotDumpable | DieWithParent | NoNewPrivileges

LAYERS: Final[dict[type[Step], Layer]] = {
    CloseOtherFds: Layer.FDS,
    LimitResource: Layer.RLIMITS,
    BecomeUser: Layer.UID,
    NotDumpable: Layer.NON_DUMPABLE,
    DieWithParent: Layer.PARENT_DEATH_SIGNAL,
    NoNewPrivileges: Layer.NO_NEW_PRIVS,
}
"""The name under which a step is reported as an isolation layer."""


def worker_plan(
    *,
    parent_pid: int,
    keep_fds: frozenset[int],
    uid: int = 0,
    gid: int = 0,
    max_processes: int = 0,
    max_open_files: int = 0,
    address_space_bytes: int = 0,
) -> tuple[Step, ...]:
    """
    Return a worker's steps.

    Args:
        parent_pid: the parent as seen at the process's beginning.
        keep_fds: descriptors to keep besides the standard ones.
        uid: user to become; 0 keeps the current one.
        gid: group to become; meaningful with ``uid`` alone.
        max_processes: processes and threads of the user; 0 sets no limit.
        max_open_files: 0 sets no limit.
        address_space_bytes: 0 sets no limit. Each VM reserves more than 8 GiB of addresses.
    """
    limits = {
        "RLIMIT_CORE": 0,
        "RLIMIT_FSIZE": 0,  # memfds are made by the supervisor; a worker writes no file at all
        "RLIMIT_MSGQUEUE": 0,
        "RLIMIT_MEMLOCK": 0,
    }
    if max_processes:
        limits["RLIMIT_NPROC"] = max_processes
    if max_open_files:
        limits["RLIMIT_NOFILE"] = max_open_files
    if address_space_bytes:
        limits["RLIMIT_AS"] = address_space_bytes
    return _plan(parent_pid, keep_fds, limits, BecomeUser(uid, gid) if uid else None)


def compiler_plan(
    *,
    parent_pid: int,
    keep_fds: frozenset[int],
    cpu_seconds: int,
    address_space_bytes: int,
    output_bytes: int,
) -> tuple[Step, ...]:
    """
    Return a compiler's steps.

    Args:
        parent_pid: the parent as seen at the process's beginning.
        keep_fds: descriptors to keep besides the standard ones.
        cpu_seconds: CPU time, after which the kernel kills the process.
        address_space_bytes: memory; an allocation past it aborts the compiler.
        output_bytes: size of the largest artefact.
    """
    limits = {
        "RLIMIT_CORE": 0,
        "RLIMIT_CPU": cpu_seconds,
        "RLIMIT_AS": address_space_bytes,
        "RLIMIT_FSIZE": output_bytes,
        "RLIMIT_MSGQUEUE": 0,
        "RLIMIT_MEMLOCK": 0,
        "RLIMIT_NOFILE": max(keep_fds | STANDARD_FDS) + 1,
    }
    return _plan(parent_pid, keep_fds, limits, None)


def _plan(
    parent_pid: int, keep_fds: frozenset[int], limits: dict[str, int], user: BecomeUser | None
) -> tuple[Step, ...]:
    steps: list[Step] = [CloseOtherFds(keep_fds | STANDARD_FDS)]
    steps += [LimitResource(resource, value) for resource, value in limits.items()]
    if user is not None:
        steps.append(user)
    # A change of user resets both of these in the kernel, so they come after it.
    steps += [NotDumpable(), DieWithParent(parent_pid), NoNewPrivileges()]
    return tuple(steps)
