"""ASGI middleware: a plugin of a tenant filters what goes through an app."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Literal

from sandboxd.client import asgi_maps as maps
from sandboxd.client.asgi_exchange import AsgiExchange, Receive, Send
from sandboxd.client.connection import Address
from sandboxd.client.errors import ExchangeReset
from sandboxd.client.session import AsyncSession
from sandboxd.policy.model import FailurePolicy, OnFailure

App = Callable[[maps.Scope, Receive, Send], Awaitable[None]]


class SandboxMiddleware:
    """
    Shows each HTTP exchange of an app to a plugin and does what it says.

    Attaches with the first request, and again whenever it has to. While the plugin is down its own policy answers;
    while the daemon is away, ``failure`` does.

    Args:
        app: the ASGI app.
        socket_path: the daemon's attach socket.
        tenant: the tenant's name.
        plugin: the plugin's; empty: the tenant's only one.
        failure: ``closed``: a request is answered with ``status``; ``open``: it goes to the app unfiltered.
        status: 200 to 599.
        websockets: plugins see HTTP alone: ``refuse`` WebSocket connections, or let them ``pass`` unfiltered.
        daemon_uid: user that must own the other end of the socket; None: whoever its permissions let in.
    """

    def __init__(
        self,
        app: App,
        *,
        socket_path: str | Path,
        tenant: str,
        plugin: str = "",
        failure: Literal["closed", "open"] = "closed",
        status: int = 503,
        websockets: Literal["refuse", "pass"] = "refuse",
        daemon_uid: int | None = None,
    ) -> None:
        if failure not in ("closed", "open"):
            raise ValueError(f"failure: {failure!r} is not allowed (allowed: closed, open)")
        if websockets not in ("refuse", "pass"):
            raise ValueError(f"websockets: {websockets!r} is not allowed (allowed: refuse, pass)")
        if not 200 <= status <= 599:
            raise ValueError(f"status: {status} is not allowed (allowed: 200 to 599)")
        self._app = app
        self._address = Address(Path(socket_path), tenant, plugin, daemon_uid)
        self._fallback = FailurePolicy(OnFailure(failure), status)
        self._websockets = websockets
        self._session: AsyncSession | None = None

    async def __call__(self, scope: maps.Scope, receive: Receive, send: Send) -> None:
        """Serve one scope."""
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "lifespan":
            try:
                await self._app(scope, receive, send)
            finally:
                await self.close()
        elif scope["type"] == "websocket" and self._websockets == "pass":
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
        else:
            raise ValueError(f"scope of type {scope['type']!r} cannot be filtered (allowed: http, lifespan, websocket)")

    @property
    def session(self) -> AsyncSession:
        """The session with the daemon; made when first asked for."""
        if self._session is None:
            self._session = AsyncSession(self._address, fallback=self._fallback)
        return self._session

    async def _http(self, scope: maps.Scope, receive: Receive, send: Send) -> None:
        stream = await self.session.open_stream(maps.attributes(scope))
        exchange = AsgiExchange(stream, scope, receive, send)
        try:
            await exchange.begin()
            if exchange.scope is not None and not exchange.answered and not exchange.gone:
                await self._app(exchange.scope, exchange.receive, exchange.send)
                if exchange.answered and not exchange.complete:
                    # What is left to do is to have the server break the connection off.
                    raise ExchangeReset("the plugin broke the exchange off")
        finally:
            stream.close(reset=exchange.gone or not exchange.complete)

    async def close(self) -> None:
        """Give the channel up; the next request attaches again."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()
