"""
The VMs of one worker: opened for those who use channels, started again, closed; and what they say of themselves.

Which VMs there should be, and what follows when one fails, is decided elsewhere.
"""

from __future__ import annotations

import asyncio

from sandboxd import limits
from sandboxd.channel.memfd import create_channel
from sandboxd.policy.model import PluginKind
from sandboxd.protos import control_pb2 as control
from sandboxd.supervisor.plugin_metrics import PluginMetrics, Report
from sandboxd.supervisor.prepare import Blob, PreparedPlugin, PreparedTenant
from sandboxd.supervisor.process import WorkerProcess
from sandboxd.supervisor.settings import Settings
from sandboxd.supervisor.shared_region import SharedRegion
from sandboxd.supervisor.users import ChannelUser
from sandboxd.supervisor.vms import Vm, vm_ids
from sandboxd.supervisor.worker_events import Pong
from sandboxd.supervisor.worker_protocol import VmState
from sandboxd.supervisor.worker_requests import WorkerRequests

PONGS_PER_METRICS = 5
"""How many answers to a ping lie between two reports of the plugins' metrics."""


class VmSet:
    """
    Args:
        prepared: the version that the worker runs.
        worker: who has the VMs.
        requests: what the worker asks for on their behalf.
        plugin_ids: the worker's number of each plugin.
        settings: what all deployments share.
        shared: the tenant's shared region.
        metrics: what the tenant's plugins have reported, by name; all its deployments add to it.
    """

    def __init__(
        self,
        prepared: PreparedTenant,
        worker: WorkerProcess,
        requests: WorkerRequests,
        *,
        plugin_ids: dict[str, int],
        settings: Settings,
        shared: SharedRegion,
        metrics: dict[str, PluginMetrics],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._prepared = prepared
        self._worker = worker
        self._requests = requests
        self._plugin_ids = plugin_ids
        self._settings = settings
        self._shared = shared
        self._metrics = metrics
        self.by_id: dict[int, Vm] = {}

    def all(self) -> list[Vm]:
        """Return all that are open now; the caller may close them on the way."""
        return list(self.by_id.values())

    def of(self, plugin: str) -> list[Vm]:
        """Return those of one plugin."""
        return [vm for vm in self.by_id.values() if vm.plugin == plugin]

    def state(self, vm: Vm) -> VmState | None:
        """Return the state that the worker told; None: the worker has it no more."""
        view = self._worker.view.vms.get(vm.vm_id)
        return view.state if view is not None else None

    def has_failed(self, plugin: str) -> bool:
        """Return whether a plugin has VMs, and all of them have failed."""
        states = [self.state(vm) for vm in self.of(plugin)]
        return bool(states) and all(state in (VmState.FAILED, VmState.DOWN) for state in states)

    # --- their life ---

    def open(self, plugin: PreparedPlugin, user: ChannelUser) -> None:
        """Have the worker start one more VM, with a channel that a user is to get. An OSError leaves nothing behind."""
        vm_id = next(vm_ids)
        ring_bytes = self._ring_bytes(plugin)
        blob = self._configuration(plugin)
        fds = create_channel(ring_bytes)
        vm = Vm(vm_id, plugin.policy.name, user, fds, self._loop.create_future())
        self.by_id[vm_id] = vm
        spin = 0 if plugin.policy.kind is PluginKind.SERVICE else self._settings.worker_spin
        request = plugin.open_request(vm_id, self._plugin_ids[vm.plugin], ring_bytes, spin)
        self._worker.open_vm(request, (fds.memfd, fds.vm_event_fd, fds.client_event_fd, blob.fd, self._shared.fd))

    def start_again(self, vm: Vm) -> None:
        """Give a VM that has failed leave to start again."""
        plugin = self._prepared.plugins[vm.plugin]
        if plugin.folders:  # they are not what they were when the VM started first
            self._worker.restart_vm(vm.vm_id, (self._configuration(plugin).fd,))
        else:
            self._worker.restart_vm(vm.vm_id)

    def close(self, vm: Vm) -> None:
        """Have the worker shut a VM down, and forget it."""
        self._leave(vm)
        if not vm.first_outcome.done():
            vm.first_outcome.set_result("")
        self.by_id.pop(vm.vm_id, None)
        self._requests.vm_gone(vm.vm_id)
        self._worker.close_vm(vm.vm_id)

    def worker_gone(self) -> None:
        """All have ended with their worker."""
        for vm in self.by_id.values():
            self._leave(vm)

    def _leave(self, vm: Vm) -> None:
        vm.close_fds()
        if vm.plugin in self._metrics:
            self._metrics[vm.plugin].gone(vm.vm_id)

    def _ring_bytes(self, plugin: PreparedPlugin) -> int:
        return limits.MIN_RING_BYTES if plugin.policy.kind is PluginKind.SERVICE else self._settings.ring_bytes

    def _configuration(self, plugin: PreparedPlugin) -> Blob:
        return plugin.configuration(self._ring_bytes(plugin), self._settings.log_level, self._prepared.policy.shared)

    # --- what they say of themselves ---

    def usage(self, pong: Pong) -> None:
        """Take note of what each VM uses; now and then have them report their metrics as well."""
        for usage in pong.vms:
            if usage.vm_id in self.by_id:
                self.by_id[usage.vm_id].usage = usage
        if pong.number % PONGS_PER_METRICS == 0:
            self._worker.view.expect_metrics()
            self._worker.send(control.ToWorker(read_metrics=control.ReadMetrics()))

    def reported(self, report: Report) -> None:
        """Take note of a VM's metrics."""
        vm = self.by_id.get(report.vm_id)
        if vm is not None:
            most = self._prepared.plugins[vm.plugin].policy.limits.metrics
            metrics = self._metrics.setdefault(vm.plugin, PluginMetrics(most))
            metrics.most = most
            metrics.take(report)
