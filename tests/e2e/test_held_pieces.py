"""
A plugin that holds each piece of a body for a moment and lets it go from a timer: what it lets go arrives at once.

Neither end sends its second piece before the first has arrived at the other, so a piece that waited for more would
wait forever. Envoy's own Wasm filter is measured as well: it shows that the exchange can be done.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

import pytest

from sandboxd.demo import envoy_config, http1
from tests.support import guests, pair, stage
from tests.support.subjects import DUPLEX, Subject

pytestmark = [pytest.mark.envoy, pytest.mark.timeout(60)]

KINDS = ("v8", stage.SHM, DUPLEX)
PIECES = (b"one", b"two, which is longer", b"three")
PIECE_TIMEOUT_S = 5.0
ROUNDS = 10
"""What comes first, a verdict or the next piece, differs from one to the next."""


class Relay:
    """An upstream that reads the request's pieces and sends those of the response, each when it is told to."""

    def __init__(self) -> None:
        self.arrived: asyncio.Queue[bytes] = asyncio.Queue()
        self.to_send: asyncio.Queue[bytes] = asyncio.Queue()
        self.connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Handle one connection: a whole request, then a whole response, again and again."""
        self.connections += 1
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                await http1.read_head(reader)
                async for piece in pieces(reader):
                    self.arrived.put_nowait(piece)
                writer.write(http1.encode_head("HTTP/1.1 200 OK", [("transfer-encoding", "chunked")]))
                while piece := await self.to_send.get():
                    writer.write(http1.encode_chunk(piece))
                writer.write(http1.encode_last_chunk())
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        self.connections -= 1

    async def over(self) -> None:
        """Wait until no connection is open."""
        async with asyncio.timeout(PIECE_TIMEOUT_S):
            while self.connections:
                await asyncio.sleep(0.01)


async def pieces(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Yield the chunks of a body without trailers as they come, and an empty one at its end."""
    while True:
        size = int((await reader.readline()).strip(), 16)
        data = await reader.readexactly(size)
        await reader.readexactly(2)
        yield data
        if not size:
            return


async def gather(source: asyncio.Queue[bytes], size: int) -> bytes:
    """Return the next bytes, however they were cut."""
    found = b""
    async with asyncio.timeout(PIECE_TIMEOUT_S):
        while len(found) < size:
            found += await source.get()
    return found


async def converse(relay: Relay, port: int) -> None:
    """Do one exchange, a piece at a time in either direction."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = [("host", "relay"), ("transfer-encoding", "chunked")]
    writer.write(http1.encode_head("POST /relay HTTP/1.1", head))
    for piece in PIECES:
        writer.write(http1.encode_chunk(piece))
        assert await gather(relay.arrived, len(piece)) == piece
    writer.write(http1.encode_last_chunk())
    async with asyncio.timeout(PIECE_TIMEOUT_S):
        assert await relay.arrived.get() == b""
    relay.to_send.put_nowait(PIECES[0])
    async with asyncio.timeout(PIECE_TIMEOUT_S):
        assert (await http1.read_head(reader)).status == 200
    received: asyncio.Queue[bytes] = asyncio.Queue()

    async def receive() -> None:
        async for piece in pieces(reader):
            received.put_nowait(piece)

    receiving = asyncio.create_task(receive())
    assert await gather(received, len(PIECES[0])) == PIECES[0]
    for piece in PIECES[1:]:
        relay.to_send.put_nowait(piece)
        assert await gather(received, len(piece)) == piece
    relay.to_send.put_nowait(b"")
    async with asyncio.timeout(PIECE_TIMEOUT_S):
        await receiving
    writer.close()
    await writer.wait_closed()


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    with asyncio.Runner() as runner:
        yield runner.get_loop()


@pytest.fixture(scope="module")
def running(
    loop: asyncio.AbstractEventLoop, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Relay, pair.Pair]]:
    """An upstream in this thread's loop, and Envoy with both kinds of filter before it."""
    relay = Relay()
    server = loop.run_until_complete(asyncio.start_server(relay.serve, "127.0.0.1", 0))
    cluster = envoy_config.http_cluster("relay", server.sockets[0].getsockname()[1])
    route = {"match": {"prefix": "/relay"}, "route": {"cluster": "relay"}}
    subject = Subject(guests.C_SLOW_BODY, (DUPLEX,))
    with pair.running((subject,), tmp_path_factory.mktemp("held"), [cluster], [route]) as both:
        yield relay, both
    server.close()
    loop.run_until_complete(relay.over())


@pytest.mark.parametrize("kind", KINDS)
def test_each_piece_goes_on_when_it_is_let_go(
    running: tuple[Relay, pair.Pair], loop: asyncio.AbstractEventLoop, kind: str
) -> None:
    relay, both = running
    for _ in range(ROUNDS):
        loop.run_until_complete(converse(relay, both.port(f"{kind}-{guests.C_SLOW_BODY.name}")))
