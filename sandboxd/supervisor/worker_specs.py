"""What each tenant's worker is given by the daemon: a uid, room for its threads, a jail, a control group, a process."""

from __future__ import annotations

from collections.abc import Callable, Container
from itertools import count

from sandboxd import limits
from sandboxd.config import DaemonConfig
from sandboxd.errors import PolicyError
from sandboxd.jail.jailer import Jailer, WorkerWishes
from sandboxd.jail.layers import resolve
from sandboxd.policy.model import PluginKind, TenantPolicy
from sandboxd.supervisor.cgroups import Cgroups
from sandboxd.supervisor.launch import Launched, WorkerSpec

WORKER_THREADS = 2
"""Of a worker beside its VMs: the main thread and the CPU watchdog."""


class WorkerSpecs:
    """
    Args:
        config: the daemon's file.
        jailer: makes the jails.
        cgroups: makes the control groups.
        take: hands out a process that waits to become a worker.
        tenants: names those that exist, and those that are removed and have workers yet.
    """

    def __init__(
        self,
        config: DaemonConfig,
        jailer: Jailer,
        cgroups: Cgroups,
        take: Callable[[], Launched],
        tenants: Callable[[], Container[str]],
    ) -> None:
        self._config = config
        self._jailer = jailer
        self._cgroups = cgroups
        self._take = take
        self._tenants = tenants
        self._uids: dict[str, int] = {}

    def of(self, policy: TenantPolicy) -> WorkerSpec:
        """
        Return how a worker of a version is to be started.

        Raises:
            JailError: the machine does not have a layer that the policy requires.
        """
        require = resolve(policy.isolation.require)
        self._jailer.check(require)  # before anything is made for it
        uid = self._uid_of(policy.tenant)
        wishes = WorkerWishes(
            uid=uid,
            gid=uid,
            # Two workers of one tenant run side by side while a version replaces another, each with a waiter.
            max_threads=2 * (policy.isolation.pids + 1),
            require=require,
        )
        return WorkerSpec(policy.tenant, wishes, self._jailer, lambda: self._cgroups.worker(policy), self._take)

    def _uid_of(self, tenant: str) -> int:
        """Return the tenant's own uid: the lowest that nobody has, so that names which come and go use up none."""
        if tenant not in self._uids:
            known = self._tenants()
            self._uids = {name: uid for name, uid in self._uids.items() if name in known}
            taken = {*self._uids.values(), *limits.OUR_UIDS}
            self._uids[tenant] = next(uid for uid in count(self._config.worker.uid_base) if uid not in taken)
        return self._uids[tenant]

    def check_threads(self, policy: TenantPolicy) -> None:
        """
        Check that a worker has room for its threads: else it would die at its start, again and again.

        Raises:
            PolicyError: it has not.
        """
        fronts = self._config.front.processes
        attached = self._config.attach.channels if self._config.attach else 0
        services = sum(plugin.kind is PluginKind.SERVICE for plugin in policy.plugins)
        filters = len(policy.plugins) - services
        needed = filters * (fronts + attached) + services + WORKER_THREADS
        if needed > policy.isolation.pids:
            raise PolicyError(
                f"is too small: {filters} plugins on {fronts} fronts"
                f"{f' and {attached} attached channels' if attached else ''}"
                f"{f' and {services} services' if services else ''} need {needed} threads",
                path=policy.source_path,
                key="isolation.pids",
            )
