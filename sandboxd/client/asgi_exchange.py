"""
One HTTP exchange of an ASGI app through a plugin: the app's ``receive`` and ``send`` with the filter in between.

Nothing is gathered here but what the plugin holds back: a piece goes on as soon as the plugin lets it go.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from sandboxd.channel.pairs import Pair
from sandboxd.client import asgi_maps as maps
from sandboxd.client.errors import ExchangeReset
from sandboxd.client.outcome import Outcome, Part
from sandboxd.client.stream import AsyncStream
from sandboxd.errors import PeerError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

PIECE_BYTES = 65536
"""A longer message of the app or the server is shown to the plugin in pieces of this size."""
_BODILESS_STATUS = frozenset({204, 304})
_log = logging.getLogger(__name__)


class AsgiExchange:
    """
    Args:
        stream: the exchange at the plugin.
        scope: the server's.
        receive: the server's.
        send: the server's.
    """

    def __init__(self, stream: AsyncStream, scope: maps.Scope, receive: Receive, send: Send) -> None:
        self.scope: maps.Scope | None = None
        """The app's; None until the plugin lets the request's headers go."""
        self.answered = False
        """The client has got a response from the plugin, not from the app."""
        self.gone = False
        """The client went away."""
        self.complete = False
        """The last message of the response was sent."""
        self._stream = stream
        self._original = scope
        self._receive = receive
        self._send = send
        self._first: Message | None = None
        self._request_read = False
        self._request_out = Part()
        self._request_over = False
        """The app was given the end of the request."""
        self._start: Message | None = None
        """The app's response, which is not shown to the plugin before its first piece of body."""
        self._shown = self._started = False
        self._trailers: list[Pair] = []

    # --- the request ---

    async def begin(self) -> None:
        """Show the plugin the request's headers, and as much of the body as it takes to free them."""
        bodiless = maps.is_bodiless(self._original)
        if bodiless is None:
            self._first = await self._receive()
            if self._first["type"] == "http.disconnect":
                self.gone = True
                return
            bodiless = not self._first.get("body") and not self._first.get("more_body", False)
        self._request_read = bodiless
        headers = maps.request_pairs(self._original)
        await self._take(await self._stream.request_headers(headers, bodiless), request=True)
        while self.scope is None and not self.answered and not self.gone:
            await self._read_more()

    async def _read_more(self) -> None:
        message, self._first = self._first or await self._receive(), None
        if message["type"] == "http.disconnect":
            self.gone = True
            return
        more = bool(message.get("more_body", False))
        self._request_read = not more
        for piece, last in _pieces(message.get("body", b"")):
            await self._take(await self._stream.request_body(piece, last and not more), request=True)
            if self.answered:
                return

    async def receive(self) -> Message:
        """What the app calls for its request."""
        while True:
            if self.answered or self.gone:
                return {"type": "http.disconnect"}
            out = self._request_out
            if not self._request_over and (out.body or out.ended):
                self._request_out = Part()
                self._request_over = out.ended
                return {"type": "http.request", "body": out.body, "more_body": not out.ended}
            if self._request_read:
                message = await self._receive()
                self.gone |= message["type"] == "http.disconnect"
                if self.gone:
                    return message
            else:
                await self._read_more()

    # --- the response ---

    async def send(self, message: Message) -> None:
        """What the app calls with its response."""
        kind = message["type"]
        if self.answered:
            return
        if kind == "http.response.start":
            self._start = message
        elif kind == "http.response.body":
            await self._body(message)
        elif kind == "http.response.trailers":
            await self._app_trailers(message)
        else:
            raise PeerError(f"message {kind} of the app: it would go past the filter")

    async def _body(self, message: Message) -> None:
        if self._start is None:
            raise PeerError("http.response.body before http.response.start")
        data, more = message.get("body", b""), bool(message.get("more_body", False))
        trailers = bool(self._start.get("trailers", False))
        if self._original["method"] == "HEAD" or self._start["status"] in _BODILESS_STATUS:
            if more:
                return
            data, trailers = b"", False
        end = not more and not trailers
        if not self._shown:
            self._shown = True
            headers_end = end and not data
            pairs = maps.response_pairs(self._start)
            if not await self._take(await self._stream.response_headers(pairs, headers_end)) or headers_end:
                return
        elif not data and not end:
            return
        for piece, last in _pieces(data):
            if not await self._take(await self._stream.response_body(piece, last and end)):
                return

    async def _app_trailers(self, message: Message) -> None:
        self._trailers += [(bytes(name).lower(), bytes(value)) for name, value in message.get("headers", ())]
        if not message.get("more_trailers", False):
            await self._take(await self._stream.response_trailers(self._trailers))

    # --- what the plugin lets go ---

    async def _take(self, outcome: Outcome, *, request: bool = False) -> bool:
        """Send on what an outcome lets go; False: the exchange is over."""
        for refusal in outcome.refusals:
            _log.warning("plugin may not write %s: %s", refusal.name, refusal.reason.value)
        if outcome.local_response is not None:
            if not self.answered:
                self.answered = True
                head = self._original["method"] == "HEAD"
                for message in maps.local_messages(outcome.local_response, head=head):
                    await self._send(message)
                self.complete = True
            return False
        if outcome.reset:
            self.answered = True
            if request:  # the app hears of it by its `receive`; the server, when the app has ended
                return False
            raise ExchangeReset("the plugin broke the exchange off")
        parts = (outcome.own, outcome.other) if request else (outcome.other, outcome.own)
        self._take_request(parts[0])
        await self._send_response(parts[1])
        return True

    def _take_request(self, part: Part) -> None:
        if part.headers is not None:
            self.scope = maps.with_request(self._original, part.headers)
        self._request_out.body += part.body
        self._request_out.ended |= part.ended
        if part.trailers:
            _log.warning("ASGI carries no request trailers: %d are left out", len(part.trailers))

    async def _send_response(self, part: Part) -> None:
        if not part:
            return
        assert self._start is not None
        trailers = bool(self._start.get("trailers", False)) and self._original["method"] != "HEAD"
        if part.headers is not None:
            whole = part.ended and not trailers and bool(part.body)
            pairs = maps.with_length(part.headers, len(part.body)) if whole else part.headers
            await self._send(maps.response_start(pairs, trailers=trailers))
            self._started = True
        if part.body or (part.ended and part.trailers is None) or (part.trailers is not None and not trailers):
            await self._send({"type": "http.response.body", "body": part.body, "more_body": not part.ended})
        elif part.trailers is not None:
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})
        if part.trailers is not None:
            await self._send_trailers(part.trailers, carried=trailers)
        self.complete |= part.ended

    async def _send_trailers(self, trailers: list[Pair], *, carried: bool) -> None:
        if carried:
            await self._send({"type": "http.response.trailers", "headers": trailers, "more_trailers": False})
        elif trailers:
            _log.warning("the response was begun without trailers: %d are left out", len(trailers))


def _pieces(data: bytes) -> list[tuple[bytes, bool]]:
    """Return pieces of at most `PIECE_BYTES`, and whether each is the last; no bytes are one piece."""
    starts = range(0, len(data) or 1, PIECE_BYTES)
    return [(data[start : start + PIECE_BYTES], start + PIECE_BYTES >= len(data)) for start in starts]
