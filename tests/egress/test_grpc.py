"""What the broker's gRPC connections do not do."""

from __future__ import annotations

import asyncio
from ipaddress import ip_network

import grpc
import pytest

from sandboxd.egress.grpc import GrpcUpstream
from sandboxd.policy.callouts import Scheme, Upstream
from sandboxd.supervisor.upstream_tls import Material


async def _lookup(host: str, port: int) -> list[str]:
    raise AssertionError((host, port))


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
async def test_nothing_is_unpacked(compression: grpc.Compression) -> None:
    """A small message may hold a huge one, and the memory is everybody's."""

    async def answer(_request: bytes, _context: object) -> bytes:
        return bytes(100_000)

    server = grpc.aio.server(compression=compression)
    handler = grpc.unary_unary_rpc_method_handler(answer)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", {"Unary": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    upstream = Upstream("web", Scheme("grpc"), "127.0.0.1", port, ("/*",), allow_addresses=(ip_network("127.0.0.0/8"),))
    client = GrpcUpstream(upstream, Material(), _lookup)
    try:
        async with asyncio.timeout(10):
            call = (await client.channel()).unary_unary("/test.Echo/Unary", None, None)
            try:
                got = len(await call(b""))
            except grpc.aio.AioRpcError:
                got = 0
            assert got == 100_000 if compression is grpc.Compression.NoCompression else got < 1000
    finally:
        await client.close()
        await server.stop(None)
