"""TLS towards upstreams, HTTP and gRPC: authority, name and client certificate, as the policy says."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from sandboxd.channel.pairs import decode
from sandboxd.errors import PolicyError
from sandboxd.policy.load import parse_policy
from sandboxd.protos import control_pb2 as control
from sandboxd.supervisor.upstream_tls import read_files
from tests.support import broker
from tests.support.broker import grpc_call, http_call

PKI = Path(__file__).parents[1] / "e2e" / "pki"
NAME = "localhost"
LOOPBACK = ["127.0.0.0/8"]


def files(*names: str) -> dict[str, bytes]:
    """Return TLS files as the supervisor hands them over; the policy is in /p."""
    return {f"/p/{name}": (PKI / name).read_bytes() for name in names}


ALL = files("ca.pem", "client.pem", "client.key", "stranger.pem", "stranger.key")


@contextlib.asynccontextmanager
async def https(*, client_ca: bool = False) -> AsyncIterator[int]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(PKI / "server.pem", PKI / "server.key")
    if client_ca:
        context.load_verify_locations(PKI / "ca.pem")
        context.verify_mode = ssl.CERT_REQUIRED

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            await writer.drain()
        writer.close()
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


@contextlib.asynccontextmanager
async def grpcs() -> AsyncIterator[int]:
    class Echo(grpc.GenericRpcHandler):
        def service(self, _details: Any) -> Any:
            async def echo(request: bytes, _context: Any) -> bytes:
                return request

            return grpc.unary_unary_rpc_method_handler(echo)

    pair = ((PKI / "server.key").read_bytes(), (PKI / "server.pem").read_bytes())
    credentials = grpc.ssl_server_credentials([pair], (PKI / "ca.pem").read_bytes(), require_client_auth=True)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Echo(),))
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    try:
        yield port
    finally:
        await server.stop(0)


async def answer(port: int, tls: dict[str, str], scheme: str = "https") -> bytes:
    """Return the status of an HTTP call, or that and the message of a gRPC call, in a word."""
    name = "web" if scheme == "https" else "rpc"
    upstream = {"url": f"{scheme}://127.0.0.1:{port}", "paths": ["/*"], "allow_addresses": LOOPBACK, "tls": tls}
    async with broker.running() as peer:
        peer.rules(1, "acme", {"p": {"upstreams": {name: upstream}}}, ALL)
        if scheme == "https":
            reply = await peer.http(http_call())
            return decode(reply.headers)[0][1]
        key = peer.begin(control.CalloutRequest(grpc_call=grpc_call("Unary", b"hello")))
        found = await peer.reply(key)
        assert found is not None
        return found.message.message if found.HasField("message") else b"%d" % found.closed.status


CA = {"ca": "ca.pem", "sni": NAME}
CLIENT = {"certificate": "client.pem", "key": "client.key"}
STRANGER = {"certificate": "stranger.pem", "key": "stranger.key"}


@pytest.mark.parametrize(
    ("tls", "expected"),
    [
        (CA, b"200"),
        ({"sni": NAME}, b"503"),  # the machine's authorities do not know it
        ({"ca": "ca.pem", "sni": "other.example"}, b"503"),
        ({"ca": "stranger.pem", "sni": NAME}, b"503"),
    ],
)
async def test_the_servers_certificate_is_checked(tls: dict[str, str], expected: bytes) -> None:
    async with https() as port:
        assert await answer(port, tls) == expected


@pytest.mark.parametrize(("tls", "expected"), [({**CA, **CLIENT}, b"200"), (CA, b"503"), ({**CA, **STRANGER}, b"503")])
async def test_the_client_shows_its_certificate(tls: dict[str, str], expected: bytes) -> None:
    async with https(client_ca=True) as port:
        assert await answer(port, tls) == expected


@pytest.mark.parametrize(
    ("tls", "expected"),
    [
        ({**CA, **CLIENT}, b"hello"),
        ({**CA, **STRANGER}, b"14"),
        ({**CLIENT, "ca": "ca.pem", "sni": "other.example"}, b"14"),
        ({**CLIENT, "sni": NAME}, b"14"),
    ],
)
async def test_grpc(tls: dict[str, str], expected: bytes) -> None:
    async with grpcs() as port:
        assert await answer(port, tls, "grpcs") == expected


@pytest.mark.parametrize(
    ("tls", "problem"),
    [
        ("{ca: missing.pem}", "cannot be read"),
        ("{certificate: client.pem, key: stranger.key}", "no certificates and key in PEM"),
        (r'{ca: "a\0b"}', "cannot be read: embedded null byte"),
        ("{ca: make.sh}", "no certificates and key in PEM"),
        ("{ca: ca.pem, certificate: client.pem, key: client.key}", ""),
    ],
)
def test_files_that_are_of_no_use_are_an_error(tls: str, problem: str) -> None:
    text = (
        f"tenant: acme\nplugins:\n- name: a\n  module: {{file: a.wasm, sha256: '{'0' * 64}'}}\n"
        f"  callouts: {{upstreams: {{auth: {{url: 'https://a', paths: [/], tls: {tls}}}}}}}\n"
    )
    plugin = parse_policy(text, str(PKI / "p.yaml"), module_root=None).plugins[0]
    if not problem:
        assert len(read_files(plugin, "p.yaml")) == 3
        return
    with pytest.raises(PolicyError, match=problem) as caught:
        read_files(plugin, "p.yaml")
    assert caught.value.key == "plugins.a.callouts.upstreams.auth.tls"
