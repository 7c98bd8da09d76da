"""One exchange on a channel, for asyncio programs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from sandboxd.channel import layout
from sandboxd.channel.pairs import Pair
from sandboxd.client.channel import Channel
from sandboxd.client.compiled import Compiled
from sandboxd.client.direction import Direction
from sandboxd.client.exchange import Exchange
from sandboxd.client.outcome import Outcome
from sandboxd.client.vm_stream import VmStream
from sandboxd.policy.failure import Cause


class AsyncStream(VmStream):
    """
    One exchange; made by `AsyncSession.open_stream`.

    Headers are pairs of bytes with HTTP/2's pseudo-headers (``:method``, ``:path``, ``:status``). Events may come from
    two tasks, one for each direction; each outcome can free parts of both.
    """

    def __init__(self, policy: Compiled, channel: Channel | None, attributes: bytes, down: Cause | None = None) -> None:
        self._exchange = Exchange(policy)
        super().__init__(self._exchange, channel, attributes, down)

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

    async def _wait_freed(self, side: Direction) -> None:
        exchange = self._exchange
        try:
            async with asyncio.timeout(exchange.policy.limits.time_per_pause_ns / 1e9):
                while side.waiting and not exchange.finished:
                    self._freed.clear()
                    await self._freed.wait()
        except TimeoutError:
            exchange.fail(Cause.TIMEOUT)
