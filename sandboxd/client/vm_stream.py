"""What a stream of either kind has in common: it submits events, meets what comes of them, and leaves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import Protocol

from sandboxd.channel import layout
from sandboxd.channel.completions import Effect, Verdict
from sandboxd.channel.errors import ChannelBroken, ChannelFull
from sandboxd.channel.hooks import Lost
from sandboxd.client.channel import Channel
from sandboxd.exchange.side import Ask
from sandboxd.policy.failure import Cause, cause_of_vm_failure

_CODE_CAUSES = {
    layout.CODE_UNKNOWN_STREAM: Cause.VM_DOWN,
    layout.CODE_OUT_OF_ORDER: Cause.PROTOCOL,
    layout.CODE_LIMIT: Cause.LIMIT,
    layout.CODE_STREAM_OVER: Cause.PROTOCOL,
}


class Answered(Protocol):
    """The pure half: an HTTP exchange or a TCP connection."""

    @property
    def waiting(self) -> bool:
        """Whether something is held that no more input can free."""

    def answer(self, effects: Iterable[Effect], state: int) -> None:
        """Take what came of an event; raises ChannelBroken."""

    def late(self, effects: Iterable[Effect]) -> None:
        """Take effects that arose outside its events; raises ChannelBroken."""

    def fail(self, cause: Cause) -> None:
        """The plugin failed: do what the policy says."""


class VmStream:
    """
    Args:
        answered: takes what comes of events.
        channel: to the VM; None: the plugin cannot be reached.
        attributes: encoded properties.
        down: why it cannot be reached.
    """

    def __init__(self, answered: Answered, channel: Channel | None, attributes: bytes, down: Cause | None) -> None:
        self._answered = answered
        self._channel = channel
        self._attributes = attributes
        self._stream_id = 0
        self._lost = down
        self._lock = asyncio.Lock()
        self._freed = asyncio.Event()
        self._closed = False

    async def _ask(self, ask: Ask) -> None:
        event_seq = self._submit(ask)
        if not event_seq:
            return
        channel = self._channel
        assert channel is not None
        outcome = channel.vm.poll(event_seq)
        if outcome is None:
            outcome = await self._wait(channel, event_seq)
        if isinstance(outcome, Verdict):
            self._verdict(channel, outcome)
        elif outcome is Lost.TIMEOUT:
            self._answered.fail(Cause.TIMEOUT)
        else:
            down = outcome is Lost.DOWN
            self._answered.fail(cause_of_vm_failure(channel.vm.client.vm_failure) if down else channel.dead_cause)
        self._freed.set()  # an event of one direction may free the other

    async def _wait(self, channel: Channel, event_seq: int) -> Verdict | Lost:
        try:
            return await channel.vm.wait(event_seq)
        except asyncio.CancelledError:
            # What becomes of what was submitted is not waited for: nobody can say any more what goes on.
            self._answered.fail(Cause.TIMEOUT)
            self._freed.set()
            raise

    def _submit(self, ask: Ask) -> int:
        """Submit an event; 0 if that is not possible and the failure policy has answered."""
        channel, exchange = self._channel, self._answered
        if self._lost is not None or channel is None or not channel.ready:
            exchange.fail(self._lost or Cause.VM_DOWN)
            return 0
        now = time.time_ns()
        try:
            if not self._stream_id:
                self._stream_id = channel.vm.open_stream(self._attributes, now)
                channel.streams[self._stream_id] = self
            return channel.vm.submit(self._stream_id, ask.kind, ask.payload, ask.end_of_stream, now)
        except ChannelFull:
            exchange.fail(Cause.LIMIT)
        except ChannelBroken:
            exchange.fail(Cause.PROTOCOL)
        return 0

    def _verdict(self, channel: Channel, verdict: Verdict) -> None:
        effects = channel.take(verdict)
        if verdict.code != layout.CODE_OK:
            self._answered.fail(_CODE_CAUSES[verdict.code])
            return
        try:
            self._answered.answer(effects, verdict.state)
        except ChannelBroken as error:
            channel.break_(str(error))
            self._answered.fail(Cause.PROTOCOL)

    # --- from the channel ---

    def late(self, effects: list[Effect]) -> None:
        """Effects on this stream arose outside its own events."""
        if self._channel is None or not self._stream_id:
            return
        try:
            self._answered.late(effects)
        except ChannelBroken as error:
            self._channel.break_(str(error))
            self._answered.fail(Cause.PROTOCOL)
        self._freed.set()

    def lost(self, cause: Cause) -> None:
        """The VM that had this stream is gone. An event that is with it learns so by its outcome."""
        self._lost = cause
        if self._freed_waits:
            self._answered.fail(cause)
        self._freed.set()

    @property
    def _freed_waits(self) -> bool:
        return self._answered.waiting and not self._lock.locked()

    # --- end ---

    def _leave_vm(self, reset: bool) -> None:
        stream_id, channel = self._stream_id, self._channel
        if stream_id and channel is not None:
            self._stream_id = 0
            self._lost = self._lost or Cause.VM_DOWN
            channel.streams.pop(stream_id, None)
            if not channel.closed:
                channel.vm.close_stream(stream_id, reset, time.time_ns())

    def flush(self) -> None:
        """Show the VM at once what it was not woken for, such as the end of a stream."""
        channel = self._channel
        if channel is not None and not channel.closed:
            channel.vm.client.wake_if_asleep()
            channel.vm.flush()

    def close(self, *, reset: bool = False) -> None:
        """
        End the exchange: the plugin's last callbacks run.

        Args:
            reset: it ended early, because a side went away.
        """
        if not self._closed:
            self._closed = True
            self._leave_vm(reset)
