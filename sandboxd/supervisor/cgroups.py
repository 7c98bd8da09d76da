"""
The cgroups of workers and compilers: who may have one here, one leaf for each, its limits, its figures and its end.

A leaf belongs to a worker and not to its tenant: while a version replaces another, two workers of the tenant
run, and the old one's memory must not count against the new one. Leaves carry a number that is never used
twice, so that ``acme.1`` of one tenant is never ``acme`` of another.

The order keeps two promises. A worker is in its leaf before it is sent a byte, so nothing that a tenant does
escapes the limits. The CPU quota comes only when the worker is ready: until then it runs our own code, and a
tenant with a tenth of a CPU would need ten times as long to start.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

from sandboxd.errors import JailError
from sandboxd.jail import cgroup
from sandboxd.jail.cgroup import CgroupFacts, CgroupLimits, CgroupUsage, TenantCgroup
from sandboxd.policy.model import Isolation, TenantPolicy

_log = logging.getLogger(__name__)

LAYER: Final = "cgroup"
"""Name of the layer in ``isolation.require`` and in the status."""


class WorkerCgroup:
    """
    The leaf of one worker.

    Args:
        leaf: not made yet.
        isolation: of the tenant's policy.

    Raises:
        JailError: it cannot be made.
    """

    def __init__(self, leaf: TenantCgroup, isolation: Isolation) -> None:
        self._leaf = leaf
        self._limits = limits_of(isolation)
        self.path = leaf.path
        leaf.create(replace(self._limits, cpus=None))

    def enter(self, pid: int) -> None:
        """Move a fresh worker in. Raises JailError."""
        self._leaf.add(pid)

    def hold(self) -> None:
        """Set the CPU quota: from here on the worker runs the tenant's code. Raises JailError."""
        if self._limits.cpus is not None:
            self._leaf.set_limits(self._limits)

    def usage(self) -> CgroupUsage:
        """Return what the worker uses; zeros once the leaf is gone."""
        return self._leaf.usage()

    def memory_death(self) -> str:
        """Return the operator's sentence for a worker that died of its memory limit; else an empty text."""
        if not self.usage().oom_kills:
            return ""
        limit = self._limits.memory_bytes
        return f"was killed by the kernel: it needed more than isolation.memory ({limit} bytes)"

    def kill(self) -> None:
        """End everything inside at once, what is being forked included."""
        with contextlib.suppress(OSError):  # the caller kills the worker itself as well
            self._leaf.kill()

    async def remove(self) -> None:
        """Kill what is left inside and remove the leaf. What goes wrong is logged: nobody waits for this."""
        self.kill()
        try:
            await asyncio.to_thread(self._leaf.remove)
        except JailError as error:
            _log.error("%s", error)


class CompilerCgroup:
    """
    The leaf of one compiler: not the daemon's, so that a module on which code generation blows up takes no memory,
    process or processor time of those who serve.

    Args:
        leaf: not made yet.

    Raises:
        JailError: it cannot be made.
    """

    def __init__(self, leaf: TenantCgroup) -> None:
        self._leaf = leaf
        limits = CgroupLimits(
            memory_bytes=cgroup.COMPILER_MEMORY_BYTES,
            pids=cgroup.COMPILER_PIDS,
            cpu_weight=cgroup.COMPILER_WEIGHT,
        )
        leaf.create(limits)

    def enter(self, pid: int) -> None:
        """Move a fresh compiler in, before it has read a byte of the module. Raises JailError."""
        self._leaf.add(pid)

    def memory_death(self) -> bool:
        """Return whether the kernel has killed something in it for want of memory."""
        return bool(self._leaf.usage().oom_kills)

    def remove(self) -> None:
        """Kill what is left inside and remove the leaf; blocks for half a second at most."""
        try:
            self._leaf.remove()
        except JailError as error:
            _log.error("%s", error)


class Cgroups:
    """
    The subtree that was given to the daemon, or the reason why there is none.

    Args:
        root: the daemon's own cgroup, prepared; None if tenants cannot have cgroups here.
        reason: why not.
    """

    def __init__(self, root: Path | None, reason: str = "") -> None:
        self._root = root
        self.reason = reason
        self._numbers = itertools.count(1)

    @classmethod
    def take(cls, facts: CgroupFacts, own_pid: int | None = None) -> Cgroups:
        """
        Take over the daemon's cgroup: move the daemon into a leaf of it, remove what an older one left.

        Only a cgroup in which we are alone is taken. A daemon that was started from a shell shares the
        shell's, and to move strangers about is not ours.

        Args:
            facts: what the machine offers.
            own_pid: of this process, before it has children; None to ask.
        """
        if facts.reason:
            return cls(None, facts.reason)
        root = Path(facts.path)
        try:
            strangers = _pids(root) - {own_pid or os.getpid()}
            if strangers:
                return cls(
                    None,
                    f"{root} holds other processes than the daemon; start it as a service with Delegate=yes",
                )
            cgroup.prepare_subtree(root)
            for path in cgroup.stale_leaves(root, frozenset()):
                TenantCgroup(root, path.name.removeprefix(cgroup.TENANT_PREFIX)).remove()
            for leaf in cgroup.stale_compilers(root):
                leaf.remove()
        except (OSError, JailError, ValueError) as error:
            return cls(None, str(error))
        return cls(root)

    @property
    def live(self) -> bool:
        """Whether workers get cgroups."""
        return self._root is not None

    def worker(self, policy: TenantPolicy) -> WorkerCgroup | None:
        """
        Make the leaf for a new worker; None if there are no cgroups and the policy does not insist.

        Raises:
            JailError: the policy insists, or the kernel refuses what it should give.
        """
        if self._root is None:
            if LAYER in policy.isolation.require:
                raise JailError(LAYER, hint=self.reason)
            return None
        name = f"{policy.tenant}.{next(self._numbers)}"
        return WorkerCgroup(TenantCgroup(self._root, name), policy.isolation)

    def compiler(self) -> CompilerCgroup | None:
        """
        Make the leaf for a new compiler; None if there are no cgroups.

        Raises:
            JailError: the kernel refuses what it should give.
        """
        if self._root is None:
            return None
        return CompilerCgroup(TenantCgroup(self._root, str(next(self._numbers)), cgroup.COMPILER_PREFIX))

    def status(self) -> dict[str, Any]:
        """Describe the layer for ``sandboxd status``."""
        return {"live": self.live, "path": str(self._root or ""), "missing": self.reason}


def limits_of(isolation: Isolation) -> CgroupLimits:
    """Return the limits that a policy asks for; the worker's waiter comes on top of its threads."""
    return CgroupLimits(memory_bytes=isolation.memory_bytes, cpus=isolation.cpu, pids=isolation.pids + 1)


def usage_status(usage: CgroupUsage) -> dict[str, int]:
    """Describe a worker's use for ``sandboxd status``."""
    return asdict(usage)


def _pids(root: Path) -> set[int]:
    return {int(word) for word in (root / "cgroup.procs").read_text().split()}
