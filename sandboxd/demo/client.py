"""
An HTTP/1.1 client for one exchange at a time, which shows everything that came back.

Sends and receives at the same time, because a filter may answer before it has read the whole body.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sandboxd.demo import http1


@dataclass(frozen=True, slots=True)
class Request:
    """
    A request to send as it is written here.

    ``chunks``: sizes of the chunks, used over and over; None sends a content-length. Trailers need chunks.
    """

    method: str = "GET"
    path: str = "/"
    headers: http1.Headers = ()
    body: bytes | None = None
    chunks: Sequence[int] | None = None
    trailers: http1.Headers = ()
    chunk_pause_s: float = 0.0

    def pieces(self, host: str) -> Iterable[bytes]:
        """Return what goes over the wire, cut where it shall be written separately."""
        headers = [("host", host), *self.headers]
        if self.chunks is not None:
            headers.append(("transfer-encoding", "chunked"))
        elif self.body is not None:
            headers.append(("content-length", str(len(self.body))))
        yield http1.encode_head(f"{self.method} {self.path} HTTP/1.1", headers)
        if self.chunks is None:
            yield self.body or b""
            return
        yield from map(http1.encode_chunk, http1.cut(self.body or b"", self.chunks))
        yield http1.encode_last_chunk(self.trailers)


class Connection:
    """A keep-alive connection to one address; one exchange at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str) -> None:
        self._reader = reader
        self._writer = writer
        self._host = host

    @classmethod
    async def open(cls, port: int, host: str = "127.0.0.1", name: str = "demo.local") -> Connection:
        """Connect; ``name`` is what the host header says."""
        reader, writer = await asyncio.open_connection(host, port, limit=http1.MAX_HEAD_BYTES)
        return cls(reader, writer, name)

    async def _send(self, request: Request) -> None:
        # The peer may answer and close before all is sent; the response tells.
        with contextlib.suppress(ConnectionError):
            for piece in request.pieces(self._host):
                self._writer.write(piece)
                await self._writer.drain()
                if request.chunk_pause_s:
                    await asyncio.sleep(request.chunk_pause_s)

    async def _receive(self, request: Request) -> http1.Message:
        head = await http1.read_head(self._reader)
        while 100 <= head.status < 200:
            head = await http1.read_head(self._reader)
        if request.method == "HEAD" or head.status in (204, 304):
            return head
        return await http1.read_body(self._reader, head, until_closed=True)

    async def exchange(self, request: Request, timeout_s: float = 10.0) -> http1.Message:
        """
        Send a request and return the response.

        Raises:
            TimeoutError: no whole response in time.
            ConnectionError, asyncio.IncompleteReadError: the peer ended the connection instead of answering.
        """
        sending = asyncio.create_task(self._send(request))
        try:
            async with asyncio.timeout(timeout_s):
                return await self._receive(request)
        finally:
            sending.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await sending

    async def close(self) -> None:
        """End the connection."""
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()


async def fetch(port: int, request: Request, timeout_s: float = 10.0) -> http1.Message:
    """Do one exchange on a connection of its own. Raises as `Connection.exchange`."""
    connection = await Connection.open(port)
    try:
        return await connection.exchange(request, timeout_s)
    finally:
        await connection.close()
