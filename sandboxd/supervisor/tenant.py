"""
One tenant: the deployment that serves it, the older ones that drain, and what happens when something fails.

The rules:

* a new version is started beside the old one and takes over only if every plugin of it runs; else the old one
  stays and the error is shown;
* without an old version, what runs is better than nothing: plugins that cannot run answer by their failure
  policy;
* a worker that dies is started again at once, and ever later if it keeps dying.
"""

from __future__ import annotations

import asyncio
import enum
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

from sandboxd.errors import JailError, SandboxdError, WorkerError
from sandboxd.policy.model import TenantPolicy
from sandboxd.supervisor import front_frames
from sandboxd.supervisor.backoff import Backoff
from sandboxd.supervisor.deployment import Deployment, Settings
from sandboxd.supervisor.launch import WorkerSpec
from sandboxd.supervisor.prepare import Blob, PreparedTenant, policy_text, try_again
from sandboxd.supervisor.users import ChannelUser, UserSet

_log = logging.getLogger(__name__)

Prepare: TypeAlias = Callable[[TenantPolicy], Awaitable[PreparedTenant]]


class TenantState(enum.StrEnum):
    """What a tenant's streams get."""

    STARTING = "starting"
    RUNNING = "running"
    """Every plugin runs."""
    DEGRADED = "degraded"
    """Some plugins do not run; their streams get the failure policy."""
    FAILED = "failed"
    """No plugin runs."""
    REFUSED = "refused"
    """The policy requires a layer of isolation that the machine does not have."""
    REMOVED = "removed"


@dataclass(frozen=True, slots=True)
class Services:
    """What a tenant needs of the daemon."""

    fronts: UserSet
    settings: Settings
    prepare: Prepare
    redaction_key: Callable[[str], bytes]
    worker_spec: Callable[[TenantPolicy], WorkerSpec]


class Tenant:
    """
    Args:
        name: the tenant's.
        services: the daemon's.
        policy: the version that is about to be applied, if it is known already.
    """

    def __init__(self, name: str, services: Services, policy: TenantPolicy | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._services = services
        self._lock = asyncio.Lock()
        self._backoff = Backoff()
        self._restart: asyncio.Task[None] | None = None
        self.name = name
        self.error = ""
        """Of the last reload or start."""
        self.policy = policy
        """The version that runs, or that should."""
        self.restarts = 0
        self.current: Deployment | None = None
        self.draining: list[Deployment] = []
        self._prepared: PreparedTenant | None = None
        self._incoming: Deployment | None = None
        self._has_served = False
        self._removed = False
        self._is_refused = False

    @property
    def last_error(self) -> str:
        """Of the last reload or start, or of the plugins that do not run; empty: all is well."""
        return self.error or (problems_text(self.current.all_problems()) if self.current else "")

    @property
    def state(self) -> TenantState:
        """What the tenant's streams get now."""
        if self._removed:
            return TenantState.REMOVED
        if self.current is None or not self.current.live:
            if self._is_refused:
                return TenantState.REFUSED
            return TenantState.STARTING if not self.error else TenantState.FAILED
        problems = self.current.all_problems()
        if all(plugin.name in problems for plugin in self.current.prepared.policy.plugins):
            return TenantState.FAILED
        return TenantState.DEGRADED if problems else TenantState.RUNNING

    # --- the operator's commands ---

    async def apply(self, policy: TenantPolicy) -> str:
        """Run a version of the policy; return an empty text, or why it is not (fully) running."""
        async with self._lock:
            if self.policy is None:
                self.policy = policy
                self._announce_all()
            try:
                prepared = await self._services.prepare(policy)
            except SandboxdError as error:
                return self._refused(str(error))
            if prepared.problems and self._has_served:
                return self._refused(problems_text({n: p.text for n, p in prepared.problems.items()}))
            self._cancel_restart()
            self._backoff.reset()
            return await self._swap(prepared, keep_old=True)

    async def restart(self) -> str:
        """Replace the worker by a fresh one of the same version; return an empty text, or what went wrong."""
        async with self._lock:
            if self._prepared is None or self.policy is None:
                return self.error or "there is nothing to restart"
            self._cancel_restart()
            self._backoff.reset()
            if self._prepared.problems:
                # Compiling may work now: a limit was hit before, or the module file came back.
                try_again(self.policy)
                try:
                    return await self._swap(await self._services.prepare(self.policy), keep_old=False)
                except SandboxdError as error:
                    return self._refused(str(error))
            return await self._swap(self._prepared, keep_old=False)

    def refuse(self, error: str) -> None:
        """Take note that a newer version of the policy file cannot be accepted."""
        self._refused(error)

    async def remove(self) -> None:
        """Drain and end: the tenant is configured no more."""
        async with self._lock:
            self._removed = True
            self._cancel_restart()
            if self.current is not None:
                self._retire(self.current, [plugin.name for plugin in self.current.prepared.policy.plugins])
                self.current = None
            elif self.policy is not None:
                for front in self._services.fronts.ready.values():
                    for plugin in self.policy.plugins:
                        front.send(front_frames.plugin_down(self.policy, plugin.name, "removed", removed=True))

    async def stop(self) -> None:
        """End all workers, without draining: the fronts are gone."""
        self._removed = True
        self._cancel_restart()
        everything = [*self._deployments(), *([self._incoming] if self._incoming else [])]
        for deployment in everything:
            deployment.worker.stop()
        while not all(deployment.gone for deployment in everything):
            await asyncio.sleep(0.01)

    # --- what happens around it ---

    def fronts_changed(self, arrived: ChannelUser | None = None) -> None:
        """A front came or went."""
        for deployment in self._deployments():
            deployment.sync_fronts()
        if arrived is None:
            return
        if self.current is not None and self.current.live:
            self.current.report_problems([arrived])
        else:
            self._announce([arrived])

    def introduce(self, front: ChannelUser) -> None:
        """Tell a new front of every plugin, whether or not it can run; its channels follow."""
        if self.current is not None and self.current.live:
            self.current.introduce(front)
        else:
            self._announce([front])
        self.fronts_changed()

    def channel_drained(self, channel_id: int) -> bool:
        """Return whether the channel is one of ours."""
        return any(deployment.channel_drained(channel_id) for deployment in self._deployments())

    def channel_broken(self, channel_id: int, reason: str) -> bool:
        """Kill the worker behind a channel; return whether it is one of ours."""
        for deployment in self._deployments():
            if channel_id in deployment.vms:
                deployment.kill(f"broke a channel: {reason}")
                return True
        return False

    def _announce_all(self) -> None:
        if self.current is None:
            self._announce(self._services.fronts.ready.values())

    def _announce(self, fronts: Iterable[ChannelUser]) -> None:
        """Tell fronts of a tenant that serves nothing yet, so that its streams get its failure policy."""
        if self.policy is None or self._removed:
            return
        try:
            text = self._prepared.text if self._prepared else Blob("policy", policy_text(self.policy).encode())
        except SandboxdError:
            return  # the file has changed since: `apply` says so
        for front in fronts:
            for plugin in self.policy.plugins:
                reason = self.error or "it is starting"
                frame = front_frames.plugin_down(self.policy, plugin.name, reason, starting=not self.error)
                front.send(frame, (text.fd,))

    def _deployments(self) -> list[Deployment]:
        return [d for d in (self.current, *self.draining) if d is not None]

    # --- swapping ---

    async def _swap(self, prepared: PreparedTenant, *, keep_old: bool) -> str:
        """
        Start a version beside the one that runs and let it take over; return what does not run.

        With ``keep_old`` a version that does not run as a whole gives way to one that has served before.
        """
        if not self._has_served:
            self._prepared, self.policy = prepared, prepared.policy
        self._is_refused = False
        try:
            new = await self._started(prepared)
        except JailError as error:
            if not error.errno:  # the machine does not have the layer: trying again would not help
                self._is_refused = self.current is None
                return self._refused(f"refused: {error}")
            return self._failed(f"no worker can be started: {error}")
        except (OSError, WorkerError) as error:
            return self._failed(f"no worker can be started: {error}")
        if new.problems and keep_old and self._has_served:
            new.worker.stop()
            return self._failed(problems_text(new.problems))
        old, self.current = self.current, new
        self._prepared, self.policy = prepared, prepared.policy
        self._has_served = True
        self.error = ""
        new.go_live()
        if old is not None:
            kept = {plugin.name for plugin in prepared.policy.plugins}
            self._retire(old, [p.name for p in old.prepared.policy.plugins if p.name not in kept])
        self._plan_retry(prepared)
        return problems_text(new.problems)

    async def _started(self, prepared: PreparedTenant) -> Deployment:
        self._incoming = self._deploy(prepared)
        try:
            await self._incoming.start()
            return self._incoming
        finally:
            self._incoming = None

    def _failed(self, error: str) -> str:
        """Take note that a version cannot run; see to it that there is, or will be, one that does."""
        if self.current is not None or self._removed:
            return self._refused(error)
        self._plan_restart(error)
        self._announce_all()
        return error

    def _deploy(self, prepared: PreparedTenant) -> Deployment:
        return Deployment(
            prepared,
            self._services.worker_spec(prepared.policy),
            self._services.fronts,
            self._services.settings,
            redaction_key=self._services.redaction_key(self.name),
            on_gone=self._deployment_gone,
        )

    def _retire(self, deployment: Deployment, removed: list[str]) -> None:
        if not deployment.gone:
            self.draining.append(deployment)
            deployment.retire(removed)

    def _refused(self, error: str) -> str:
        self.error = error
        kept = "; the version before goes on" if self.current is not None else ""
        _log.error("tenant %s: %s%s", self.name, error, kept)
        self._announce_all()
        return error

    # --- coming back ---

    def _deployment_gone(self, deployment: Deployment, sentence: str) -> None:
        if deployment in self.draining:
            self.draining.remove(deployment)
            if not deployment.worker.stopping:
                _log.warning("tenant %s: draining worker %d %s", self.name, deployment.worker.pid, sentence)
            return
        if deployment is not self.current:
            return  # it never came to serve: `start` raised, or it was stopped
        self.current = None
        if self._removed:
            return
        self._plan_restart(f"worker {deployment.worker.pid} {sentence}")

    def _plan_restart(self, error: str) -> None:
        self.error = error
        self.restarts += 1
        delay_s = self._backoff.failed(self._loop.time())
        _log.error("tenant %s: %s; it starts again in %.1f s", self.name, error, delay_s)
        self._cancel_restart()
        self._restart = self._loop.create_task(self._start_again(delay_s))

    def _plan_retry(self, prepared: PreparedTenant) -> None:
        """
        Try again later what may work then: compiling that ran out of time, a module that was not loaded.
        """
        if all(problem.permanent for problem in prepared.problems.values()):
            return
        delay_s = max(1.0, self._backoff.failed(self._loop.time()))
        self._cancel_restart()
        self._restart = self._loop.create_task(self._try_again(delay_s))

    async def _start_again(self, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        async with self._lock:
            self._restart = None
            if self.current is None and self._prepared is not None and not self._removed:
                await self._swap(self._prepared, keep_old=False)

    async def _try_again(self, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        async with self._lock:
            self._restart = None
            if self.policy is None or self._removed:
                return
            try:
                prepared = await self._services.prepare(self.policy)
            except SandboxdError as error:
                self._refused(str(error))
                return
            if len(prepared.problems) < len(self._prepared.problems if self._prepared else {}):
                await self._swap(prepared, keep_old=False)
            else:
                self._plan_retry(prepared)

    def _cancel_restart(self) -> None:
        if self._restart is not None and self._restart is not asyncio.current_task():
            self._restart.cancel()
        self._restart = None


def problems_text(problems: dict[str, str]) -> str:
    return "; ".join(f"plugin {name}: {text}" for name, text in sorted(problems.items()))
