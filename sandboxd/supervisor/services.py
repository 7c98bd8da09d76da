"""
The channels of services: plugins that serve no stream, with one VM for the tenant.

To the tenants' deployments this is one more user of channels, which wants services and nothing else. No event is ever
submitted; what comes out of a service's channel is its log, calls that its policy denies, and notes. The worker is
hostile and this is the supervisor, so nothing that a worker does wakes it: all channels are looked at now and then, and
after a look that took long the next one is so much later. A service's rings are small; one that logs faster than it is
read waits.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from sandboxd.channel import layout
from sandboxd.channel.client import VmClient
from sandboxd.channel.completions import Effect, EventLimits, VmRestarted
from sandboxd.channel.errors import ChannelBroken
from sandboxd.channel.memfd import ChannelFds, read_blob
from sandboxd.errors import ConfigError, SandboxdError
from sandboxd.front.counters import PluginCounters
from sandboxd.limits import MAX_POLICY_FILE_BYTES
from sandboxd.policy.load import parse_policy
from sandboxd.policy.model import PluginLimits
from sandboxd.protos import control_pb2 as control
from sandboxd.supervisor.users import SERVICES_INDEX

_log = logging.getLogger(__name__)

LOOK_S: Final = 0.05
"""How long a service's log line may wait."""
SHARE: Final = 10
"""At most one part in so many of the supervisor's time goes into looking."""


class ServiceHost(Protocol):
    """What the daemon does for services; as for fronts."""

    def channel_broken(self, channel_id: int, reason: str) -> None:
        """A VM broke its channel's rules."""

    def channel_drained(self, channel_id: int) -> None:
        """The channel is of no more use."""


@dataclass(slots=True)
class _Service:
    key: str
    """``tenant/plugin``."""
    channel_id: int
    client: VmClient
    limits: PluginLimits
    imports: tuple[str, ...]
    counters: PluginCounters
    is_broken: bool = False

    def look(self) -> None:
        """Deal with all that the VM has said; raises ChannelBroken."""
        if self.is_broken or not self.client.has_completions():
            return
        for completion in self.client.drain():
            if isinstance(completion, VmRestarted):
                if completion.generation > 1:
                    self.counters.count("vm_restarts")
            elif isinstance(completion, Effect) and completion.kind >= layout.LOG:
                asked = self.limits
                self.counters.notices([completion], self.imports, asked.log_lines_per_event, asked.log_bytes_per_event)
            else:  # nothing was submitted, and no stream is open
                raise ChannelBroken("a service answered an event that nobody submitted")


class ServiceChannels:
    """
    The user of channels that has all services.

    Args:
        host: the daemon.
    """

    index = SERVICES_INDEX

    def __init__(self, host: ServiceHost) -> None:
        self._host = host
        self._loop = asyncio.get_running_loop()
        self._services: dict[int, _Service] = {}
        self._counters: dict[str, PluginCounters] = {}
        self._timer: asyncio.TimerHandle | None = None

    @property
    def counters(self) -> dict[str, dict[str, int]]:
        """What was counted, by ``tenant/plugin``."""
        return {key: dict(counters.values) for key, counters in self._counters.items()}

    # --- what a deployment asks of a user of channels ---

    def wants(self, tenant: str, plugin: str) -> bool:  # noqa: ARG002  (as every user of channels)
        """Return True: each service has one VM."""
        return True

    def send(self, frame: control.ToFront, fds: Sequence[int] = ()) -> None:
        """Take a frame as a front would."""
        match frame.WhichOneof("frame"):
            case "attach":
                try:
                    self._attach(frame.attach, fds)
                except (SandboxdError, OSError) as error:
                    _log.error("service %s/%s: %s", frame.attach.tenant, frame.attach.plugin, error)
            case "detach":
                self._close(frame.detach.channel_id)
            case "plugin_down" if frame.plugin_down.removed:
                self._counters.pop(f"{frame.plugin_down.tenant}/{frame.plugin_down.plugin}", None)

    def superseded(self, channel_id: int) -> None:
        """Its version is replaced, or it is in quarantine: there are no streams to wait for."""
        self._close(channel_id)
        self._loop.call_soon(self._host.channel_drained, channel_id)

    def stop(self) -> None:
        """Close everything."""
        for channel_id in list(self._services):
            self._close(channel_id)

    # --- channels ---

    def _attach(self, attach: control.Attach, fds: Sequence[int]) -> None:
        memfd, vm_event_fd, client_event_fd, text_fd = fds
        text = read_blob(text_fd, MAX_POLICY_FILE_BYTES).decode()
        policy = parse_policy(text, attach.policy_path, module_root=None).plugin(attach.plugin)
        if policy is None:
            raise ConfigError(f"has no plugin {attach.plugin}", path=attach.policy_path)
        asked = policy.limits
        key = f"{attach.tenant}/{attach.plugin}"
        counters = self._counters.setdefault(key, PluginCounters(key))
        counters.limit_log(asked.log_lines_per_second, asked.log_bytes_per_second)
        counters.name_budgets(policy)
        own = ChannelFds(os.dup(memfd), os.dup(vm_event_fd), os.dup(client_event_fd), attach.ring_bytes)
        event_limits = EventLimits.of(asked.body_buffer_bytes, asked.log_lines_per_event, asked.log_bytes_per_event)
        try:
            client = VmClient(own, event_limits)
        except ChannelBroken:
            own.close()
            raise
        imports = tuple(attach.imports)
        self._services[attach.channel_id] = _Service(key, attach.channel_id, client, asked, imports, counters)
        if self._timer is None:
            self._timer = self._loop.call_later(LOOK_S, self._look)

    def _close(self, channel_id: int) -> None:
        service = self._services.pop(channel_id, None)
        if service is None:
            return
        self._look_at(service)  # its last words
        service.client.close()
        if not self._services and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        began_s = self._loop.time()
        try:
            for service in list(self._services.values()):
                self._look_at(service)
        finally:  # all tenants' services hang on it
            spent_s = self._loop.time() - began_s
            self._timer = self._loop.call_later(max(LOOK_S, SHARE * spent_s), self._look)

    def _look_at(self, service: _Service) -> None:
        try:
            service.look()
        except ChannelBroken as error:
            self._broken(service, str(error))
        except Exception as error:
            # A mistake of ours that this VM has found: it must not be the other services' trouble.
            _log.exception("service %s: its channel cannot be read", service.key)
            self._broken(service, f"channel cannot be read ({type(error).__name__})")

    def _broken(self, service: _Service, reason: str) -> None:
        service.is_broken = True
        service.counters.count("channel_broken")
        self._loop.call_soon(self._host.channel_broken, service.channel_id, reason)
