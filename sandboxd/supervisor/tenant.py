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
import functools
import logging
from collections.abc import Iterable

from sandboxd.errors import JailError, SandboxdError, WorkerError
from sandboxd.log import one_line
from sandboxd.policy.model import TenantPolicy
from sandboxd.supervisor import deployments
from sandboxd.supervisor.clean_sheets import CleanSheets
from sandboxd.supervisor.comeback import MIN_DELAY_S, Comeback
from sandboxd.supervisor.crash_reports import MAX_MESSAGE_CHARACTERS
from sandboxd.supervisor.deployer import Deployer, Services
from sandboxd.supervisor.deployment import Deployment
from sandboxd.supervisor.exits import Exit
from sandboxd.supervisor.front_news import Herald, tell_why_down
from sandboxd.supervisor.prepare import PreparedTenant, try_again
from sandboxd.supervisor.tenant_state import TenantState
from sandboxd.supervisor.users import ChannelUser

_log = logging.getLogger(__name__)


class Tenant:
    """
    Args:
        name: the tenant's.
        services: the daemon's.
        policy: the version that is about to be applied, if it is known already.
    """

    def __init__(self, name: str, services: Services, policy: TenantPolicy | None = None) -> None:
        self._services = services
        self._lock = asyncio.Lock()
        self._comeback = Comeback(self._lock)
        self.deployer = Deployer(name, services, self._deployment_gone)
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
        if self.current is None or not self.current.news.live:
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
        return all(self.current.crashes.quarantine(name) for name in self.current.all_problems())

    # --- the operator's commands ---

    async def apply(self, policy: TenantPolicy) -> str:
        """Run a version of the policy; return an empty text, or why it is not (fully) running. Never raises."""
        async with self._lock:
            try:
                return await self._apply(policy)
            except Exception as error:  # the other tenants have nothing to do with it
                return self._unforeseen(policy, error)

    async def _apply(self, policy: TenantPolicy) -> str:
        if self.policy is None:
            self.policy = policy
            self._announce_all()
        try:
            prepared = await self._services.prepare(policy)
        except SandboxdError as error:
            return self._refused(str(error))
        if prepared.problems and self._has_served:
            return self._refused(problems_text({n: p.text for n, p in prepared.problems.items()}))
        self._comeback.start_afresh()
        with CleanSheets(self._services.ledger, self.policy, policy, keep_if=lambda: self._prepared is prepared):
            return await self._swap(prepared, keep_old=True)

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
            self._comeback.start_afresh()
            try:
                return await self._replace(self._prepared, self.policy)
            except Exception as error:  # the other tenants have nothing to do with it
                return self._unforeseen(self.policy, error)

    async def _replace(self, prepared: PreparedTenant, policy: TenantPolicy) -> str:
        if prepared.problems:
            # Compiling may work now: a limit was hit before, or the module file came back.
            try_again(policy)
            try:
                prepared = await self._services.prepare(policy)
            except SandboxdError as error:
                return self._refused(str(error))
        return await self._swap(prepared, keep_old=False)

    def refuse(self, error: str) -> None:
        """Take note that a newer version of the policy file cannot be accepted."""
        self._refused(error)

    async def remove(self) -> None:
        """Drain and end: the tenant is configured no more."""
        async with self._lock:
            self._removed = True
            self._comeback.cancel()
            if self.current is not None:
                self._retire(self.current, [plugin.name for plugin in self.current.prepared.policy.plugins])
                self.current = None
            elif self.policy is not None:
                Herald(self.policy, None).all_down(self._services.fronts.ready.values(), "removed", removed=True)

    async def stop(self) -> None:
        """End all workers, without draining: the fronts are gone."""
        self._removed = True
        self._comeback.cancel()
        await deployments.end([*self._deployments(), *([self._incoming] if self._incoming else [])])

    # --- what happens around it ---

    def fronts_changed(self, arrived: ChannelUser | None = None) -> None:
        """A front came or went."""
        for deployment in self._deployments():
            deployment.sync_fronts()
        if arrived is None:
            return
        if self.current is not None and self.current.news.live:
            self.current.news.report_problems([arrived])
        else:
            self._announce([arrived])

    def introduce(self, front: ChannelUser) -> None:
        """Tell a new front of every plugin, whether or not it can run; its channels follow."""
        if self.current is not None and self.current.news.live:
            self.current.news.introduce(front)
        else:
            self._announce([front])
        self.fronts_changed()

    def channel_drained(self, channel_id: int) -> bool:
        """Return whether the channel is one of ours."""
        return deployments.channel_drained(self._deployments(), channel_id)

    def channel_broken(self, channel_id: int, reason: str) -> bool:
        """Kill the worker behind a channel; return whether it is one of ours."""
        return deployments.channel_broken(self._deployments(), channel_id, reason)

    def _announce_all(self) -> None:
        if self.current is None:
            self._announce(self._services.fronts.ready.values())

    def _announce(self, fronts: Iterable[ChannelUser]) -> None:
        """Tell fronts of a tenant that serves nothing yet, so that its streams get its failure policy."""
        if self.policy is not None and not self._removed:
            tell_why_down(self.policy, self._prepared, fronts, self.error)

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
                return self._cannot_be(prepared, f"refused: {error}")
            return self._failed(f"no worker can be started: {error}")
        except (OSError, WorkerError) as error:
            return self._failed(f"no worker can be started: {error}")
        faults = {name: text for name, text in new.problems.items() if not self._is_left_out(prepared, new, name)}
        if faults and keep_old and self._has_served:
            new.worker.stop()
            return self._failed(problems_text(faults))
        self._take_over(prepared, new)
        self._retry_later(prepared)
        return problems_text(new.problems)

    def _take_over(self, prepared: PreparedTenant, new: Deployment) -> None:
        old, self.current = self.current, new
        self._prepared, self.policy = prepared, prepared.policy
        self._has_served = True
        self.deployer.took_over(new)
        self.error = ""
        for name, problem in prepared.problems.items():
            _log.error("tenant %s: plugin %s: %s", self.name, name, one_line(problem.text, MAX_MESSAGE_CHARACTERS))
        new.go_live()
        if old is not None:
            kept = {(plugin.name, plugin.kind) for plugin in prepared.policy.plugins}
            self._retire(old, [p.name for p in old.prepared.policy.plugins if (p.name, p.kind) not in kept])

    def _is_left_out(self, prepared: PreparedTenant, new: Deployment, name: str) -> bool:
        """Return whether a plugin does not run only because it is in quarantine since before this start."""
        return name in prepared.plugins and name not in new.prepared.plugins

    async def _started(self, prepared: PreparedTenant) -> Deployment:
        self._incoming = incoming = self.deployer.deploy(prepared)
        try:
            await incoming.start()
        except BaseException:
            incoming.worker.stop()  # whatever it was: nobody will hear of this worker again
            raise
        finally:
            self._incoming = None
        return incoming

    def _cannot_be(self, prepared: PreparedTenant, error: str) -> str:
        """Take note that this machine will never run a version; the one that has served before comes back."""
        if self._has_served and prepared is not self._prepared:
            return self._failed(error)
        self._is_refused = self.current is None
        return self._refused(error)

    def _failed(self, error: str) -> str:
        """Take note that a version cannot run; see to it that there is, or will be, one that does."""
        if self.current is not None or self._removed:
            return self._refused(error)
        # The worker that died while it started has been noted as a crash, in `_deployment_gone`.
        delay_s, self._start_delay_s = self._start_delay_s, None
        self._restart_later(error, delay_s)
        self._announce_all()
        return error

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

    def _unforeseen(self, policy: TenantPolicy, error: Exception) -> str:
        """Take note of an error that nobody reckoned with; it may be gone soon, as a full disk is."""
        _log.error("tenant %s: unexpected error", self.name, exc_info=error)
        if self.current is None and not self._removed and not self._comeback.is_planned:
            start = self._start_again if self._prepared else functools.partial(self._try_again, policy)
            self._comeback.plan(start, max(MIN_DELAY_S, self._comeback.delay_s()))
        return self._refused(f"unexpected error: {type(error).__name__}: {error}")

    # --- coming back ---

    def _deployment_gone(self, deployment: Deployment, end: Exit) -> None:
        delay_s = None
        if not deployment.worker.stopping:
            delay_s = deployment.crashes.worker_gone(deployment.prepared.plugins, deployment.worker.pid, end)
        if deployment in self.draining:
            self.draining.remove(deployment)
            if not deployment.worker.stopping:
                _log.warning("tenant %s: draining worker %d %s", self.name, deployment.worker.pid, end.sentence)
            return
        if deployment is not self.current:
            if deployment is self._incoming:
                self._start_delay_s = delay_s
            return  # it never came to serve: `start` raised, or it was stopped
        self.current = None
        if self._removed:
            return
        self._restart_later(f"worker {deployment.worker.pid} {end.sentence}", delay_s)

    def _restart_later(self, error: str, delay_s: float | None = None) -> None:
        """Plan the next worker; without a delay, nobody knows of a plugin whose doing it was."""
        self.error = error
        self.restarts += 1
        if delay_s is None:
            delay_s = self._comeback.delay_s()
        _log.error("tenant %s: %s; it starts again in %.1f s", self.name, error, delay_s)
        self._comeback.plan(self._start_again, delay_s)

    def _retry_later(self, prepared: PreparedTenant) -> None:
        """
        Try again later what may work then: compiling that ran out of time, a module that was not loaded.
        """
        if not all(problem.permanent for problem in prepared.problems.values()):
            again = functools.partial(self._try_again, prepared.policy)
            self._comeback.plan(again, max(MIN_DELAY_S, self._comeback.delay_s()))

    async def _start_again(self) -> None:
        if self.current is None and self._prepared is not None and not self._removed:
            await self._swap(self._prepared, keep_old=False)

    async def _try_again(self, policy: TenantPolicy) -> None:
        if self._removed:
            return
        try:
            prepared = await self._services.prepare(policy)
        except SandboxdError as error:
            self._refused(str(error))
            return
        if self._prepared is None or len(prepared.problems) < len(self._prepared.problems):
            await self._swap(prepared, keep_old=False)
        else:
            self._retry_later(prepared)


def problems_text(problems: dict[str, str]) -> str:
    return "; ".join(f"plugin {name}: {text}" for name, text in sorted(problems.items()))
