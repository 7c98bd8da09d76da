"""The middleware in a real ASGI server, asked over real connections: uvicorn with h11."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from sandboxd.client import SandboxMiddleware
from sandboxd.demo import http1
from sandboxd.demo.client import Connection, Request, fetch
from tests.support import guests
from tests.support.daemon_client import FakeDaemon
from tests.support.guests import Guest

TOKEN = ("x-token", "sesame")
START_TIMEOUT_S = 10.0


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answer with each piece of the body as it comes; the headers that the app saw come back as ``x-seen-NAME``."""
    seen = [(b"x-seen-" + name, value) for name, value in scope["headers"] if name.startswith((b"x-", b"auth"))]
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain"), *seen]})
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        more = message["more_body"]
        await send({"type": "http.response.body", "body": message["body"], "more_body": more})


class Sites:
    """An app for each plugin of each tenant: ``/TENANT/PLUGIN/...``."""

    def __init__(self, attach_socket: Path) -> None:
        self._socket = attach_socket
        self._behind: dict[tuple[str, str], SandboxMiddleware] = {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request, or the server's start and end."""
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            for middleware in self._behind.values():
                await middleware.close()
            await send({"type": "lifespan.shutdown.complete"})
            return
        _, tenant, plugin, *_ = scope["path"].split("/")
        if (tenant, plugin) not in self._behind:
            self._behind[tenant, plugin] = SandboxMiddleware(
                echo, socket_path=self._socket, tenant=tenant, plugin=plugin
            )
        await self._behind[tenant, plugin](scope, receive, send)


@pytest.fixture(scope="module")
def port(attach_socket: Path) -> Iterator[int]:
    """The server's port."""
    config = uvicorn.Config(
        Sites(attach_socket), port=0, http="h11", ws="none", loop="asyncio", lifespan="on", log_level="error"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, name="uvicorn")
    thread.start()
    try:
        deadline = threading.Event()
        for _ in range(int(START_TIMEOUT_S / 0.02)):
            if server.started:
                break
            deadline.wait(0.02)
        assert server.started
        yield int(server.servers[0].sockets[0].getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(START_TIMEOUT_S)
        assert not thread.is_alive()


def path(guest: Guest, tenant: str = "acme") -> str:
    """Return where a plugin is in the way."""
    return f"/{tenant}/{guest.name}/x"


async def test_headers_of_both_directions(port: int) -> None:
    """Several exchanges on one connection; what is hidden from the plugin reaches the app."""
    connection = await Connection.open(port)
    for _ in range(3):
        answer = await connection.exchange(Request("GET", path(guests.C_ADD_HEADER), (("authorization", "private"),)))
        assert answer.status == 200
        assert answer.values("x-wasm-processed") == ("Yes",)
        assert answer.values("x-seen-x-wasm-processed") == ("Yes",)
        assert answer.values("x-seen-authorization") == ("private",)
    await connection.close()


async def test_a_local_response_is_the_servers_answer(port: int) -> None:
    """The app is not called, and the connection goes on."""
    connection = await Connection.open(port)
    denied = await connection.exchange(Request("GET", path(guests.TOKEN_GATE)))
    admitted = await connection.exchange(Request("GET", path(guests.TOKEN_GATE), (TOKEN,)))
    await connection.close()

    assert (denied.status, denied.body) == (403, b"Access forbidden.\n")
    assert (admitted.status, admitted.value("x-seen-x-saw-authorization")) == (200, "no")


@pytest.mark.parametrize("chunks", [None, (1, 1000, 7)], ids=["content-length", "chunked"])
async def test_bodies_go_through_the_plugin(port: int, chunks: tuple[int, ...] | None) -> None:
    """A request's body, gathered by the plugin and changed or left alone."""
    harmless, secret = b"x" * 50_000, b"a secret, " * 100
    for body, expected in (
        (harmless, harmless),
        (secret, b"Original message body (1000 bytes) redacted.\n"),
    ):
        answer = await fetch(port, Request("POST", path(guests.HTTP_BODY_REQUEST), (), body, chunks))
        assert (answer.status, answer.body) == (200, expected)
        answer = await fetch(port, Request("POST", path(guests.HTTP_BODY_RESPONSE), (), body, chunks))
        assert (answer.status, answer.body) == (200, expected)


async def test_bodies_stream(port: int) -> None:
    """A piece is answered before the next one is sent: nothing gathers what the plugin does not hold back."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    headers = (("host", "a"), ("transfer-encoding", "chunked"))
    writer.write(http1.encode_head(f"POST {path(guests.C_ADD_HEADER)} HTTP/1.1", headers))
    async with asyncio.timeout(10):
        for number in range(5):
            writer.write(http1.encode_chunk(b"piece %d;" % number))
            if number == 0:
                head = await http1.read_head(reader)
                assert (head.status, head.value("x-wasm-processed")) == (200, "Yes")
            assert await reader.readuntil(b";\r\n") == b"8\r\npiece %d;\r\n" % number
        writer.write(http1.encode_last_chunk())
        assert await reader.readuntil(b"\r\n\r\n") == b"0\r\n\r\n"
    writer.close()
    await writer.wait_closed()


async def test_failing_closed_is_an_answer(port: int) -> None:
    """The status of the plugin's policy, for a plugin that traps when it gets the body."""
    guest = guests.misdeed("trap_in_request_body")
    answer = await fetch(port, Request("POST", path(guest, "closed"), (), b"body"))
    assert answer.status == 555
    assert (await fetch(port, Request("POST", path(guests.C_ADD_HEADER), (), b"body"))).body == b"body"


async def test_many_at_once(port: int) -> None:
    """Each gets its own answer."""

    async def one(number: int) -> bool:
        body = b"%d" % number * 1000
        answer = await fetch(port, Request("POST", path(guests.C_ADD_HEADER), (("x-n", str(number)),), body))
        return (answer.value("x-seen-x-n"), answer.body) == (str(number), body)

    assert all(await asyncio.gather(*map(one, range(50))))


async def test_clients_that_leave_take_their_streams_along(port: int, daemon: FakeDaemon) -> None:
    """In the middle of a request; the VM is left with no open stream, and serves on."""
    request = http1.encode_head(f"POST {path(guests.HTTP_HEADERS)} HTTP/1.1", (("host", "a"), ("content-length", "9")))
    writers = []
    for _ in range(5):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request + b"part")
        assert (await http1.read_head(reader)).status == 200
        writers.append(writer)

    def streams() -> int:
        plugins = {plugin["plugin"]: plugin["vms"] for plugin in daemon.tenant("acme")["plugins"]}
        return sum(vm["streams"] for vm in plugins[guests.HTTP_HEADERS.name])

    async def come_to(count: int) -> None:
        async with asyncio.timeout(10):  # the worker reports now and then
            while streams() != count:
                await asyncio.sleep(0.1)

    await come_to(len(writers))
    for writer in writers:
        writer.close()
        await writer.wait_closed()
    await come_to(0)
    assert (await fetch(port, Request("GET", path(guests.HTTP_HEADERS)))).status == 200
