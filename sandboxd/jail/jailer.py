"""
Plans for this machine's hostile processes: what all of them share, made once. For the trusted side.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

from sandboxd.errors import JailError
from sandboxd.jail.facts import MachineFacts, machine_facts
from sandboxd.jail.filter_files import FilterSet, load_filters
from sandboxd.jail.full_plan import JailPlan, JailRequest, Programs, plan, unavailable
from sandboxd.jail.layers import ALWAYS_REQUIRED, Layer

SPARE_UID: Final = 65533
"""
Of jailed processes that belong to no tenant, where uids are given: compilers, probes, `sandboxd run`.
"""

MAX_COMPILER_FILES: Final = 64


@dataclass(frozen=True, slots=True)
class WorkerWishes:
    """What one worker's jail shall be, beside what the machine decides."""

    uid: int = 0
    """Of the tenant's own, where uids are given; 0: `SPARE_UID`."""
    gid: int = 0
    max_open_files: int = 4096
    max_threads: int = 1024
    """Of all processes with this uid, a waiter for each worker counted in."""
    address_space_bytes: int = 0
    """0: no limit; the engine reserves far more than it touches."""
    require: frozenset[Layer] = frozenset()


class CompilerLeaf(Protocol):
    """A cgroup for one compiler."""

    def enter(self, pid: int) -> None:
        """Move the compiler in. Raises JailError."""

    def memory_death(self) -> bool:
        """Return whether it died of its memory limit."""

    def remove(self) -> None:
        """End what is left in it, and it; never raises."""


@dataclass(frozen=True, slots=True)
class Jailer:
    """
    Args:
        facts: what the machine can give.
        filters: the system call filters.
        tolerate: layers that the operator does without where the machine lacks them.
        compiler_cgroup: makes a compiler's cgroup, or None where there are none; may raise JailError.
    """

    facts: MachineFacts
    filters: FilterSet
    tolerate: frozenset[Layer] = frozenset()
    compiler_cgroup: Callable[[], CompilerLeaf | None] = field(default=lambda: None, compare=False)

    @property
    def own_uids(self) -> bool:
        """Whether jailed processes get a uid of their own; if not, they get a user namespace."""
        return self.facts.own_uids

    def worker(self, control_fd: int, waiter_pid: int, wishes: WorkerWishes) -> JailPlan:
        """
        Return a worker's plan.

        Args:
            control_fd: its control socket, by its number in the worker.
            waiter_pid: pid of the process that was started for it.
            wishes: what its tenant asks for.

        Raises:
            JailError: a required layer cannot be had; ``errno`` is 0, the hint says what can be done.
        """
        return plan(self._worker_request(control_fd, waiter_pid, wishes), self.facts)

    def check(self, require: frozenset[Layer]) -> None:
        """Find out without a process whether a worker can be jailed; raises as `worker`."""
        self.worker(3, 1, WorkerWishes(require=require))

    def compiler(
        self,
        job_fd: int,
        result_fd: int,
        waiter_pid: int,
        *,
        cpu_seconds: int,
        memory_bytes: int,
        result_bytes: int,
    ) -> JailPlan:
        """
        Return a compiler's plan: a worker's, with one file that may be written and no second thread.

        Args:
            job_fd: what it reads; no socket, so the filter's rules for the control socket open nothing.
            result_fd: what it writes.
            waiter_pid: as for `worker`.
            cpu_seconds: CPU time after which the kernel kills it.
            memory_bytes: address space.
            result_bytes: size of the largest result.

        Raises:
            JailError: as `worker`.
        """
        uid = SPARE_UID if self.own_uids else 0
        request = JailRequest(
            self._programs(job_fd, waiter_pid),
            job_fd,
            uid,
            uid,
            max_open_files=MAX_COMPILER_FILES,
            max_threads=1,
            address_space_bytes=memory_bytes,
            extra_fds=(result_fd,),
            file_bytes=result_bytes,
            cpu_seconds=cpu_seconds,
            tolerate=self.tolerate,
        )
        return plan(request, self.facts)

    def tolerated(self) -> tuple[tuple[Layer, str], ...]:
        """Return the layers that workers should have and do without here, each with the reason."""
        missing = unavailable(self._worker_request(3, 1, WorkerWishes()), self.facts)
        return tuple((layer, reason) for layer, reason in missing if layer in ALWAYS_REQUIRED & self.tolerate)

    def _worker_request(self, control_fd: int, waiter_pid: int, wishes: WorkerWishes) -> JailRequest:
        uid = (wishes.uid or SPARE_UID) if self.own_uids else 0
        return JailRequest(
            self._programs(control_fd, waiter_pid),
            control_fd,
            uid,
            (wishes.gid or uid) if uid else 0,
            max_open_files=wishes.max_open_files,
            max_threads=wishes.max_threads,
            address_space_bytes=wishes.address_space_bytes,
            require=wishes.require,
            tolerate=self.tolerate,
            disable_tsc=Layer.TSC in wishes.require,
            own_core=Layer.CORE_SCHEDULING in wishes.require,
        )

    def _programs(self, control_fd: int, waiter_pid: int) -> Programs:
        return self.filters.build(self.facts.architecture, control_fd, waiter_pid)


@functools.cache
def this_machine(tolerate: frozenset[Layer] = frozenset()) -> Jailer:
    """
    Return this machine's jailer; made once. Best called while the process has one thread.

    Raises:
        ConfigError: the installation has no system call filters, or broken ones.
        JailError: the machine cannot be asked.
    """
    try:
        return Jailer(machine_facts(), load_filters(), tolerate)
    except OSError as error:
        raise JailError("facts", error.errno or 0, "the machine could not be asked") from error
