"""
One worker running one version of a tenant: its plugins, its VMs, and their channels to the fronts.

Begins unseen (`start`), is shown to the fronts (`go_live`), may be replaced (`retire`: streams that are open
go on, then the worker ends), and ends for good when its worker does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Any

from sandboxd.errors import WorkerError
from sandboxd.jail.layers import resolve
from sandboxd.supervisor import worker_events
from sandboxd.supervisor.callouts import CalloutPiece
from sandboxd.supervisor.crash_reports import CrashReports
from sandboxd.supervisor.egress import Egress
from sandboxd.supervisor.exits import Exit, ExitCause
from sandboxd.supervisor.folders import FileChanges
from sandboxd.supervisor.front_news import FrontNews
from sandboxd.supervisor.launch import WorkerSpec
from sandboxd.supervisor.plugin_metrics import PluginMetrics, Report
from sandboxd.supervisor.prepare import PreparedTenant
from sandboxd.supervisor.process import WorkerProcess
from sandboxd.supervisor.settings import Settings
from sandboxd.supervisor.shared_region import SharedRegion
from sandboxd.supervisor.users import UserSet, is_for
from sandboxd.supervisor.vm_outcomes import VmOutcomes
from sandboxd.supervisor.vm_set import VmSet
from sandboxd.supervisor.vms import Vm
from sandboxd.supervisor.worker_requests import WorkerRequests, open_store

_log = logging.getLogger(__name__)

LOAD_TIMEOUT_S = 60.0
SYNC_RETRY_S = 1.0
START_SLACK_S = 10.0
"""Beyond the policy's own start_time, which the worker keeps."""


class Deployment:
    """
    Args:
        prepared: the version to run.
        spec: how the worker is jailed.
        fronts: the fronts and other users of channels, as they come and go.
        settings: what all deployments share.
        redaction_key: the tenant's key for the ``hash`` redaction.
        on_gone: called once when the worker is gone.
        crashes: takes note of what fails, and says what follows.
        shared: the tenant's shared region.
        metrics: what the tenant's plugins have reported, by name; all its deployments add to it.
        egress: where callouts go; None: nowhere.
    """

    def __init__(
        self,
        prepared: PreparedTenant,
        spec: WorkerSpec,
        fronts: UserSet,
        settings: Settings,
        *,
        redaction_key: bytes,
        on_gone: Callable[[Deployment, Exit], None],
        crashes: CrashReports,
        shared: SharedRegion,
        metrics: dict[str, PluginMetrics],
        egress: Egress | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.prepared = prepared
        self.tenant = prepared.policy.tenant
        self._fronts = fronts
        self._settings = settings
        self._on_gone = on_gone
        self.crashes = crashes
        self.shared = shared
        self.retired = False
        self._end: WorkerError | None = None
        self.problems: dict[str, str] = {name: p.text for name, p in prepared.problems.items()}
        """Why a plugin does not run, by name."""
        self.load_ns: dict[str, int] = {}
        self._plugin_ids = {name: number for number, name in enumerate(prepared.plugins, 1)}
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._loaded: dict[int, asyncio.Future[str]] = {}
        self._all_loaded = False
        self._drain_timer: asyncio.TimerHandle | None = None
        self._sync_timer: asyncio.TimerHandle | None = None
        store = open_store(prepared.policy)
        self.worker = WorkerProcess(spec, self._event, self._worker_gone)
        ids = self._plugin_ids
        try:
            self.requests = WorkerRequests(
                prepared, self.worker, plugin_ids=ids, redaction_key=redaction_key, egress=egress, store=store
            )
        except BaseException:  # for want of a memory file
            self.worker.abandon()
            raise
        self.vms = VmSet(
            prepared,
            self.worker,
            self.requests,
            plugin_ids=ids,
            settings=settings,
            shared=shared,
            metrics=metrics,
        )
        self.news = FrontNews(
            prepared,
            fronts,
            self.vms,
            crashes=crashes,
            problems=self.problems,
            settings=settings,
            redaction_key=redaction_key,
        )
        self._outcomes = VmOutcomes(
            prepared, self.worker, self.vms, self.news, crashes=crashes, problems=self.problems, settings=settings
        )

    @property
    def gone(self) -> bool:
        """Whether the worker has ended."""
        return self._end is not None

    # --- life ---

    async def start(self) -> None:
        """
        Load the plugins and start their VMs; what a single plugin cannot do ends in `problems`.

        Raises:
            WorkerError: the worker as a whole failed; `on_gone` is called as well.
        """
        await self._ready
        self._check_layers()
        await asyncio.gather(*(self._load(name) for name in self.prepared.plugins))
        self._all_loaded = True
        self._sync_fronts()
        await asyncio.gather(*(self._first_outcome(vm) for vm in self.vms.all()))
        if self._end is not None:  # after its last VM had started, and before this coroutine had its turn
            raise self._end

    def _check_layers(self) -> None:
        """
        A layer that the policy asks for and the machine cannot give is a refusal, never a silent downgrade.
        """
        wanted = resolve(self.prepared.policy.isolation.require)
        missing = sorted(layer.value for layer in wanted if layer.value not in self.worker.layers)
        if missing:
            self.worker.stop()
            have = ", ".join(self.worker.layers) or "none"
            raise WorkerError(f"isolation.require: {', '.join(missing)} not in force for the worker (have: {have})")

    async def _load(self, name: str) -> None:
        plugin, plugin_id = self.prepared.plugins[name], self._plugin_ids[name]
        loaded = self._loaded[plugin_id] = self._loop.create_future()
        self.worker.load_plugin(plugin.load_request(plugin_id), plugin.bundle.fd)
        try:
            error = await asyncio.wait_for(loaded, LOAD_TIMEOUT_S)
        except TimeoutError:
            self.worker.kill(f"did not load plugin {name} in {LOAD_TIMEOUT_S:.0f} seconds", ExitCause.START_TIME)
            raise WorkerError(f"worker did not load plugin {name} in time") from None
        if error:
            self.problems[name] = f"the worker could not load it: {error}"

    async def _first_outcome(self, vm: Vm) -> None:
        start_s = self.prepared.plugins[vm.plugin].policy.limits.start_time_ns / 1e9
        try:
            error = await asyncio.wait_for(asyncio.shield(vm.first_outcome), start_s + START_SLACK_S)
        except TimeoutError:
            reason = f"did not start a VM of plugin {vm.plugin} in {start_s + START_SLACK_S:.0f} seconds"
            self.worker.kill(f"{reason} (limits.start_time is {start_s:g} s)", ExitCause.START_TIME)
            raise WorkerError(f"worker did not start plugin {vm.plugin} in time") from None
        if error:
            self.problems.setdefault(vm.plugin, error)

    def go_live(self) -> None:
        """Show this deployment to the fronts; from now on it gets the tenant's streams."""
        self.requests.promote()
        self.sync_fronts()
        self.news.go_live()

    def retire(self, names: Iterable[str]) -> None:
        """
        Let the open streams end, then end the worker.

        Args:
            names: plugins that are configured no more; the fronts are told so.
        """
        self.retired = True
        self.news.retire(names)
        for vm in self.vms.all():
            if not vm.attached:
                self.vms.close(vm)
        self._drain_timer = self._loop.call_later(self._settings.drained_after_s, self.worker.stop)
        self._stop_if_drained()

    def all_problems(self) -> dict[str, str]:
        """Return why plugins do not run now, by name: never started, or all VMs have failed."""
        found = dict(self.problems)
        for name in self.prepared.plugins:
            if self.vms.has_failed(name):
                found.setdefault(name, "all its VMs have failed and wait to be started again")
        return found

    # --- its channels ---

    def sync_fronts(self) -> None:
        """
        Open VMs for fronts that have none yet, and close those of fronts that are gone; again later if there are no
        descriptors or memory files for them now.
        """
        if self._sync_timer is not None:
            self._sync_timer.cancel()
        try:
            self._sync_fronts()
        except OSError as error:
            _log.error("tenant %s: no channel can be made for a front: %s; it is tried again", self.tenant, error)
            self._sync_timer = self._loop.call_later(SYNC_RETRY_S, self.sync_fronts)

    def _sync_fronts(self) -> None:
        if self.gone or not self._all_loaded:  # the first VM closes the worker's jail for further plugins
            return
        fronts = self._fronts.ready
        for vm in self.vms.all():
            if fronts.get(vm.front.index) is not vm.front:
                self.vms.close(vm)
        if self.retired:
            self._stop_if_drained()
            return
        have = {(vm.plugin, vm.front.index) for vm in self.vms.all()}
        for name, plugin in self.prepared.plugins.items():
            if not self._is_loaded(name) or self.crashes.quarantine(name):
                continue
            for index, front in fronts.items():
                if (name, index) not in have and is_for(front, plugin.policy) and front.wants(self.tenant, name):
                    self.vms.open(plugin, front)

    def channel_drained(self, channel_id: int) -> bool:
        """Take note that no stream uses a channel any more; return whether it is ours."""
        vm = self.vms.by_id.get(channel_id)
        if vm is None:
            return False
        if self.retired or self.crashes.quarantine(vm.plugin):
            self.vms.close(vm)
        if self.retired:
            self._stop_if_drained()
        return True

    def _is_loaded(self, name: str) -> bool:
        loaded = self._loaded.get(self._plugin_ids[name])
        return (
            loaded is not None
            and loaded.done()
            and not loaded.cancelled()
            and loaded.exception() is None
            and (loaded.result() == "")
        )

    def _stop_if_drained(self) -> None:
        if not any(vm.attached for vm in self.vms.all()):
            self.worker.stop()

    # --- what the worker says ---

    def _event(self, event: worker_events.Event) -> None:
        match event:
            case worker_events.Ready():
                self._ready.set_result(None)
            case worker_events.PluginLoaded():
                self._plugin_loaded(event)
            case worker_events.VmStarted():
                self._outcomes.started(event)
            case worker_events.VmFailed():
                self.requests.vm_gone(event.vm_id)
                self._outcomes.failed(event)
            case worker_events.Pong():
                self.vms.usage(event)
            case CalloutPiece() if event.vm_id in self.vms.by_id:
                self.requests.callout(event, self.vms.by_id[event.vm_id].plugin)
            case worker_events.SharedAsk():
                self.requests.shared_data(event)
            case FileChanges():
                self.requests.file_changes(event)
            case Report():
                self.vms.reported(event)
            case CalloutPiece():
                pass  # the VM was closed meanwhile: nobody waits for an answer
            case worker_events.VmClosed() | worker_events.WorkerFailed():
                pass

    def _plugin_loaded(self, event: worker_events.PluginLoaded) -> None:
        name = next(name for name, number in self._plugin_ids.items() if number == event.plugin_id)
        self.load_ns[name] = event.load_ns
        loaded = self._loaded[event.plugin_id]
        if not loaded.done():
            loaded.set_result(event.error)

    def _worker_gone(self, end: Exit) -> None:
        self._end = error = WorkerError(f"worker {self.worker.pid} {end.sentence}")
        self.requests.close()
        for timer in (self._drain_timer, self._sync_timer):
            if timer is not None:
                timer.cancel()
        outcomes = [vm.first_outcome for vm in self.vms.all()]
        waiting: list[asyncio.Future[Any]] = [self._ready, *self._loaded.values(), *outcomes]
        for future in waiting:
            if not future.done():
                future.set_exception(error)
                future.exception()  # whoever waits gets it; if nobody does, that is no news
        self.vms.worker_gone()
        self.news.worker_gone(str(error))
        self._on_gone(self, end)
