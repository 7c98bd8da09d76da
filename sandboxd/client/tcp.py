"""One TCP connection on a channel, for asyncio programs."""

from __future__ import annotations

from sandboxd.channel import layout
from sandboxd.client.channel import Channel
from sandboxd.client.compiled import Compiled
from sandboxd.client.tcp_exchange import Flow, TcpExchange, TcpOutcome
from sandboxd.client.vm_stream import VmStream
from sandboxd.exchange.side import Ask
from sandboxd.policy.failure import Cause

PEER_UNKNOWN, PEER_LOCAL, PEER_REMOTE = range(3)
"""Who closed: ``proxy_peer_type_t``."""


class AsyncConnection(VmStream):
    """
    One connection; made by `AsyncSession.open_connection`, which shows the plugin its beginning.

    Each method returns what goes on now, in either direction. Held bytes may also be freed by a tick or an answer to a
    callout: `freed` waits for that.
    """

    def __init__(self, policy: Compiled, channel: Channel | None, attributes: bytes, down: Cause | None = None) -> None:
        self._exchange = TcpExchange(policy)
        super().__init__(self._exchange, channel, attributes, down)

    async def begin(self) -> TcpOutcome:
        """Show that the connection is there; once, before anything else."""
        return await self._event(Ask(layout.NEW_CONNECTION, b"", False))

    async def downstream_data(self, data: bytes, end_of_stream: bool = False) -> TcpOutcome:
        """
        Show bytes from downstream.

        Raises:
            PeerError: they may not come now.
        """
        return await self._data(self._exchange.downstream, data, end_of_stream)

    async def upstream_data(self, data: bytes, end_of_stream: bool = False) -> TcpOutcome:
        """Show bytes from upstream; as `downstream_data`."""
        return await self._data(self._exchange.upstream, data, end_of_stream)

    async def downstream_closed(self, peer: int = PEER_UNKNOWN) -> TcpOutcome:
        """Say that the connection to downstream is over, and who closed it."""
        return await self._event(Ask(layout.DOWNSTREAM_CLOSE, peer.to_bytes(4, "little"), False))

    async def upstream_closed(self, peer: int = PEER_UNKNOWN) -> TcpOutcome:
        """Say that the connection to upstream is over, and who closed it."""
        return await self._event(Ask(layout.UPSTREAM_CLOSE, peer.to_bytes(4, "little"), False))

    async def freed(self) -> TcpOutcome:
        """Wait until something outside the connection's own events frees bytes, closes it or fails."""
        await self._freed.wait()
        self._freed.clear()
        return self._outcome()

    # --- events ---

    async def _data(self, flow: Flow, data: bytes, end_of_stream: bool) -> TcpOutcome:
        async with self._lock:
            ask = self._exchange.data(flow, data, end_of_stream)
            if ask is not None:
                await self._ask(ask)
                self._freed.clear()
        return self._outcome()

    async def _event(self, ask: Ask) -> TcpOutcome:
        async with self._lock:
            if not (self._exchange.finished or self._exchange.bypassed):
                await self._ask(ask)
                self._freed.clear()
        return self._outcome()

    def _outcome(self) -> TcpOutcome:
        exchange = self._exchange
        if exchange.finished or exchange.bypassed:
            self._leave_vm(reset=True)
        return exchange.outcome()
