"""
An HTTP/1.1 upstream that tells what reached it.

The answer is a JSON object of the request: method, path, headers in order (no content-length and the like),
body (size, SHA-256, and the text itself when it is small), trailers. Request headers steer the answer:

====================  ================================================================================
``x-echo-status``     the status, 200 to 599
``x-echo-body-size``  a body of that many bytes of a fixed pattern in place of the JSON
``x-echo-body``       ``reflect``: the request's own body; anything else: that text
``x-echo-type``       the content type
``x-echo-chunks``     ``1,1000,7``: chunked, cut into pieces of these sizes over and over
``x-echo-headers``    ``name=value;name=value``: further response headers
``x-echo-trailers``   ``name=value;name=value``: trailers (the answer is then chunked)
``x-echo-delay-ms``   wait before the answer
====================  ================================================================================
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import threading
from collections.abc import Callable, Iterator

from sandboxd.demo import http1

SMALL_BODY_BYTES = 4096
FRAMING = ("content-length", "transfer-encoding")
"""Headers that say where the body ends: a matter of one hop, not of the message."""

PATTERN = bytes(range(32, 127))
"""What an ``x-echo-body-size`` body repeats; its length is no power of two, so that a lost piece shows."""


def pattern(size: int) -> bytes:
    """Return the first bytes of the endless pattern."""
    return (PATTERN * (size // len(PATTERN) + 1))[:size]


def describe(request: http1.Message) -> dict[str, object]:
    """Return the request as the JSON answer tells it."""
    method, path, _ = request.start_line.split(" ", 2)
    small = len(request.body) <= SMALL_BODY_BYTES
    return {
        "method": method,
        "path": path,
        "headers": [list(header) for header in request.headers if header[0].lower() not in FRAMING],
        "body_size": len(request.body),
        "body_sha256": hashlib.sha256(request.body).hexdigest(),
        "body": request.body.decode("latin-1") if small else None,
        "trailers": [list(trailer) for trailer in request.trailers],
    }


def _pairs(text: str) -> list[tuple[str, str]]:
    return [(name, value) for name, _, value in (part.partition("=") for part in text.split(";") if part)]


def _answer_body(request: http1.Message) -> bytes:
    text = request.value("x-echo-body")
    if text == "reflect":
        return request.body
    if text:
        return text.encode("latin-1")
    if size := request.value("x-echo-body-size"):
        return pattern(int(size))
    return json.dumps(describe(request)).encode() + b"\n"


def answer(request: http1.Message) -> list[bytes]:
    """Return the answer to a request as the pieces to write, one after the other."""
    body = _answer_body(request)
    trailers = _pairs(request.value("x-echo-trailers"))
    sizes = [int(size) for size in request.value("x-echo-chunks").split(",") if size]
    chunked = bool(sizes or trailers)
    headers = [
        ("content-type", request.value("x-echo-type", "application/json")),
        *_pairs(request.value("x-echo-headers")),
        ("transfer-encoding", "chunked") if chunked else ("content-length", str(len(body))),
    ]
    head = http1.encode_head(f"HTTP/1.1 {request.value('x-echo-status', '200')} Echo", headers)
    if request.start_line.startswith("HEAD "):
        return [head]
    if not chunked:
        return [head + body]
    return [head, *map(http1.encode_chunk, http1.cut(body, sizes)), http1.encode_last_chunk(trailers)]


class Recorder:
    """Keeps what an upstream saw; safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: list[http1.Message] = []

    def record(self, request: http1.Message) -> None:
        """Keep a request."""
        with self._lock:
            self._seen.append(request)

    def take(self) -> tuple[http1.Message, ...]:
        """Return what was seen since the last call, oldest first."""
        with self._lock:
            seen, self._seen = tuple(self._seen), []
        return seen


class Echo:
    """A running echo upstream. Every request goes to ``on_request``, if given, before it is answered."""

    def __init__(self, on_request: Callable[[http1.Message], None] | None = None) -> None:
        self._on_request = on_request
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self.port = 0

    async def start(self) -> None:
        """Listen on a free port of the loopback interface."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=http1.MAX_HEAD_BYTES)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """End the server and every open connection."""
        if self._server is not None:
            self._server.close()
        for task in tuple(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        # A proxy may drop a connection at any point, for instance because a filter answered in our place.
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, http1.MalformedMessageError):
            try:
                while True:
                    await self._exchange(reader, writer)
            except asyncio.CancelledError:
                pass
            finally:
                self._connections.discard(task)
                writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await http1.read_body(reader, await http1.read_head(reader))
        if self._on_request is not None:
            self._on_request(request)
        if delay_ms := request.value("x-echo-delay-ms"):
            await asyncio.sleep(int(delay_ms) / 1000)
        for piece in answer(request):
            writer.write(piece)
            await writer.drain()


@contextlib.contextmanager
def running(on_request: Callable[[http1.Message], None] | None = None) -> Iterator[Echo]:
    """
    Run an echo upstream for the length of a ``with`` block, on a thread and event loop of its own.

    ``on_request`` is called on that thread.
    """
    echo = Echo(on_request)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="echo", daemon=True)
    thread.start()
    asyncio.run_coroutine_threadsafe(echo.start(), loop).result(timeout=5)
    try:
        yield echo
    finally:
        asyncio.run_coroutine_threadsafe(echo.stop(), loop).result(timeout=5)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(timeout=5)
        loop.close()
