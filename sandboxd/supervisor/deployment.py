"""
One worker running one version of a tenant: its plugins, its VMs, and their channels to the fronts.

Begins unseen (`start`), is shown to the fronts (`go_live`), may be replaced (`retire`: streams that are open
go on, then the worker ends), and ends for good when its worker does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from sandboxd import limits
from sandboxd.channel.memfd import create_channel
from sandboxd.errors import WorkerError
from sandboxd.jail.layers import resolve
from sandboxd.policy.model import PluginKind
from sandboxd.protos import control_pb2 as control
from sandboxd.supervisor import front_frames, worker_protocol
from sandboxd.supervisor.callouts import CalloutPiece
from sandboxd.supervisor.crash_reports import CrashReports
from sandboxd.supervisor.egress import Egress
from sandboxd.supervisor.exits import Exit, ExitCause
from sandboxd.supervisor.folders import FileChanges
from sandboxd.supervisor.launch import WorkerSpec
from sandboxd.supervisor.plugin_metrics import PluginMetrics, Report
from sandboxd.supervisor.prepare import PreparedPlugin, PreparedTenant
from sandboxd.supervisor.process import WorkerProcess
from sandboxd.supervisor.shared_region import SharedRegion
from sandboxd.supervisor.throttle import Throttle
from sandboxd.supervisor.users import ChannelUser, UserSet, is_for
from sandboxd.supervisor.vms import Vm, failure_text, vm_ids
from sandboxd.supervisor.worker_protocol import VmState
from sandboxd.supervisor.worker_requests import WorkerRequests, open_store

_log = logging.getLogger(__name__)

PONGS_PER_METRICS = 5
"""How many answers to a ping lie between two reports of the plugins' metrics."""
LOAD_TIMEOUT_S = 60.0
START_SLACK_S = 10.0
"""Beyond the policy's own start_time, which the worker keeps."""
DRAIN_SLACK_S = 2.0
"""The fronts keep the drain time; a front that forgot to answer must not keep a worker alive."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What all deployments share."""

    ring_bytes: int
    worker_spin: int
    """Empty looks at the ring before a VM sleeps."""
    drain_timeout_s: float
    log_level: int = 0
    """Lowest level of a guest's lines that is sent at all, 0 (trace) to 5 (critical)."""


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
        self._spec = spec
        self._fronts = fronts
        self._settings = settings
        self._redaction_key = redaction_key
        self._on_gone = on_gone
        self._crashes = crashes
        self.shared = shared
        self.live = False
        self.retired = False
        self.gone = False
        self.vms: dict[int, Vm] = {}
        self.problems: dict[str, str] = {name: p.text for name, p in prepared.problems.items()}
        """Why a plugin does not run, by name."""
        self.load_ns: dict[str, int] = {}
        self._metrics = metrics
        self._plugin_ids = {name: number for number, name in enumerate(prepared.plugins, 1)}
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._loaded: dict[int, asyncio.Future[str]] = {}
        self._all_loaded = False
        self._throttle = Throttle(per_second=5, burst=20)
        self._drain_timer: asyncio.TimerHandle | None = None
        store = open_store(prepared.policy)
        self.worker = WorkerProcess(spec, self._event, self._worker_gone)
        self._requests = WorkerRequests(
            prepared, self.worker, plugin_ids=self._plugin_ids, redaction_key=redaction_key, egress=egress, store=store
        )

    def store_counts(self) -> dict[str, int] | None:
        """As `WorkerRequests.store_counts`."""
        return self._requests.store_counts()

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
        self.sync_fronts()
        await asyncio.gather(*(self._first_outcome(vm) for vm in list(self.vms.values())))

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
        self.live = True
        self._requests.promote()
        self.sync_fronts()
        for vm in self.vms.values():
            self._attach_or_report(vm)
        self.report_problems(self._fronts.ready.values())

    def retire(self, names: Iterable[str]) -> None:
        """
        Let the open streams end, then end the worker.

        Args:
            names: plugins that are configured no more; the fronts are told so.
        """
        self.live = False
        self.retired = True
        for name in names:
            for front in self._fronts.ready.values():
                self._down(front, name, "removed from the configuration", removed=True)
        for vm in list(self.vms.values()):
            if vm.attached:
                vm.front.superseded(vm.vm_id)
            else:
                self._close_vm(vm)
        timeout_s = self._settings.drain_timeout_s + DRAIN_SLACK_S
        self._drain_timer = self._loop.call_later(timeout_s, self.worker.stop)
        self._stop_if_drained()

    def all_problems(self) -> dict[str, str]:
        """Return why plugins do not run now, by name: never started, or all VMs have failed."""
        found = dict(self.problems)
        for name in self.prepared.plugins:
            vms = [vm for vm in self.vms.values() if vm.plugin == name]
            views = [self.worker.view.vms.get(vm.vm_id) for vm in vms]
            down = (VmState.FAILED, VmState.DOWN)
            if views and all(view is not None and view.state in down for view in views):
                found.setdefault(name, "all its VMs have failed and wait to be started again")
        return found

    def kill(self, reason: str, cause: ExitCause) -> None:
        """SIGKILL the worker."""
        self.worker.kill(reason, cause)

    # --- fronts ---

    def sync_fronts(self) -> None:
        """Open VMs for fronts that have none yet, and close those of fronts that are gone."""
        if self.gone or not self._all_loaded:  # the first VM closes the worker's jail for further plugins
            return
        fronts = self._fronts.ready
        for vm in list(self.vms.values()):
            if fronts.get(vm.front.index) is not vm.front:
                self._close_vm(vm)
        if self.retired:
            self._stop_if_drained()
            return
        have = {(vm.plugin, vm.front.index) for vm in self.vms.values()}
        for name, plugin in self.prepared.plugins.items():
            if not self._is_loaded(name) or self._crashes.quarantine(name):
                continue
            for index, front in fronts.items():
                if (name, index) not in have and is_for(front, plugin.policy) and front.wants(self.tenant, name):
                    self._open_vm(plugin, front)

    def introduce(self, front: ChannelUser) -> None:
        """Tell a new front of every plugin; the channels of those that can run follow."""
        down = self._not_served()
        for plugin in self.prepared.policy.plugins:
            name = plugin.name
            if name in down:
                self._down(front, name, self.problems[name])
            else:
                self._down(front, name, "it is starting", starting=True)

    def _not_served(self) -> list[str]:
        have = {vm.plugin for vm in self.vms.values()}
        return [name for name in self.problems if name not in have or self._crashes.quarantine(name)]

    def report_problems(self, fronts: Iterable[ChannelUser]) -> None:
        """Tell fronts of the plugins that get no new streams: in quarantine, or without any VM."""
        down = self._not_served()
        for front in fronts:
            for name in down:
                self._down(front, name, self.problems[name])

    def channel_drained(self, channel_id: int) -> bool:
        """Take note that no stream uses a channel any more; return whether it is ours."""
        vm = self.vms.get(channel_id)
        if vm is None:
            return False
        if self.retired or self._crashes.quarantine(vm.plugin):
            self._close_vm(vm)
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

    def _open_vm(self, plugin: PreparedPlugin, front: ChannelUser) -> None:
        vm_id = next(vm_ids)
        ring_bytes = self._ring_bytes(plugin)
        fds = create_channel(ring_bytes)
        vm = Vm(vm_id, plugin.policy.name, front, fds, self._loop.create_future())
        self.vms[vm_id] = vm
        spin = 0 if plugin.policy.kind is PluginKind.SERVICE else self._settings.worker_spin
        request = plugin.open_request(vm_id, self._plugin_ids[vm.plugin], ring_bytes, spin)
        blob = plugin.configuration(ring_bytes, self._settings.log_level, self.prepared.policy.shared)
        self.worker.open_vm(request, (fds.memfd, fds.vm_event_fd, fds.client_event_fd, blob.fd, self.shared.fd))

    def _ring_bytes(self, plugin: PreparedPlugin) -> int:
        return limits.MIN_RING_BYTES if plugin.policy.kind is PluginKind.SERVICE else self._settings.ring_bytes

    def read_metrics(self) -> None:
        """Have all VMs report their metrics."""
        if not self.gone:
            self.worker.view.expect_metrics()
            self.worker.send(control.ToWorker(read_metrics=control.ReadMetrics()))

    def _close_vm(self, vm: Vm) -> None:
        if vm.plugin in self._metrics:
            self._metrics[vm.plugin].gone(vm.vm_id)
        if not vm.first_outcome.done():
            vm.first_outcome.set_result("")
        vm.close_fds()
        self.vms.pop(vm.vm_id, None)
        self._requests.vm_gone(vm.vm_id)
        self.worker.close_vm(vm.vm_id)

    def _attach_or_report(self, vm: Vm) -> None:
        view = self.worker.view.vms.get(vm.vm_id)
        if vm.attached or view is None or not self.live or not vm.front.wants(self.tenant, vm.plugin):
            return
        if self._crashes.quarantine(vm.plugin):
            self._down(vm.front, vm.plugin, self.problems.get(vm.plugin, "in quarantine"))
            return
        if view.state is VmState.RUNNING and vm.fds is not None:
            frame = front_frames.attach(
                self.prepared.policy,
                self.prepared.plugins[vm.plugin],
                channel_id=vm.vm_id,
                ring_bytes=vm.fds.ring_bytes,
                redaction_key=self._redaction_key,
                drain_timeout_s=self._settings.drain_timeout_s,
            )
            channel = (vm.fds.memfd, vm.fds.vm_event_fd, vm.fds.client_event_fd)
            vm.front.send(frame, (*channel, self.prepared.text.fd))
            vm.attached = True
            vm.close_fds()
            self.problems.pop(vm.plugin, None)
        elif view.state in (VmState.FAILED, VmState.DOWN):
            reason = self.problems.get(vm.plugin, "its VM does not start")
            self._down(vm.front, vm.plugin, reason)

    def _down(
        self, front: ChannelUser, name: str, reason: str, *, removed: bool = False, starting: bool = False
    ) -> None:
        policy = self.prepared.policy.plugin(name)
        if policy is not None and is_for(front, policy):
            frame = front_frames.plugin_down(self.prepared.policy, name, reason, removed=removed, starting=starting)
            front.send(frame, (self.prepared.text.fd,))

    # --- what the worker says ---

    def _event(self, event: worker_protocol.Event) -> None:  # noqa: PLR0912 - one for each kind
        match event:
            case worker_protocol.Ready():
                self._ready.set_result(None)
            case worker_protocol.PluginLoaded():
                self._plugin_loaded(event)
            case worker_protocol.VmStarted():
                self._vm_started(event)
            case worker_protocol.VmFailed():
                self._vm_failed(event)
            case worker_protocol.Pong():
                for usage in event.vms:
                    if usage.vm_id in self.vms:
                        self.vms[usage.vm_id].usage = usage
                if event.number % PONGS_PER_METRICS == 0:
                    self.read_metrics()
            case CalloutPiece() if event.vm_id in self.vms:
                self._requests.callout(event, self.vms[event.vm_id].plugin)
            case worker_protocol.SharedAsk():
                self._requests.shared_data(event)
            case FileChanges():
                self._requests.file_changes(event)
            case Report():
                self._reported(event)
            case CalloutPiece():
                pass  # the VM was closed meanwhile: nobody waits for an answer
            case worker_protocol.VmClosed() | worker_protocol.WorkerFailed():
                pass

    def _reported(self, report: Report) -> None:
        vm = self.vms.get(report.vm_id)
        if vm is not None:
            most = self.prepared.plugins[vm.plugin].policy.limits.metrics
            metrics = self._metrics.setdefault(vm.plugin, PluginMetrics(most))
            metrics.most = most
            metrics.take(report)

    def _plugin_loaded(self, event: worker_protocol.PluginLoaded) -> None:
        name = next(name for name, number in self._plugin_ids.items() if number == event.plugin_id)
        self.load_ns[name] = event.load_ns
        loaded = self._loaded[event.plugin_id]
        if not loaded.done():
            loaded.set_result(event.error)

    def _vm_started(self, event: worker_protocol.VmStarted) -> None:
        vm = self.vms.get(event.vm_id)
        if vm is None:
            return
        vm.start_ns = event.start_ns
        if not vm.first_outcome.done():
            vm.first_outcome.set_result("")
        elif self._throttle.admits(self._loop.time()):
            _log.info(
                "tenant %s: plugin %s: VM %d runs again (generation %d)",
                self.tenant,
                vm.plugin,
                vm.vm_id,
                event.generation,
            )
        self._attach_or_report(vm)

    def _vm_failed(self, event: worker_protocol.VmFailed) -> None:
        vm = self.vms.get(event.vm_id)
        if vm is None:
            return
        self._requests.vm_gone(vm.vm_id)
        ruling = self._crashes.vm_failed(vm.plugin, event)
        text = failure_text(event, self.prepared.plugins[vm.plugin].policy)
        view = self.worker.view.vms.get(vm.vm_id)
        comes_back = ruling.quarantine is None and view is not None and view.state is VmState.FAILED
        if self._throttle.admits(self._loop.time()):
            again = f"starts again in {ruling.delay_s:.1f} s" if comes_back else "stays down"
            _log.warning("tenant %s: plugin %s: VM %d %s; it %s", self.tenant, vm.plugin, vm.vm_id, text, again)
        if not vm.first_outcome.done():
            vm.first_outcome.set_result(text)
        if ruling.quarantine is not None:
            self._quarantine(vm.plugin)
        elif comes_back:
            self._loop.call_later(ruling.delay_s, self._restart_vm, vm.vm_id)
        if event.while_starting and not vm.attached:
            if not self._crashes.quarantine(vm.plugin):
                self.problems[vm.plugin] = text
            self._attach_or_report(vm)

    def _restart_vm(self, vm_id: int) -> None:
        vm = self.vms.get(vm_id)
        if vm is not None and not self.gone and not self._crashes.quarantine(vm.plugin):
            plugin = self.prepared.plugins[vm.plugin]
            if plugin.folders:  # they are not what they were when the VM started first
                blob = plugin.configuration(
                    self._ring_bytes(plugin), self._settings.log_level, self.prepared.policy.shared
                )
                self.worker.restart_vm(vm_id, (blob.fd,))
            else:
                self.worker.restart_vm(vm_id)

    def _quarantine(self, name: str) -> None:
        """
        Give a plugin no new streams and no new starts. VMs of it that run keep their open streams until these end; who
        has a VM that does not run has lost them already.
        """
        text = self._crashes.quarantine(name)
        if self.problems.get(name) == text:
            return
        self.problems[name] = text
        _log.error("tenant %s: plugin %s: %s", self.tenant, name, text)
        mine = [vm for vm in self.vms.values() if vm.plugin == name]
        if self.live:
            for front in self._fronts.ready.values():
                self._down(front, name, text)
        for vm in mine:
            if vm.attached and self.live:
                vm.front.superseded(vm.vm_id)
        timeout_s = self._settings.drain_timeout_s + DRAIN_SLACK_S
        self._loop.call_later(timeout_s, self._close_vms, [vm.vm_id for vm in mine])

    def _close_vms(self, vm_ids_: Iterable[int]) -> None:
        for vm_id in vm_ids_:
            if not self.gone and (vm := self.vms.get(vm_id)) is not None:
                self._close_vm(vm)

    def _worker_gone(self, end: Exit) -> None:
        self.gone = True
        self._requests.close()
        if self._drain_timer is not None:
            self._drain_timer.cancel()
        error = WorkerError(f"worker {self.worker.pid} {end.sentence}")
        outcomes = [vm.first_outcome for vm in self.vms.values()]
        waiting: list[asyncio.Future[Any]] = [self._ready, *self._loaded.values(), *outcomes]
        for future in waiting:
            if not future.done():
                future.set_exception(error)
                future.exception()  # whoever waits gets it; if nobody does, that is no news
        for vm in self.vms.values():
            vm.close_fds()
            if vm.plugin in self._metrics:
                self._metrics[vm.plugin].gone(vm.vm_id)
            if vm.attached:
                vm.front.send(front_frames.detach(vm.vm_id, str(error)))
            if self.live:
                self._down(vm.front, vm.plugin, str(error))
        self._on_gone(self, end)

    def _stop_if_drained(self) -> None:
        if not any(vm.attached for vm in self.vms.values()):
            self.worker.stop()
