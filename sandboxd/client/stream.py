"""One exchange on a channel, for asyncio programs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

from sandboxd.channel import layout
from sandboxd.channel.async_vm import Lost
from sandboxd.channel.completions import Effect, Verdict
from sandboxd.channel.errors import ChannelBroken, ChannelFull
from sandboxd.channel.pairs import Pair
from sandboxd.client.channel import Channel
from sandboxd.client.compiled import Compiled
from sandboxd.client.direction import Ask, Direction
from sandboxd.client.exchange import Exchange
from sandboxd.client.outcome import Outcome
from sandboxd.policy.failure import Cause

_CODE_CAUSES = {
    layout.CODE_UNKNOWN_STREAM: Cause.VM_DOWN,
    layout.CODE_OUT_OF_ORDER: Cause.PROTOCOL,
    layout.CODE_LIMIT: Cause.LIMIT,
    layout.CODE_STREAM_OVER: Cause.PROTOCOL,
}


class AsyncStream:
    """
    One exchange; made by `AsyncSession.open_stream`.

    Headers are pairs of bytes with HTTP/2's pseudo-headers (``:method``, ``:path``, ``:status``). Events may come from
    two tasks, one for each direction; each outcome can free parts of both.
    """

    def __init__(self, policy: Compiled, channel: Channel | None, attributes: bytes, down: Cause | None = None) -> None:
        self._exchange = Exchange(policy)
        self._channel = channel
        self._attributes = attributes
        self._stream_id = 0
        self._lost = down
        self._lock = asyncio.Lock()
        self._freed = asyncio.Event()
        self._closed = False

    async def request_headers(self, pairs: Iterable[Pair], end_of_stream: bool = False) -> Outcome:
        """
        Show the request's headers to the plugin.

        Returns when something goes on or more input is needed. What is held with no more input to free it is waited
        for as long as the policy's ``time_per_event``, then the plugin has failed.

        Raises:
            PeerError: the event may not come now.
        """
        return await self._event(layout.REQUEST_HEADERS, list(pairs), end_of_stream)

    async def request_body(self, data: bytes, end_of_stream: bool = False) -> Outcome:
        """Show a piece of the request's body; as `request_headers`."""
        return await self._event(layout.REQUEST_BODY, bytes(data), end_of_stream)

    async def request_trailers(self, pairs: Iterable[Pair]) -> Outcome:
        """Show the request's trailers; as `request_headers`."""
        return await self._event(layout.REQUEST_TRAILERS, list(pairs), False)

    async def response_headers(self, pairs: Iterable[Pair], end_of_stream: bool = False) -> Outcome:
        """Show the response's headers; as `request_headers`."""
        return await self._event(layout.RESPONSE_HEADERS, list(pairs), end_of_stream)

    async def response_body(self, data: bytes, end_of_stream: bool = False) -> Outcome:
        """Show a piece of the response's body; as `request_headers`."""
        return await self._event(layout.RESPONSE_BODY, bytes(data), end_of_stream)

    async def response_trailers(self, pairs: Iterable[Pair]) -> Outcome:
        """Show the response's trailers; as `request_headers`."""
        return await self._event(layout.RESPONSE_TRAILERS, list(pairs), False)

    # --- events ---

    async def _event(self, kind: int, content: list[Pair] | bytes, end_of_stream: bool) -> Outcome:
        exchange = self._exchange
        side = exchange.direction(kind)
        async with self._lock:
            ask = exchange.receive(kind, content, end_of_stream)
            if ask is not None:
                await self._ask(ask)
        if side.waiting and not exchange.finished:
            await self._wait_freed(side)
        if exchange.finished or exchange.bypassed:
            self._leave_vm(reset=True)
        return exchange.outcome(side)

    async def _ask(self, ask: Ask) -> None:
        event_seq = self._submit(ask)
        if not event_seq:
            return
        channel = self._channel
        assert channel is not None
        outcome = channel.vm.poll(event_seq)
        if outcome is None:
            outcome = await channel.vm.wait(event_seq)
        if isinstance(outcome, Verdict):
            self._verdict(channel, outcome)
        elif outcome is Lost.TIMEOUT:
            self._exchange.fail(Cause.TIMEOUT)
        else:
            self._exchange.fail(Cause.TRAP if outcome is Lost.DOWN else channel.dead_cause)
        self._freed.set()  # an event of one direction may free the other

    def _submit(self, ask: Ask) -> int:
        """Submit an event; 0 if that is not possible and the failure policy has answered."""
        channel, exchange = self._channel, self._exchange
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
            self._exchange.fail(_CODE_CAUSES[verdict.code])
            return
        try:
            self._exchange.answer(effects, verdict.state)
        except ChannelBroken as error:
            channel.break_(str(error))
            self._exchange.fail(Cause.PROTOCOL)

    async def _wait_freed(self, side: Direction) -> None:
        exchange = self._exchange
        try:
            async with asyncio.timeout(exchange.policy.limits.time_per_event_ns / 1e9):
                while side.waiting and not exchange.finished:
                    self._freed.clear()
                    await self._freed.wait()
        except TimeoutError:
            exchange.fail(Cause.TIMEOUT)

    # --- from the channel ---

    def late(self, effects: list[Effect]) -> None:
        """Effects on this stream arose outside its own events."""
        if self._channel is None or not self._stream_id:
            return
        try:
            self._exchange.late(effects)
        except ChannelBroken as error:
            self._channel.break_(str(error))
            self._exchange.fail(Cause.PROTOCOL)
        self._freed.set()

    def lost(self, cause: Cause) -> None:
        """The VM that had this stream is gone. An event that is with it learns so by its outcome."""
        self._lost = cause
        if self._freed_waits:
            self._exchange.fail(cause)
        self._freed.set()

    @property
    def _freed_waits(self) -> bool:
        waiting = self._exchange.request.waiting or self._exchange.response.waiting
        return waiting and not self._lock.locked()

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
