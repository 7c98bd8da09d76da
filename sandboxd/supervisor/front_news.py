"""What fronts and other users of channels are told of a tenant's plugins: here is a channel, or why there is none."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sandboxd.errors import SandboxdError
from sandboxd.policy.model import TenantPolicy
from sandboxd.supervisor import front_frames
from sandboxd.supervisor.crash_reports import CrashReports
from sandboxd.supervisor.prepare import Blob, PreparedTenant, policy_text
from sandboxd.supervisor.settings import Settings
from sandboxd.supervisor.users import ChannelUser, UserSet, is_for
from sandboxd.supervisor.vm_set import VmSet
from sandboxd.supervisor.vms import Vm
from sandboxd.supervisor.worker_protocol import VmState


@dataclass(frozen=True, slots=True)
class Herald:
    """Tells users why plugins of one version have no channel; of each plugin those only that it is for."""

    policy: TenantPolicy
    text: Blob | None
    """The policy file's: whoever serves the plugin's streams reads its failure policy there. None: not to be had."""

    def down(
        self, user: ChannelUser, plugin: str, reason: str, *, removed: bool = False, starting: bool = False
    ) -> None:
        """Tell one user that a plugin has no channel for it now; a name that the version does not have is no news."""
        policy = self.policy.plugin(plugin)
        if policy is not None and is_for(user, policy):
            frame = front_frames.plugin_down(self.policy, plugin, reason, removed=removed, starting=starting)
            user.send(frame, (self.text.fd,) if self.text is not None else ())

    def all_down(
        self, users: Iterable[ChannelUser], reason: str, *, removed: bool = False, starting: bool = False
    ) -> None:
        """Tell users that no plugin has a channel."""
        for user in users:
            for plugin in self.policy.plugins:
                self.down(user, plugin.name, reason, removed=removed, starting=starting)


def tell_why_down(
    policy: TenantPolicy, prepared: PreparedTenant | None, users: Iterable[ChannelUser], error: str
) -> None:
    """
    Tell users of a tenant that serves nothing yet, so that its streams get its failure policy.

    Args:
        policy: the version that should run.
        prepared: the same or an older one, if one was prepared: its text is at hand.
        users: who is told.
        error: why it does not run; empty: it is starting.
    """
    try:
        text = prepared.text if prepared else Blob("policy", policy_text(policy).encode())
    except (SandboxdError, OSError):
        return  # the file has changed since, or there is no memory file to be had: who applies it says so
    Herald(policy, text).all_down(users, error or "it is starting", starting=not error)


class FrontNews:
    """
    What is told of one deployment, from the moment that it is live.

    Args:
        prepared: the version.
        fronts: who is told.
        vms: the deployment's.
        crashes: knows what is in quarantine.
        problems: why a plugin does not run, by name; a plugin that gets a channel has none.
        settings: what all deployments share.
        redaction_key: the tenant's key for the ``hash`` redaction.
    """

    def __init__(
        self,
        prepared: PreparedTenant,
        fronts: UserSet,
        vms: VmSet,
        *,
        crashes: CrashReports,
        problems: dict[str, str],
        settings: Settings,
        redaction_key: bytes,
    ) -> None:
        self.live = False
        """Whether this deployment gets the tenant's new streams."""
        self._prepared = prepared
        self._tenant = prepared.policy.tenant
        self._herald = Herald(prepared.policy, prepared.text)
        self._fronts = fronts
        self._vms = vms
        self._crashes = crashes
        self._problems = problems
        self._settings = settings
        self._redaction_key = redaction_key

    def go_live(self) -> None:
        """Hand out the channels that there are, and report the plugins that have none."""
        self.live = True
        for vm in self._vms.all():
            self.of_vm(vm)
        self.report_problems(self._fronts.ready.values())

    def introduce(self, front: ChannelUser) -> None:
        """Tell a new front of every plugin; the channels of those that can run follow."""
        down = self._not_served()
        for plugin in self._prepared.policy.plugins:
            name = plugin.name
            if name in down:
                self._herald.down(front, name, self._problems[name])
            else:
                self._herald.down(front, name, "it is starting", starting=True)

    def report_problems(self, fronts: Iterable[ChannelUser]) -> None:
        """Tell fronts of the plugins that get no new streams: in quarantine, or without any VM."""
        down = self._not_served()
        for front in fronts:
            for name in down:
                self._herald.down(front, name, self._problems[name])

    def _not_served(self) -> list[str]:
        have = {vm.plugin for vm in self._vms.all()}
        return [name for name in self._problems if name not in have or self._crashes.quarantine(name)]

    def of_vm(self, vm: Vm) -> None:
        """Hand a VM's channel to its user if the VM runs; if it does not, say why. Nothing before `go_live`."""
        state = self._vms.state(vm)
        if vm.attached or state is None or not self.live or not vm.front.wants(self._tenant, vm.plugin):
            return
        if self._crashes.quarantine(vm.plugin):
            self._herald.down(vm.front, vm.plugin, self._problems.get(vm.plugin, "in quarantine"))
        elif state is VmState.RUNNING:
            self._attach(vm)
        elif state in (VmState.FAILED, VmState.DOWN):
            self._herald.down(vm.front, vm.plugin, self._problems.get(vm.plugin, "its VM does not start"))

    def _attach(self, vm: Vm) -> None:
        if vm.fds is None:
            return
        frame = front_frames.attach(
            self._prepared.policy,
            self._prepared.plugins[vm.plugin],
            channel_id=vm.vm_id,
            ring_bytes=vm.fds.ring_bytes,
            redaction_key=self._redaction_key,
            drain_timeout_s=self._settings.drain_timeout_s,
        )
        channel = (vm.fds.memfd, vm.fds.vm_event_fd, vm.fds.client_event_fd)
        vm.front.send(frame, (*channel, self._prepared.text.fd))
        vm.attached = True
        vm.close_fds()
        self._problems.pop(vm.plugin, None)

    def quarantined(self, name: str) -> None:
        """New streams of a plugin get its failure policy; those that are open go on."""
        if not self.live:
            return
        for front in self._fronts.ready.values():
            self._herald.down(front, name, self._problems[name])
        for vm in self._vms.of(name):
            if vm.attached:
                vm.front.superseded(vm.vm_id)

    def retire(self, removed: Iterable[str]) -> None:
        """New streams go elsewhere; plugins that are configured no more are taken back."""
        self.live = False
        for name in removed:
            for front in self._fronts.ready.values():
                self._herald.down(front, name, "removed from the configuration", removed=True)
        for vm in self._vms.all():
            if vm.attached:
                vm.front.superseded(vm.vm_id)

    def worker_gone(self, reason: str) -> None:
        """All channels are dead."""
        for vm in self._vms.all():
            if vm.attached:
                vm.front.send(front_frames.detach(vm.vm_id, reason))
            if self.live:
                self._herald.down(vm.front, vm.plugin, reason)
