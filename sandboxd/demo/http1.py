"""
HTTP/1.1 messages, as much as an echo upstream and a test client need.

Reads and writes one message at a time over asyncio streams; keeps order, case and repeats of headers.
Everything read is bounded. No connection handling, no redirects, no encodings other than chunked.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

MAX_HEAD_BYTES = 256 * 1024
MAX_BODY_BYTES = 64 * 1024 * 1024

Headers = tuple[tuple[str, str], ...]
"""Name and value as they stood on the wire, in order, repeats kept."""


class MalformedMessageError(Exception):
    """The peer sent something that is no HTTP/1.1 message, or one past a bound."""


@dataclass(frozen=True, slots=True)
class Message:
    """A request or response as it came."""

    start_line: str
    headers: Headers
    body: bytes = b""
    trailers: Headers = ()

    @property
    def status(self) -> int:
        """The status code of a response."""
        return int(self.start_line.split(" ", 2)[1])

    def values(self, name: str) -> tuple[str, ...]:
        """Return the values of every header of that name, in order."""
        return tuple(value for key, value in self.headers if key.lower() == name)

    def value(self, name: str, default: str = "") -> str:
        """Return the first value of the header, or the default."""
        return next(iter(self.values(name)), default)


def encode_head(start_line: str, headers: Iterable[tuple[str, str]]) -> bytes:
    """Return the start line and headers with the empty line that ends them."""
    lines = [start_line, *(f"{name}: {value}" for name, value in headers), "", ""]
    return "\r\n".join(lines).encode("latin-1")


def encode_chunk(data: bytes) -> bytes:
    """Return one chunk; empty data gives nothing, because an empty chunk would end the body."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


def encode_last_chunk(trailers: Iterable[tuple[str, str]] = ()) -> bytes:
    """Return the end of a chunked body with its trailers."""
    return b"0\r\n" + encode_head("", trailers)[2:]


def cut(body: bytes, sizes: Iterable[int]) -> Iterator[bytes]:
    """Cut the body into pieces of these sizes, over and over; no sizes: one piece."""
    pieces = itertools.cycle(tuple(sizes) or (len(body) or 1,))
    start = 0
    while start < len(body):
        size = max(1, next(pieces))
        yield body[start : start + size]
        start += size


async def _read_line(reader: asyncio.StreamReader) -> str:
    try:
        line = await reader.readuntil(b"\r\n")
    except asyncio.LimitOverrunError as error:
        raise MalformedMessageError("a line is too long") from error
    return line[:-2].decode("latin-1")


async def _read_headers(reader: asyncio.StreamReader) -> Headers:
    headers: list[tuple[str, str]] = []
    size = 0
    while line := await _read_line(reader):
        size += len(line)
        name, colon, value = line.partition(":")
        if not colon or size > MAX_HEAD_BYTES:
            raise MalformedMessageError("a bad header line, or too many")
        headers.append((name, value.strip()))
    return tuple(headers)


async def _read_chunked(reader: asyncio.StreamReader) -> tuple[bytes, Headers]:
    body = bytearray()
    while True:
        line = await _read_line(reader)
        try:
            size = int(line.partition(";")[0], 16)
        except ValueError as error:
            raise MalformedMessageError(f"a bad chunk size: {line[:20]!r}") from error
        if size == 0:
            return bytes(body), await _read_headers(reader)
        if not 0 < size <= MAX_BODY_BYTES - len(body):
            raise MalformedMessageError("the body is too long")
        body += await reader.readexactly(size)
        if await reader.readexactly(2) != b"\r\n":
            raise MalformedMessageError("a chunk does not end where its size says")


async def read_head(reader: asyncio.StreamReader) -> Message:
    """
    Read a start line and headers; the body is left where it is.

    Raises:
        asyncio.IncompleteReadError: the peer closed the connection; ``partial`` is empty between messages.
        MalformedMessageError: what came is not HTTP/1.1.
    """
    start_line = await _read_line(reader)
    return Message(start_line, await _read_headers(reader))


async def read_body(reader: asyncio.StreamReader, head: Message, *, until_closed: bool = False) -> Message:
    """
    Read the body that these headers announce and return the whole message.

    Args:
        until_closed: without a length the body goes on to the end of the connection, as in a response.
    """
    if head.value("transfer-encoding").lower() == "chunked":
        body, trailers = await _read_chunked(reader)
        return Message(head.start_line, head.headers, body, trailers)
    length = head.value("content-length")
    if not length:
        body = await reader.read(-1) if until_closed else b""
    elif length.isdigit() and int(length) <= MAX_BODY_BYTES:
        body = await reader.readexactly(int(length))
    else:
        raise MalformedMessageError(f"a bad content-length: {length[:20]!r}")
    return Message(head.start_line, head.headers, body)
