"""Messages on the wire: written, read back, and refused when they are none."""

from __future__ import annotations

import asyncio

import pytest

from sandboxd.demo import http1
from sandboxd.demo.client import Request


def reader_of(data: bytes) -> asyncio.StreamReader:
    """Return a stream that holds these bytes and ends."""
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    return reader


async def read(data: bytes, *, until_closed: bool = False) -> http1.Message:
    """Read one message."""
    reader = reader_of(data)
    return await http1.read_body(reader, await http1.read_head(reader), until_closed=until_closed)


async def test_a_request_survives_the_wire() -> None:
    """Order, case and repeats of headers, a body in odd chunks, and repeated trailers."""
    headers = (("X-A", "1"), ("x-a", "2"), ("x-empty", ""))
    request = Request("POST", "/p?q", headers, b"0123456789", (3, 1), (("t", "1"), ("t", "2")))

    message = await read(b"".join(request.pieces("example")))

    assert message.start_line == "POST /p?q HTTP/1.1"
    assert message.headers == (("host", "example"), *headers, ("transfer-encoding", "chunked"))
    assert message.body == b"0123456789"
    assert message.trailers == (("t", "1"), ("t", "2"))


def test_chunks_have_the_sizes_that_were_asked_for() -> None:
    """The sizes repeat, and the last piece is what is left."""
    assert list(http1.cut(b"0123456789", (3, 1))) == [b"012", b"3", b"456", b"7", b"89"]
    assert list(http1.cut(b"abc", ())) == [b"abc"]
    assert list(http1.cut(b"", (3,))) == []


async def test_a_length_ends_the_body() -> None:
    """What follows belongs to the next message."""
    assert (await read(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nabHTTP")).body == b"ab"


async def test_a_response_without_length_goes_on_to_the_end() -> None:
    """A request without one has no body."""
    data = b"HTTP/1.1 200 OK\r\n\r\nabc"
    assert (await read(data, until_closed=True)).body == b"abc"
    assert (await read(data)).body == b""


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n-5\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nabcd\r\n0\r\n\r\n",
        b"x: y\r\n" + b"a: " + b"b" * 300_000 + b"\r\n\r\n",
    ],
)
async def test_malformed_messages_are_refused(data: bytes) -> None:
    """Never a hang, never a guess."""
    with pytest.raises(http1.MalformedMessageError):
        await read(data)


async def test_a_message_that_is_cut_off_is_told() -> None:
    """The end of the connection in the middle is no end of the message."""
    with pytest.raises(asyncio.IncompleteReadError):
        await read(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nabc")
