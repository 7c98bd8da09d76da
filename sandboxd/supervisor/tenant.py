"""
One tenant: the deployment that serves it, the older ones that drain, and what happens when something fails.

The rules:

* a new version is started beside the old one and takes over only if every plugin of it runs; else the old one
  stays and the error is shown;
* without an old version, what runs is better than nothing: plugins that cannot run answer by their failure
  policy;
* a worker that dies is a crash of each plugin that ran in it: the ledger says when it is started again, and which
  plugins are left out then because they are in quarantine.
"""

from __future__ import annotations

import asyncio
import enum
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from typing import TypeAlias

from sandboxd.channel.async_vm import OVERDUE_TEXT
from sandboxd.errors import JailError, SandboxdError, WorkerError
from sandboxd.log import one_line
from sandboxd.policy.model import TenantPolicy
from sandboxd.supervisor import front_frames
from sandboxd.supervisor.backoff import Backoff
from sandboxd.supervisor.crash_reports import MAX_MESSAGE_CHARACTERS, CrashReports
from sandboxd.supervisor.deployment import Deployment, Settings
from sandboxd.supervisor.egress import Egress
from sandboxd.supervisor.exits import Exit, ExitCause
from sandboxd.supervisor.launch import WorkerSpec
from sandboxd.supervisor.ledger import Ledger
from sandboxd.supervisor.plugin_metrics import PluginMetrics
from sandboxd.supervisor.prepare import Blob, PluginProblem, PreparedTenant, policy_text, try_again
from sandboxd.supervisor.shared_region import SharedRegion
from sandboxd.supervisor.users import ChannelUser, UserSet, is_for

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
    ledger: Ledger
    egress: Egress | None = None


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
        """Of starts that failed without any plugin's doing."""
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
        self.shared = SharedRegion()
        self.metrics: dict[str, PluginMetrics] = {}
        """What the plugins have reported, by name, over all deployments."""
        self._incoming: Deployment | None = None
        self._start_delay_s: float | None = None
        """What the ledger said of the worker that died while it started."""
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

    @property
    def only_quarantined(self) -> bool:
        """Whether all that keeps plugins from running is their quarantine: reading the same policy changes nothing."""
        if self.current is None or self.error:
            return False
        crashes = CrashReports(self._services.ledger, self.current.prepared.policy)
        return all(crashes.quarantine(name) for name in self.current.all_problems())

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
            self._forgive_changed(policy)
            return await self._swap(prepared, keep_old=True)

    def _forgive_changed(self, policy: TenantPolicy) -> None:
        """A plugin whose part of the policy has changed has a clean sheet: it may have been its configuration."""
        for plugin in policy.plugins:
            before = self.policy.plugin(plugin.name) if self.policy else None
            if before is not None and before != plugin:
                self._services.ledger.lift(self.name, plugin.name)

    async def restart(self, plugin: str = "") -> str:
        """
        Replace the worker by a fresh one of the same version, and lift the quarantine of one plugin, or of all with an
        empty name; return an empty text, or what went wrong.
        """
        async with self._lock:
            for subject in self._services.ledger.lift(self.name, plugin):
                _log.info("%s: its quarantine is lifted", subject.name)
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
                    for plugin in (one for one in self.policy.plugins if is_for(front, one)):
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
                cause = ExitCause.WALL_TIME if reason.startswith(OVERDUE_TEXT) else ExitCause.WORKER_PROTOCOL
                deployment.kill(f"broke a channel: {reason}", cause)
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
                if is_for(front, plugin):
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
        self._start_delay_s = None
        try:
            new = await self._started(prepared)
        except JailError as error:
            if not error.errno:  # the machine does not have the layer: trying again would not help
                self._is_refused = self.current is None
                return self._refused(f"refused: {error}")
            return self._failed(f"no worker can be started: {error}")
        except (OSError, WorkerError) as error:
            return self._failed(f"no worker can be started: {error}")
        faults = {name: text for name, text in new.problems.items() if not self._is_left_out(prepared, new, name)}
        if faults and keep_old and self._has_served:
            new.worker.stop()
            return self._failed(problems_text(faults))
        old, self.current = self.current, new
        self._prepared, self.policy = prepared, prepared.policy
        self._has_served = True
        self.shared = new.shared
        for name in self.metrics.keys() - {plugin.name for plugin in prepared.policy.plugins}:
            del self.metrics[name]
        self.error = ""
        for name, problem in prepared.problems.items():
            _log.error("tenant %s: plugin %s: %s", self.name, name, one_line(problem.text, MAX_MESSAGE_CHARACTERS))
        new.go_live()
        if old is not None:
            kept = {(plugin.name, plugin.kind) for plugin in prepared.policy.plugins}
            self._retire(old, [p.name for p in old.prepared.policy.plugins if (p.name, p.kind) not in kept])
        self._plan_retry(prepared)
        return problems_text(new.problems)

    def _is_left_out(self, prepared: PreparedTenant, new: Deployment, name: str) -> bool:
        """Return whether a plugin does not run only because it is in quarantine since before this start."""
        return name in prepared.plugins and name not in new.prepared.plugins

    async def _started(self, prepared: PreparedTenant) -> Deployment:
        self._incoming = self._deploy(self._without_quarantined(prepared))
        try:
            await self._incoming.start()
            return self._incoming
        finally:
            self._incoming = None

    def _failed(self, error: str) -> str:
        """Take note that a version cannot run; see to it that there is, or will be, one that does."""
        if self.current is not None or self._removed:
            return self._refused(error)
        # The worker that died while it started has been noted as a crash, in `_deployment_gone`.
        delay_s, self._start_delay_s = self._start_delay_s, None
        self._plan_restart(error, delay_s)
        self._announce_all()
        return error

    def _without_quarantined(self, prepared: PreparedTenant) -> PreparedTenant:
        """Return the version with each plugin that is in quarantine as one that cannot run."""
        crashes = CrashReports(self._services.ledger, prepared.policy)
        reasons = {name: text for name in prepared.plugins if (text := crashes.quarantine(name))}
        return replace(
            prepared,
            plugins={name: plugin for name, plugin in prepared.plugins.items() if name not in reasons},
            problems={**prepared.problems, **{n: PluginProblem(text, permanent=True) for n, text in reasons.items()}},
        )

    def _deploy(self, prepared: PreparedTenant) -> Deployment:
        return Deployment(
            prepared,
            self._services.worker_spec(prepared.policy),
            self._services.fronts,
            self._services.settings,
            redaction_key=self._services.redaction_key(self.name),
            on_gone=self._deployment_gone,
            crashes=CrashReports(self._services.ledger, prepared.policy),
            shared=self._region(prepared.policy),
            metrics=self.metrics,
            egress=self._services.egress,
        )

    def _region(self, policy: TenantPolicy) -> SharedRegion:
        """Return the region for a version: the one that there is, unless the version wants one of another size."""
        size = policy.shared.memory_bytes
        return self.shared if self.shared.size == size else SharedRegion(size)

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

    def _deployment_gone(self, deployment: Deployment, end: Exit) -> None:
        delay_s = None if deployment.worker.stopping else self._note_crash(deployment, end)
        if deployment in self.draining:
            self.draining.remove(deployment)
            if not deployment.worker.stopping:
                _log.warning("tenant %s: draining worker %d %s", self.name, deployment.worker.pid, end.sentence)
            return
        if deployment is not self.current:
            self._start_delay_s = delay_s
            return  # it never came to serve: `start` raised, or it was stopped
        self.current = None
        if self._removed:
            return
        self._plan_restart(f"worker {deployment.worker.pid} {end.sentence}", delay_s)

    def _note_crash(self, deployment: Deployment, end: Exit) -> float | None:
        """Return how long the ledger wants to wait for the next worker; None if it has no opinion."""
        crashes = CrashReports(self._services.ledger, deployment.prepared.policy)
        names = [name for name in deployment.prepared.plugins if not crashes.quarantine(name)]
        rulings = crashes.worker_gone(names, deployment.worker.pid, end)
        for name, ruling in rulings.items():
            if ruling.quarantine is not None:
                _log.error("tenant %s: plugin %s: %s", self.name, name, crashes.quarantine(name))
        return max((ruling.delay_s for ruling in rulings.values()), default=None)

    def _plan_restart(self, error: str, delay_s: float | None = None) -> None:
        self.error = error
        self.restarts += 1
        if delay_s is None:
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
