"""A service that authorizes by bearer token: ``good``, ``bad``, ``slow``, ``broken``, ``redirect``."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

ANSWERS = {
    "good": (b"200 OK", b"x-auth-user: alice\r\nx-other: no\r\n", b"", 0.0),
    "bad": (b"403 Forbidden", b"www-authenticate: Bearer\r\n", b"bad token", 0.0),
    "slow": (b"200 OK", b"", b"", 1.5),
    "broken": (b"500 Broken", b"", b"trace", 0.0),
    "redirect": (b"302 Found", b"location: http://127.0.0.1/\r\n", b"", 0.0),
}


@dataclass
class AuthzServer:
    """What runs."""

    port: int = 0
    questions: list[dict[str, str]] = field(default_factory=list)
    """The headers of each request."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer on one connection."""
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[1:-2]
                headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
                self.questions.append(headers)
                token = headers.get("authorization", "").removeprefix("Bearer ")
                status, more, body, delay_s = ANSWERS.get(token, ANSWERS["bad"])
                await asyncio.sleep(delay_s)
                writer.write(b"HTTP/1.1 %s\r\ncontent-length: %d\r\n%s\r\n%s" % (status, len(body), more, body))
                await writer.drain()
        writer.close()


@contextlib.contextmanager
def running() -> Iterator[AuthzServer]:
    """Serve for the length of a ``with`` block."""
    known = AuthzServer()
    started, loops = threading.Event(), []

    async def serve() -> None:
        stop = asyncio.Event()
        loops.append((asyncio.get_running_loop(), stop))
        server = await asyncio.start_server(known.serve, "127.0.0.1", 0)
        known.port = server.sockets[0].getsockname()[1]
        started.set()
        await stop.wait()
        server.close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    assert started.wait(10)
    try:
        yield known
    finally:
        loop, stop = loops[0]
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
