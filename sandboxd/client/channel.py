"""One channel with its VM, the streams on it, and what its VM says outside of their events."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from sandboxd.channel import layout
from sandboxd.channel.async_vm import AsyncVm
from sandboxd.channel.client import VmClient
from sandboxd.channel.completions import Effect, Verdict
from sandboxd.channel.hooks import Hooks
from sandboxd.channel.memfd import ChannelFds
from sandboxd.client.compiled import Compiled
from sandboxd.exchange.effects import LateEffects, Stream
from sandboxd.policy.failure import Cause

LogSink = Callable[[int, str], None]
"""Takes the level of a plugin's log line (`logging`'s) and its printable text."""

_LEVELS = (logging.DEBUG, logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL)
_READY_LOOK_S = 0.005
_log = logging.getLogger(__name__)


class Channel:
    """
    Args:
        fds: the channel; closed by `close`.
        policy: the plugin's.
        spin_ns: how long to look before sleeping.
        on_broken: told why, once, when the VM breaks the channel's rules.
        log: takes the plugin's log lines.
    """

    def __init__(
        self, fds: ChannelFds, policy: Compiled, spin_ns: int, on_broken: Callable[[str], None], log: LogSink
    ) -> None:
        self.policy = policy
        self.streams: dict[int, Stream] = {}
        self.dead_cause = Cause.WORKER_GONE
        self.closed = False
        self._on_broken = on_broken
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._late = LateEffects(self._loop.call_soon, self.streams)
        self.vm = AsyncVm(
            VmClient(fds, policy.event_limits),
            self._loop,
            Hooks(self._unclaimed, self._loose, self._restarted, self._broken, self._late.verdict),
            timeout_ns=policy.limits.time_per_event_ns,
            spin_ns=spin_ns,
        )

    @property
    def ready(self) -> bool:
        """Whether events may be submitted."""
        return not self.closed and self.vm.ready

    @property
    def starting(self) -> bool:
        """Whether the VM has never served."""
        return not self.closed and self.vm.client.vm_state == layout.VM_STARTING

    async def wait_ready(self, timeout_s: float) -> None:
        """Wait for a VM that starts, no longer than that."""
        deadline_s = self._loop.time() + timeout_s
        while not self.closed and not self.ready and self._loop.time() < deadline_s:
            await asyncio.sleep(_READY_LOOK_S)

    # --- what the VM says ---

    def take(self, verdict: Verdict) -> list[Effect]:
        """Deal with a verdict's notices; returns the effects, which are on its own stream."""
        self._notices(verdict.notices)
        return verdict.effects

    def _unclaimed(self, verdict: Verdict) -> None:
        self.take(verdict)

    def _loose(self, effect: Effect) -> None:
        if effect.kind in layout.NOTICE_KINDS:
            self._notices([effect])
        elif effect.stream_id in self.streams:
            self._late.add(effect)

    def _notices(self, notices: list[Effect]) -> None:
        """Log what one event brought, within the policy's bounds."""
        asked = self.policy.limits
        lines = notices[: asked.log_lines_per_event]
        room = asked.log_bytes_per_event
        for notice in lines:
            if notice.kind == layout.LOG:
                room -= len(notice.payload)
                if room < 0:
                    return
                self._log(_LEVELS[notice.arg], printable(notice.payload))
            elif notice.kind == layout.DENIED:
                names = self.policy.imports
                name = names[notice.arg] if notice.arg < len(names) else "an unknown import"
                self._log(logging.WARNING, f"call of {name} is not granted")

    def _restarted(self, generation: int) -> None:
        if generation > 1:
            self._lose_streams(Cause.VM_DOWN)

    def _broken(self, reason: str) -> None:
        _log.error("%s/%s: channel is broken: %s", self.policy.tenant, self.policy.plugin, reason)
        self.dead_cause = Cause.PROTOCOL
        self._lose_streams(Cause.PROTOCOL)
        self._on_broken(reason)

    def break_(self, reason: str) -> None:
        """A completion turned out malformed after the channel had accepted it."""
        if not self.closed and self.dead_cause is not Cause.PROTOCOL:
            self.vm.stop()
            self._broken(reason)

    def _lose_streams(self, cause: Cause) -> None:
        for stream in list(self.streams.values()):
            stream.lost(cause)

    def close(self) -> None:
        """Give the channel up; streams that are still there are lost."""
        if not self.closed:
            self.closed = True
            self.vm.stop()
            self._lose_streams(self.dead_cause)
            self.streams.clear()
            self.vm.close()


def printable(message: bytes) -> str:
    """Return a guest's text as one line without control characters."""
    text = message.decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
