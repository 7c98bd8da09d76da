"""
Upstreams of callouts on loopback, honest and otherwise: HTTP and gRPC, in a thread of their own.

What an HTTP path does: ``/ok`` answers, ``/echo`` repeats method and body size, ``/status/N`` answers N, ``/slow/MS``
waits first, ``/big/N`` has a body of N bytes, ``/endless`` never ends, ``/drip`` sends a byte now and then,
``/headers`` answers with headers that hide something, ``/redirect`` points at a metadata service, ``/reset`` ends the
connection, ``/stuck`` never says a word, ``/junk`` answers what is not HTTP, ``/cut`` ends in the middle of
a body.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc


@dataclass
class Upstream:
    """What runs."""

    port: int = 0
    grpc_port: int = 0
    heads: list[bytes] = field(default_factory=list)
    """Of the HTTP requests that came."""
    open: int = 0
    """HTTP connections."""
    cancelled: int = 0
    """gRPC streams that the caller gave up."""

    def paths(self) -> list[str]:
        """Return the targets that were asked for."""
        return [head.split(b" ", 2)[1].decode() for head in self.heads]


def response(body: bytes, *headers: bytes, status: bytes = b"200 OK") -> bytes:
    """Return an HTTP/1.1 response."""
    lines = [b"HTTP/1.1 " + status, b"content-length: %d" % len(body), *headers]
    return b"\r\n".join([*lines, b"", body])


async def _body(head: bytes, reader: asyncio.StreamReader) -> bytes:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return await reader.readexactly(int(value))
    return b""


async def _serve(known: Upstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    known.open += 1
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            known.heads.append(head)
            body = await _body(head, reader)
            if not await _answer(head, body, writer):
                return
            await writer.drain()
    except (ConnectionError, asyncio.IncompleteReadError):
        pass
    finally:
        known.open -= 1
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def _answer(head: bytes, body: bytes, writer: asyncio.StreamWriter) -> bool:
    """Return whether the connection goes on."""
    method, target, _ = head.split(b" ", 2)
    kind, _, argument = target.decode().partition("?")[0][1:].partition("/")
    if kind in _MISDEEDS:
        await _MISDEEDS[kind](writer)
        return False
    if kind == "slow":
        await asyncio.sleep(int(argument) / 1000)
    answers = {
        "echo": response(b"%s %d" % (method, len(body))),
        "status": response(b"", status=argument.encode() + b" Status"),
        "slow": response(b"late"),
        "headers": response(b"ok", b"x-shown: yes", b"x-hidden: secret", b"set-cookie: session=1"),
        "redirect": response(b"", b"location: http://169.254.169.254/latest/meta-data", status=b"302 Found"),
        "big": response(b"x" * int(argument if kind == "big" else 0)),
    }
    writer.write(answers.get(kind, response(b"ok")))
    return True


async def _endless(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        writer.write(b"x" * 65536)
        await writer.drain()


async def _drip(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.02)


async def _reset(writer: asyncio.StreamWriter) -> None:
    writer.close()


async def _stuck(_writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(3600)


async def _junk(writer: asyncio.StreamWriter) -> None:
    writer.write(b"SSH-2.0-OpenSSH_9.2p1\r\n\r\n")


async def _cut(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\ncut short")
    await writer.drain()


_MISDEEDS = {"endless": _endless, "drip": _drip, "reset": _reset, "stuck": _stuck, "junk": _junk, "cut": _cut}


class _Grpc(grpc.GenericRpcHandler):
    """``/test.Echo/Unary``, ``/test.Echo/Fail``, ``/test.Echo/Stream``, ``/test.Echo/Count``, ``/test.Echo/Stuck``."""

    def __init__(self, known: Upstream) -> None:
        self._known = known

    def service(self, details: Any) -> Any:
        match details.method:
            case "/test.Echo/Unary":
                return grpc.unary_unary_rpc_method_handler(self._unary)
            case "/test.Echo/Fail":
                return grpc.unary_unary_rpc_method_handler(self._fail)
            case "/test.Echo/Stream":
                return grpc.stream_stream_rpc_method_handler(self._stream)
            case "/test.Echo/Count":
                return grpc.stream_stream_rpc_method_handler(self._count)
            case "/test.Echo/Stuck":
                return grpc.stream_stream_rpc_method_handler(self._stuck)
        return None

    async def _unary(self, request: bytes, _context: Any) -> bytes:
        return b"echo:" + request

    async def _fail(self, _request: bytes, context: Any) -> bytes:
        await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not today")
        raise AssertionError

    async def _stream(self, requests: Any, context: Any) -> Any:
        await context.send_initial_metadata((("x-initial", "one"),))
        async for request in requests:
            yield b"echo:" + request
        context.set_trailing_metadata((("x-trailing", "two"),))

    async def _count(self, requests: Any, _context: Any) -> Any:
        try:
            async for request in requests:
                for number in range(int(request)):
                    yield b"%d" % number
        except asyncio.CancelledError:
            self._known.cancelled += 1
            raise

    async def _stuck(self, _requests: Any, _context: Any) -> Any:
        try:
            yield b"begun"
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            self._known.cancelled += 1
            raise


@contextlib.contextmanager
def running() -> Iterator[Upstream]:
    """Serve for the length of a ``with`` block."""
    known = Upstream()
    started = threading.Event()
    ends: list[Callable[[], None]] = []

    async def serve() -> None:
        stop = asyncio.Event()
        ends.append(functools.partial(asyncio.get_running_loop().call_soon_threadsafe, stop.set))
        listening = await asyncio.start_server(functools.partial(_serve, known), "127.0.0.1", 0)
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((_Grpc(known),))
        known.grpc_port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        known.port = listening.sockets[0].getsockname()[1]
        started.set()
        await stop.wait()
        listening.close()
        await server.stop(0)

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    assert started.wait(10)
    try:
        yield known
    finally:
        ends[0]()
        thread.join(10)


LOOPBACK = ["127.0.0.0/8"]


def policy(known: Upstream, **more: Any) -> dict[str, Any]:
    """Return a plugin's ``callouts`` with the upstreams ``web`` and ``rpc``; ``more`` are further keys of both."""
    web = {"url": f"http://127.0.0.1:{known.port}", "paths": ["/*"], "methods": ["GET", "POST"]}
    rpc = {"url": f"grpc://127.0.0.1:{known.grpc_port}", "paths": ["/test.Echo/*"]}
    common = {"allow_addresses": LOOPBACK, **more}
    return {"upstreams": {"web": {**web, **common}, "rpc": {**rpc, **common}}}


CAPABILITIES = {
    "preset": "standard",
    "allow": [
        "proxy_http_call",
        "proxy_grpc_call",
        "proxy_grpc_stream",
        "proxy_grpc_send",
        "proxy_grpc_cancel",
        "proxy_grpc_close",
    ],
}


def _main() -> None:
    """Serve until standard input ends; the first line out is the HTTP port."""
    with running() as known:
        print(known.port, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    _main()
