"""What follows when a deployment's VM starts or fails: it is handed out, comes back, or its plugin is quarantined."""

from __future__ import annotations

import asyncio
import logging

from sandboxd.supervisor.crash_reports import CrashReports
from sandboxd.supervisor.front_news import FrontNews
from sandboxd.supervisor.prepare import PreparedTenant
from sandboxd.supervisor.process import WorkerProcess
from sandboxd.supervisor.settings import Settings
from sandboxd.supervisor.throttle import Throttle
from sandboxd.supervisor.vm_set import VmSet
from sandboxd.supervisor.vms import failure_text
from sandboxd.supervisor.worker_events import VmFailed, VmStarted
from sandboxd.supervisor.worker_protocol import VmState

_log = logging.getLogger(__name__)


class VmOutcomes:
    """
    Args:
        prepared: the version.
        worker: who has the VMs.
        vms: the deployment's.
        news: tells the fronts.
        crashes: takes note of what fails, and says what follows.
        problems: why a plugin does not run, by name.
        settings: what all deployments share.
    """

    def __init__(
        self,
        prepared: PreparedTenant,
        worker: WorkerProcess,
        vms: VmSet,
        news: FrontNews,
        *,
        crashes: CrashReports,
        problems: dict[str, str],
        settings: Settings,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._tenant = prepared.policy.tenant
        self._prepared = prepared
        self._worker = worker
        self._vms = vms
        self._news = news
        self._crashes = crashes
        self._problems = problems
        self._settings = settings
        self._throttle = Throttle(per_second=5, burst=20)

    def started(self, event: VmStarted) -> None:
        """A VM runs."""
        vm = self._vms.by_id.get(event.vm_id)
        if vm is None:
            return
        vm.start_ns = event.start_ns
        if not vm.first_outcome.done():
            vm.first_outcome.set_result("")
        elif self._throttle.admits(self._loop.time()):
            name, generation = vm.plugin, event.generation
            _log.info(
                "tenant %s: plugin %s: VM %d runs again (generation %d)", self._tenant, name, vm.vm_id, generation
            )
        self._news.of_vm(vm)

    def failed(self, event: VmFailed) -> None:
        """A VM failed; the ledger rules what becomes of it."""
        vm = self._vms.by_id.get(event.vm_id)
        if vm is None:
            return
        ruling = self._crashes.vm_failed(vm.plugin, event)
        text = failure_text(event, self._prepared.plugins[vm.plugin].policy)
        comes_back = ruling.quarantine is None and self._vms.state(vm) is VmState.FAILED
        if self._throttle.admits(self._loop.time()):
            again = f"starts again in {ruling.delay_s:.1f} s" if comes_back else "stays down"
            _log.warning("tenant %s: plugin %s: VM %d %s; it %s", self._tenant, vm.plugin, vm.vm_id, text, again)
        if not vm.first_outcome.done():
            vm.first_outcome.set_result(text)
        if ruling.quarantine is not None:
            self._quarantine(vm.plugin)
        elif comes_back:
            self._loop.call_later(ruling.delay_s, self._start_again, vm.vm_id)
        if event.while_starting and not vm.attached:
            if not self._crashes.quarantine(vm.plugin):
                self._problems[vm.plugin] = text
            self._news.of_vm(vm)

    def _start_again(self, vm_id: int) -> None:
        vm = self._vms.by_id.get(vm_id)
        if vm is not None and not self._worker.exited and not self._crashes.quarantine(vm.plugin):
            self._vms.start_again(vm)

    def _quarantine(self, name: str) -> None:
        """
        Give a plugin no new streams and no new starts. VMs of it that run keep their open streams until these end; who
        has a VM that does not run has lost them already.
        """
        text = self._crashes.quarantine(name)
        if self._problems.get(name) == text:
            return
        self._problems[name] = text
        _log.error("tenant %s: plugin %s: %s", self._tenant, name, text)
        self._news.quarantined(name)
        mine = [vm.vm_id for vm in self._vms.of(name)]
        self._loop.call_later(self._settings.drained_after_s, self._close, mine)

    def _close(self, vm_ids: list[int]) -> None:
        for vm_id in vm_ids:
            if not self._worker.exited and (vm := self._vms.by_id.get(vm_id)) is not None:
                self._vms.close(vm)
