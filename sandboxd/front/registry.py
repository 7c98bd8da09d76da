"""
Which plugins there are, and the channels to their VMs: what the supervisor has told this front.

A `Channel` carries streams; a plugin has one current channel for new streams, and older ones that drain.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from sandboxd.channel import layout, memfd
from sandboxd.channel.async_vm import AsyncVm
from sandboxd.channel.client import VmClient
from sandboxd.channel.completions import Effect, Verdict
from sandboxd.channel.hooks import Hooks
from sandboxd.errors import PeerError
from sandboxd.exchange.effects import LateEffects, Stream
from sandboxd.front.counters import Counters, PluginCounters
from sandboxd.front.plugin import Plugin
from sandboxd.policy.failure import Cause

_log = logging.getLogger(__name__)

_LAST_VERDICTS_S = 1.0
"""How long a drained channel waits for what its closed streams still have to log."""
_READY_LOOK_S = 0.005


@dataclass(slots=True)
class Owner:
    """Who is told of a channel's fate."""

    broken: Callable[[int, str], None]
    drained: Callable[[int], None]


class Channel:
    """
    One VM that streams of one plugin use.

    Args:
        channel_id: the supervisor's number.
        plugin: the version of the plugin that the VM runs.
        fds: closed when the channel is.
        counters: the plugin's.
        owner: see `Owner`.
        spin_ns: see `AsyncVm`.
    """

    def __init__(
        self,
        channel_id: int,
        plugin: Plugin,
        fds: memfd.ChannelFds,
        *,
        counters: PluginCounters,
        owner: Owner,
        spin_ns: int,
    ) -> None:
        self.channel_id = channel_id
        self.plugin = plugin
        self.counters = counters
        self.streams: dict[int, Stream] = {}
        self.dead_cause = Cause.WORKER_GONE
        """Why the streams fail once the channel is stopped."""
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._draining = False
        self._closed = False
        self._timers: list[asyncio.TimerHandle] = []
        asked = plugin.policy.limits
        counters.limit_log(asked.log_lines_per_second, asked.log_bytes_per_second)
        counters.name_budgets(plugin.policy)
        self._late = LateEffects(self._loop.call_soon, self.streams)
        hooks = Hooks(self._unclaimed, self._loose, self._restarted, self._broken, self._late.verdict)
        self.vm = AsyncVm(
            VmClient(fds, plugin.event_limits),
            self._loop,
            hooks,
            timeout_ns=plugin.policy.limits.time_per_event_ns,
            spin_ns=spin_ns,
        )

    @property
    def generation(self) -> int:
        """The VM's generation."""
        return self.vm.client.generation

    async def wait_ready(self, timeout_s: float) -> bool:
        """Wait for a VM that starts, or starts again."""
        deadline = self._loop.time() + timeout_s
        while not self._closed and not self.vm.ready:
            if self._loop.time() >= deadline:
                return False
            await asyncio.sleep(_READY_LOOK_S)
        return not self._closed

    @property
    def starting(self) -> bool:
        """Whether the VM has never served yet."""
        return not self._closed and self.vm.client.vm_state == layout.VM_STARTING

    # --- what the VM says ---

    def take(self, verdict: Verdict) -> list[Effect]:
        """Deal with a verdict's notices; returns the effects, which are on its own stream."""
        if verdict.notices:
            self._note(verdict.notices)
        return verdict.effects

    def _unclaimed(self, verdict: Verdict) -> None:
        self.take(verdict)

    def _loose(self, effect: Effect) -> None:
        if effect.kind in layout.NOTICE_KINDS:
            self._note([effect])
        elif effect.stream_id not in self.streams:
            self.counters.count("effects_on_closed_streams")
        else:
            self._late.add(effect)

    def _note(self, notices: list[Effect]) -> None:
        asked = self.plugin.policy.limits
        self.counters.notices(notices, self.plugin.imports, asked.log_lines_per_event, asked.log_bytes_per_event)

    def _restarted(self, generation: int) -> None:
        if generation > 1:
            self.counters.count("vm_restarts")
            self._lose_streams(Cause.VM_DOWN)

    def _broken(self, reason: str) -> None:
        _log.error("%s: channel %d is broken: %s", self.plugin.key, self.channel_id, reason)
        self.counters.count("channel_broken")
        self.dead_cause = Cause.PROTOCOL
        self._lose_streams(Cause.PROTOCOL)
        self._owner.broken(self.channel_id, reason)

    def break_(self, reason: str) -> None:
        """A completion turned out malformed after the channel had accepted it."""
        if not self._closed:
            self.vm.stop()
            self._broken(reason)

    def _lose_streams(self, cause: Cause) -> None:
        streams = list(self.streams.values())
        for stream in streams:
            stream.lost(cause)

    # --- end ---

    def leave(self, stream_id: int) -> None:
        """A stream is over."""
        self.streams.pop(stream_id, None)
        if self._draining and not self.streams:
            self._finish_draining()

    def drain(self, timeout_s: float) -> None:
        """No new streams; tell the owner when the old ones are over, at the latest after the time-out."""
        self._draining = True
        if self.streams:
            self._timers.append(self._loop.call_later(timeout_s, self._drain_expired))
        else:
            self._finish_draining()

    def _drain_expired(self) -> None:
        self.counters.count("drain_expired", len(self.streams))
        self._lose_streams(Cause.WORKER_GONE)
        self.streams.clear()
        self._finish_draining()

    def _finish_draining(self, waited_s: float = 0.0) -> None:
        if self._closed:
            return
        if self.vm.client.outstanding and waited_s < _LAST_VERDICTS_S:
            self._timers = [self._loop.call_later(0.05, self._finish_draining, waited_s + 0.05)]
            return
        self.close()
        self._owner.drained(self.channel_id)

    def close(self) -> None:
        """Give the channel up; streams that are still there are lost."""
        if self._closed:
            return
        self._closed = True
        for timer in self._timers:
            timer.cancel()
        self.vm.stop()
        self._lose_streams(self.dead_cause)
        self.vm.close()


@dataclass(slots=True)
class Entry:
    """One configured plugin."""

    plugin: Plugin
    """For its failure policy, and for new streams' exchanges."""
    counters: PluginCounters
    channel: Channel | None = None
    """For new streams; None: no VM can run now."""
    reason: str = ""
    """Why there is none."""
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    """Not set while a first VM is on its way; then it is worth waiting for one."""

    async def wait_settled(self, timeout_s: float) -> None:
        """Wait until there is a channel, or word that there is none; at most for so long."""
        if not self.settled.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.settled.wait(), timeout_s)


class Registry:
    """All plugins of all tenants that this front serves."""

    def __init__(self, counters: Counters) -> None:
        self.counters = counters
        self._entries: dict[tuple[str, str], Entry] = {}
        self._tenants: dict[str, list[str]] = {}
        self._channels: dict[int, Channel] = {}

    def find(self, tenant: str, plugin: str) -> Entry:
        """
        Return the plugin that a proxy names; an empty ``plugin`` means the tenant's only one.

        Raises:
            PeerError: there is none.
        """
        entry = self._entries.get((tenant, plugin))
        if entry is not None:
            return entry
        names = self._tenants.get(tenant)
        if not names:
            raise PeerError(f"no tenant {_shown(tenant)} is configured")
        if plugin:
            raise PeerError(f"tenant {_shown(tenant)} has no plugin {_shown(plugin)}")
        if len(names) > 1:
            raise PeerError(f"tenant {_shown(tenant)} has several plugins; name one in x-sandboxd-plugin")
        return self._entries[tenant, names[0]]

    def attach(self, channel: Channel, drain_timeout_s: float) -> None:
        """Use a new channel for new streams of its plugin."""
        plugin = channel.plugin
        entry = self._add(plugin)
        old, entry.plugin, entry.channel, entry.reason = entry.channel, plugin, channel, ""
        entry.settled.set()
        self._channels[channel.channel_id] = channel
        if old is not None:
            old.drain(drain_timeout_s)

    def detach(self, channel_id: int, reason: str) -> None:
        """The channel's worker is dead."""
        channel = self._channels.pop(channel_id, None)
        if channel is None:
            return
        entry = self._entries.get((channel.plugin.tenant, channel.plugin.name))
        if entry is not None and entry.channel is channel:
            entry.channel = None
            entry.reason = reason
        channel.close()

    def drained(self, channel_id: int) -> None:
        """The channel closed itself."""
        self._channels.pop(channel_id, None)

    def down(self, plugin: Plugin, reason: str, drain_timeout_s: float, *, starting: bool = False) -> None:
        """The plugin is configured, but no VM of it can run now; with ``starting``, one is on its way."""
        entry = self._add(plugin)
        old, entry.plugin, entry.channel, entry.reason = entry.channel, plugin, None, reason
        if starting:
            entry.settled.clear()
        else:
            entry.settled.set()
        if old is not None:
            old.drain(drain_timeout_s)

    def remove(self, tenant: str, plugin: str, drain_timeout_s: float) -> None:
        """The plugin is not configured any more."""
        entry = self._entries.pop((tenant, plugin), None)
        if entry is None:
            return
        names = self._tenants[tenant]
        names.remove(plugin)
        if not names:
            del self._tenants[tenant]
        entry.settled.set()
        self.counters.forget(entry.plugin.key)
        if entry.channel is not None:
            entry.channel.drain(drain_timeout_s)

    def close(self) -> None:
        """Give up all channels."""
        for channel in list(self._channels.values()):
            channel.close()
        self._channels.clear()

    def _add(self, plugin: Plugin) -> Entry:
        key = (plugin.tenant, plugin.name)
        entry = self._entries.get(key)
        if entry is None:
            entry = self._entries[key] = Entry(plugin, self.counters.plugin(plugin.key))
            self._tenants.setdefault(plugin.tenant, []).append(plugin.name)
        return entry


def _shown(name: str) -> str:
    return ascii(name[:100])
