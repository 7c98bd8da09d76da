"""The broker's gRPC connections: what they do not do, and how long they last."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_network
from typing import Any

import grpc
import pytest

from sandboxd.egress import grpc as grpc_module
from sandboxd.egress.counters import Counters
from sandboxd.egress.desk import Destination, TenantDesk
from sandboxd.egress.grpc import GrpcUpstream
from sandboxd.policy.callouts import Scheme, Upstream
from sandboxd.policy.model import RedactionPolicy
from sandboxd.policy.redact import Redactor
from sandboxd.supervisor.upstream_tls import Material

UNARY, STREAM = "/test.Echo/Unary", "/test.Echo/Stream"


async def _lookup(host: str, port: int) -> list[str]:
    raise AssertionError((host, port))


def upstream(port: int, host: str = "127.0.0.1", **more: Any) -> Upstream:
    return Upstream("web", Scheme("grpc"), host, port, ("/*",), allow_addresses=(ip_network("127.0.0.0/8"),), **more)


@asynccontextmanager
async def serving(handlers: dict[str, Any], compression: grpc.Compression) -> AsyncIterator[int]:
    server = grpc.aio.server(compression=compression)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
async def test_nothing_is_unpacked(compression: grpc.Compression) -> None:
    """A small message may hold a huge one, and the memory is everybody's."""

    async def answer(_request: bytes, _context: object) -> bytes:
        return bytes(100_000)

    async with serving({"Unary": grpc.unary_unary_rpc_method_handler(answer)}, compression) as port:
        client = GrpcUpstream(upstream(port), Material(), _lookup)
        try:
            async with asyncio.timeout(10), client.channel() as channel:
                try:
                    got = len(await channel.unary_unary(UNARY, None, None)(b""))
                except grpc.aio.AioRpcError:
                    got = 0
                assert got == 100_000 if compression is grpc.Compression.NoCompression else got < 1000
        finally:
            await client.close()


async def _echo(request: bytes, _context: object) -> bytes:
    return request


async def _echoes(requests: AsyncIterator[bytes], _context: object) -> AsyncIterator[bytes]:
    async for request in requests:
        yield request


@pytest.fixture
async def echo() -> AsyncIterator[int]:
    """Return the port of a server that echoes."""
    handlers = {
        "Unary": grpc.unary_unary_rpc_method_handler(_echo),
        "Stream": grpc.stream_stream_rpc_method_handler(_echoes),
    }
    async with serving(handlers, grpc.Compression.NoCompression) as port:
        yield port


class Names:
    """A name server whose answer is set by hand; no answer is good for longer than for one call."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *first: str) -> None:
        monkeypatch.setattr(grpc_module, "FRESH_S", 0)
        self.answer = list(first)

    async def __call__(self, host: str, port: int) -> list[str]:
        assert host == "name.example", port
        return self.answer


async def echoed(stream: Any, message: bytes) -> None:
    await stream.write(message)
    assert await stream.read() == message


async def test_another_order_of_the_same_addresses_is_no_news(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name with many addresses gives them in another order each time."""
    names = Names(monkeypatch, "127.0.0.1", "127.0.0.2")
    client = GrpcUpstream(upstream(1, "name.example"), Material(), names)
    async with client.channel() as first:
        pass
    names.answer.reverse()
    async with client.channel() as second:
        assert second is first
    names.answer.pop()
    async with client.channel() as third:
        assert third is not first
    await client.close()


async def test_a_stream_outlives_its_addresses(monkeypatch: pytest.MonkeyPatch, echo: int) -> None:
    """However short the time of a call is; its connection is closed when it is over, and no sooner."""
    names = Names(monkeypatch, "127.0.0.1")
    client = GrpcUpstream(upstream(echo, "name.example", timeout_ms=1), Material(), names)
    async with asyncio.timeout(20):
        async with client.channel() as old:
            stream = old.stream_stream(STREAM, None, None)()
            await echoed(stream, b"before")
            names.answer = ["127.0.0.1", "127.0.0.2"]
            for _ in range(20):
                async with client.channel() as new:
                    assert new is not old
                    await new.unary_unary(UNARY, None, None)(b"x")
            await echoed(stream, b"after")
            await stream.done_writing()
            assert await stream.read() is grpc.aio.EOF  # type: ignore[attr-defined]
        with pytest.raises(grpc.aio.UsageError):
            await old.unary_unary(UNARY, None, None)(b"x")
        await client.close()


async def test_a_stream_outlives_the_rules_that_it_began_by(echo: int) -> None:
    """A reload that changes its upstream ends no stream, and the connection goes with the last one."""
    found = Destination(upstream(echo, timeout_ms=1), Material(), Redactor(RedactionPolicy(), bytes(32)))
    desk = TenantDesk("acme", Counters(), _lookup)
    async with asyncio.timeout(20):
        async with desk.grpc("p", found).channel() as channel:
            stream = channel.stream_stream(STREAM, None, None)()
            await echoed(stream, b"before")
            desk.keep(())
            await asyncio.gather(*desk._closing)
            await echoed(stream, b"after")
        with pytest.raises(grpc.aio.UsageError):
            await channel.unary_unary(UNARY, None, None)(b"x")
        await desk.close()


async def test_a_call_that_was_on_its_way_when_the_rules_went_leaves_nothing_open(echo: int) -> None:
    client = GrpcUpstream(upstream(echo), Material(), _lookup)
    await client.finish()
    async with asyncio.timeout(20):
        for _ in range(2):
            async with client.channel() as channel:
                assert await channel.unary_unary(UNARY, None, None)(b"x") == b"x"
            with pytest.raises(grpc.aio.UsageError):
                await channel.unary_unary(UNARY, None, None)(b"x")
