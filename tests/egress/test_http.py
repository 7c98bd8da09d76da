"""HTTP against real servers on loopback: honest ones, and ones that lie, flood, stall or send us elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from ipaddress import ip_network

import pytest

from sandboxd.channel.pairs import encode
from sandboxd.egress.budget import Budget
from sandboxd.egress.http import CallFailedError, HttpUpstream
from sandboxd.egress.resolve import AddressRefusedError, SystemLookup
from sandboxd.egress.rules import DeniedError, http_request
from sandboxd.policy.callouts import Method, Scheme, Upstream
from sandboxd.protos import control_pb2 as control
from sandboxd.supervisor.upstream_tls import Material

LOOPBACK = (ip_network("127.0.0.0/8"),)
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def upstream(port: int, **more: object) -> Upstream:
    fields: dict[str, object] = {"allow_addresses": LOOPBACK, "methods": frozenset(Method), "timeout_ms": 2000, **more}
    return Upstream("auth", Scheme.HTTP, "127.0.0.1", port, ("/v1/*",), **fields)  # type: ignore[arg-type]


def call(
    *pairs: tuple[bytes, bytes], method: bytes = b"GET", path: bytes = b"/v1/x", **more: object
) -> control.HttpCall:
    target = ((b":method", method), (b":path", path), (b":authority", b"elsewhere"))
    return control.HttpCall(upstream=b"auth", headers=encode([*target, *pairs]), **more)  # type: ignore[arg-type]


def endless_header() -> bytes:
    return b"x-a: " + b"1" * 1000 + b"\r\n"


@asynccontextmanager
async def listening(serve: Serve) -> AsyncIterator[int]:
    """Serve until the end of the block, and leave nothing open."""
    running: set[asyncio.Task[None]] = set()

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        running.add(task)
        try:
            await serve(reader, writer)
        except asyncio.CancelledError:
            pass
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    found = await asyncio.start_server(one, "127.0.0.1", 0)
    try:
        yield found.sockets[0].getsockname()[1]
    finally:
        found.close()
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


@asynccontextmanager
async def server(answer: bytes, *, then: str = "close") -> AsyncIterator[tuple[int, list[bytes]]]:
    heard: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            heard.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(answer)
            while then == "flood":
                writer.write(b"x" * 65536)
                await writer.drain()
            while then == "headers":
                writer.write(endless_header())
                await writer.drain()
            while then == "drip":
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0.05)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass

    async with listening(serve) as port:
        yield port, heard


async def send(found: Upstream, asked: control.HttpCall):
    client = HttpUpstream(found, Material(), SystemLookup())
    try:
        return await client.call(http_request(found, asked), Budget().lease())
    finally:
        await client.close()


OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nx-a: 1\r\nx-a: 2\r\n\r\nhi"


async def test_a_response_comes_whole_and_host_is_the_policys() -> None:
    async with server(OK) as (port, heard):
        response = await send(upstream(port), call((b"accept", b"*/*")))
    assert response.headers[0] == (b":status", b"200")
    assert [value for name, value in response.headers if name == b"x-a"] == [b"1", b"2"]
    assert response.body == b"hi"
    assert f"Host: 127.0.0.1:{port}\r\n".encode() in heard[0]
    assert b"elsewhere" not in heard[0]
    assert heard[0].startswith(b"GET /v1/x HTTP/1.1\r\n")


async def test_header_values_leave_as_they_are() -> None:
    """Byte for byte; what the client cannot send so is denied."""
    async with server(OK) as (port, heard):
        await send(upstream(port), call((b"accept", b"caf\xc3\xa9")))
        with pytest.raises(DeniedError, match="headers: the value of accept is not UTF-8"):
            await send(upstream(port), call((b"accept", b"caf\xe9")))
    assert len(heard) == 1
    assert b"accept: caf\xc3\xa9\r\n" in heard[0]


async def test_headers_of_the_connection_do_not_come() -> None:
    """Neither those that always are, nor those that the response names."""
    lines = [
        b"HTTP/1.1 200 OK",
        b"X-Hop: 1",
        b"Connection: close, x-HOP ,,",
        b"connection:\tX-Other",
        b"Keep-Alive: timeout=5",
        b"x-other: 2",
        b"x-hop-by-hop: stays",
        b"content-length: 0",
    ]
    async with server(b"\r\n".join([*lines, b"", b""])) as (port, _):
        response = await send(upstream(port), call())
    assert response.headers == [(b":status", b"200"), (b"x-hop-by-hop", b"stays"), (b"content-length", b"0")]


async def test_loopback_is_refused_without_leave() -> None:
    async with server(OK) as (port, heard):
        with pytest.raises(AddressRefusedError, match="loopback"):
            await send(upstream(port, allow_addresses=()), call())
    assert heard == []


async def test_a_redirect_to_the_metadata_service_is_an_answer() -> None:
    where = b"HTTP/1.1 302 Found\r\nlocation: http://169.254.169.254/latest\r\ncontent-length: 0\r\n\r\n"
    async with server(where) as (port, heard):
        response = await send(upstream(port), call())
    assert response.headers[0] == (b":status", b"302")
    assert len(heard) == 1


@pytest.mark.parametrize("then", ["flood", "drip"])
async def test_endless_responses_end(then: str) -> None:
    async with server(b"HTTP/1.1 200 OK\r\n\r\n", then=then) as (port, _):
        found = upstream(port, response_bytes=100_000, timeout_ms=400)
        with pytest.raises(CallFailedError) as caught:
            await send(found, call())
    assert caught.value.kind == ("response_bytes" if then == "flood" else "timeout")


async def test_headers_without_end_end_at_once() -> None:
    """After as many as there may be, not when the time is over."""
    async with server(b"HTTP/1.1 200 OK\r\n", then="headers") as (port, _):
        with pytest.raises(CallFailedError):
            await asyncio.wait_for(send(upstream(port, timeout_ms=20_000), call()), 5)


async def test_headers_that_are_large_together_are_no_response() -> None:
    many = b"".join(b"x-%d: " % number + b"1" * 1000 + b"\r\n" for number in range(100))
    async with server(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n" + many + b"\r\n") as (port, _):
        with pytest.raises(CallFailedError, match="bytes of headers"):
            await send(upstream(port), call())


async def test_a_slow_head_ends_in_time() -> None:
    async with server(b"HTTP/1.1 200 OK\r\nx: ", then="drip") as (port, _):
        with pytest.raises(TimeoutError):
            await send(upstream(port, timeout_ms=300), call())


async def test_one_time_is_for_headers_and_body_together() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            await asyncio.sleep(0.6)
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            await asyncio.sleep(60)

    async with listening(serve) as port:
        started = asyncio.get_running_loop().time()
        with pytest.raises(CallFailedError) as caught:
            await send(upstream(port, timeout_ms=1000), call())
    assert caught.value.kind == "timeout"
    assert asyncio.get_running_loop().time() - started < 1.55  # not 600 and another 1000 ms


async def test_who_gives_up_is_not_told_of_a_timeout() -> None:
    """A cancelled call is cancelled, also in the middle of a body."""
    async with server(b"HTTP/1.1 200 OK\r\n\r\n", then="drip") as (port, _):
        task = asyncio.create_task(send(upstream(port, timeout_ms=20_000), call()))
        await asyncio.sleep(0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_an_upgrade_is_no_response() -> None:
    async with server(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n") as (port, _):
        with pytest.raises(CallFailedError):
            await send(upstream(port), call())


@pytest.mark.parametrize(
    ("asked", "rule"),
    [
        (call(method=b"CONNECT"), "methods"),
        (call(method=b"GET x"), "methods"),
        (call(path=b"http://169.254.169.254/"), "paths"),
        (call(path=b"//evil/"), "paths"),
        (call(path=b"/v1/../admin"), "paths"),
        (call(path=b"/v1/%2e%2e/admin"), "paths"),
        (call(path=b"/v1/..;/admin"), "paths"),
        (call(path=b"/v1/a%2f..%2fadmin"), "paths"),
        (call(path=b"/v1/\\..\\admin"), "paths"),
        (call(path=b"/v1/x HTTP/1.1\r\nHost: evil"), "paths"),
        (call(path=b"/v2/x"), "paths"),
        (call((b"transfer-encoding", b"chunked")), "headers"),
        (call((b"connection", b"keep-alive")), "headers"),
        (call((b"accept", b"a\r\nx: y")), "headers"),
        (call((b"accept\r\nx", b"a")), "headers"),
        (call((b"x-other", b"a")), "headers"),
        (call((b":method", b"GET")), "headers"),
        (call(body=b"x" * 300_000), "request_bytes"),
    ],
)
def test_denied(asked: control.HttpCall, rule: str) -> None:
    with pytest.raises(DeniedError) as caught:
        http_request(upstream(1), asked)
    assert caught.value.rule == rule


@pytest.mark.parametrize("path", [b"/v1/x", b"/v1/a.b/..c?q=../..&u=http://x/", b"/v1/%41"])
def test_harmless_paths(path: bytes) -> None:
    assert http_request(upstream(1), call(path=path)).target == path.decode()


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nhi!",
        b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx-a : 1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx\x00a: 1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx-a: 1\x00\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"x-a: 1\r\n" * 10_000 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nx-a: " + b"1" * 100_000 + b"\r\n\r\n",
        b"HTTP/9.9 200 OK\r\n\r\n",
        b"200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\ncut short",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
    ],
)
async def test_a_response_that_can_be_read_in_two_ways_is_none(answer: bytes) -> None:
    """Framing that other readers would take for another message, headers without end, messages without their end."""
    async with server(answer) as (port, _):
        with pytest.raises(CallFailedError):
            await send(upstream(port), call())


async def test_what_a_response_leaves_behind_does_not_answer_the_next_call() -> None:
    """A second response in the same breath belongs to nobody: the connection is not used again."""
    async with server(OK + b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil") as (port, heard):
        client = HttpUpstream(upstream(port), Material(), SystemLookup())
        try:
            for _ in range(2):
                found = await client.call(http_request(upstream(port), call()), Budget().lease())
                assert found.body == b"hi"
        finally:
            await client.close()
    assert len(heard) == 2


async def test_informational_responses_without_end_end_in_time() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            while True:
                writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                await writer.drain()
                await asyncio.sleep(0.001)

    async with listening(serve) as port:
        with pytest.raises((TimeoutError, CallFailedError)):
            await send(upstream(port, timeout_ms=400), call())


async def test_retries_only_of_what_had_no_effect() -> None:
    """Off by default; a POST whose connection broke is never sent twice, a GET is."""
    for method, retries, expected in ((b"GET", 0, 1), (b"GET", 2, 3), (b"POST", 2, 1)):
        async with server(b"") as (port, heard):
            with pytest.raises(CallFailedError):
                await send(upstream(port, retries=retries), call(method=method))
        assert len(heard) == expected, (method, retries)
