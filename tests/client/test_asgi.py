"""ASGI apps behind the middleware, with a real daemon and real guests; the server is played by the test."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from sandboxd.client import ExchangeReset, SandboxMiddleware
from tests.support import guests
from tests.support.daemon_client import FakeDaemon

Message = dict[str, Any]
App = Callable[[Any, Any, Any], Awaitable[None]]
TOKEN = (b"x-token", b"sesame")
MIB = 1 << 20


class Served:
    """One request to an app: what the server got from it."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.seen: Message = {}
        self.given = b""

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.sent[0]["headers"])

    @property
    def body(self) -> bytes:
        return b"".join(m["body"] for m in self.sent if m["type"] == "http.response.body")

    @property
    def ended(self) -> bool:
        return [m["more_body"] for m in self.sent if m["type"] == "http.response.body"][-1:] == [False]


def echo(served: Served, response: bytes = b"", headers: tuple[tuple[bytes, bytes], ...] = ()) -> App:
    """An app that reads its request and answers with ``response``, or with what it read."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        served.seen = scope
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            served.given += message["body"]
            more = message["more_body"]
        body = response or served.given
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-app", b"1"), *headers]})
        await send({"type": "http.response.body", "body": body})

    return app


def scope_of(
    method: str = "GET", path: str = "/x", headers: tuple[tuple[bytes, bytes], ...] = (), **more: Any
) -> Message:
    raw = path.encode()
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": raw,
        "query_string": b"q=1",
        "headers": [(b"host", b"example.org"), *headers],
        "client": ("1.2.3.4", 5),
        "server": ("127.0.0.1", 80),
        "extensions": {"http.response.pathsend": {}, "http.response.trailers": {}},
        **more,
    }


async def serve(
    app: App, served: Served, scope: Message, pieces: tuple[bytes, ...] = (), *, leave: bool = False
) -> Served:
    """Play the server for one request; with ``leave`` the client goes away after the pieces."""
    messages = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    if not leave:
        messages = messages or [{"type": "http.request", "body": b"", "more_body": True}]
        messages[-1] = {**messages[-1], "more_body": False}
    waiting = iter(messages)

    async def receive() -> Message:
        await asyncio.sleep(0)
        return next(waiting, {"type": "http.disconnect"})

    async def send(message: Message) -> None:
        served.sent.append(message)

    await asyncio.wait_for(app(scope, receive, send), 20)
    return served


class Rig:
    """Middlewares that are closed at the end of the test."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.made: list[SandboxMiddleware] = []

    def wrap(self, app: App, tenant: str, plugin: str, **more: Any) -> SandboxMiddleware:
        self.made.append(SandboxMiddleware(app, socket_path=self.path, tenant=tenant, plugin=plugin, **more))
        return self.made[-1]


@pytest.fixture
async def rig(attach_socket: Path) -> AsyncIterator[Rig]:
    made = Rig(attach_socket)
    yield made
    for middleware in made.made:
        await middleware.close()


def posted(length: int) -> Message:
    return scope_of("POST", headers=((b"content-length", b"%d" % length),))


async def test_headers_of_both_directions(rig: Rig) -> None:
    served = Served()
    app = rig.wrap(echo(served), "acme", guests.C_ADD_HEADER.name)
    await serve(app, served, scope_of(headers=((b"authorization", b"secret"),)))
    seen = dict(served.seen["headers"])
    assert seen[b"x-wasm-processed"] == b"Yes"
    assert (seen[b"host"], seen[b"authorization"]) == (b"example.org", b"secret")
    assert (served.seen["raw_path"], served.seen["query_string"]) == (b"/x", b"q=1")
    assert set(served.seen["extensions"]) == {"http.response.trailers"}
    assert (served.status, served.headers[b"x-wasm-processed"], served.headers[b"x-app"]) == (200, b"Yes", b"1")
    assert served.ended


async def test_a_local_response_never_reaches_the_app(rig: Rig) -> None:
    served = Served()
    app = rig.wrap(echo(served), "acme", guests.TOKEN_GATE.name)
    await serve(app, served, scope_of())
    assert (served.status, served.seen) == (403, {})
    assert served.body.startswith(b"Access forbidden")
    assert served.headers[b"content-length"] == b"%d" % len(served.body)
    allowed = Served()
    await serve(rig.wrap(echo(allowed), "acme", guests.TOKEN_GATE.name), allowed, scope_of(headers=(TOKEN,)))
    assert allowed.status == 200
    assert dict(allowed.seen["headers"])[b"x-saw-authorization"] == b"no"


async def test_a_request_body_is_held_and_changed(rig: Rig) -> None:
    served = Served()
    app = rig.wrap(echo(served), "acme", guests.HTTP_BODY_REQUEST.name)
    await serve(app, served, posted(8), (b"a sec", b"ret"))
    assert served.given.startswith(b"Original message body (8 bytes) redacted.")
    assert b"content-length" not in dict(served.seen["headers"])


async def test_a_body_of_four_mib_passes_its_limit_and_one_byte_more_does_not(rig: Rig) -> None:
    """The plugin holds the whole of it; its ``body_buffer`` is 4 MiB."""
    served = Served()
    app = rig.wrap(echo(served, b"short"), "acme", guests.HTTP_BODY_REQUEST.name)
    body = b"x" * (4 * MIB)
    await serve(app, served, posted(4 * MIB), (body,))
    assert served.given == body
    too_much = Served()
    app = rig.wrap(echo(too_much), "acme", guests.HTTP_BODY_REQUEST.name)
    await serve(app, too_much, posted(4 * MIB + 1), (body, b"x"))
    assert (too_much.status, too_much.given) == (413, b"")


async def test_four_mib_stream_both_ways_past_a_plugin_without_body(rig: Rig) -> None:
    served = Served()
    app = rig.wrap(echo(served), "acme", guests.C_ADD_HEADER.name)
    pieces = tuple(os.urandom(MIB) for _ in range(4))
    await serve(app, served, posted(4 * MIB), pieces)
    assert served.body == b"".join(pieces)


async def test_a_response_body_is_held_and_changed(rig: Rig) -> None:
    json_type = ((b"content-type", b"application/json"), (b"content-length", b"8"))
    served = Served()
    app = rig.wrap(echo(served, b'{"a": 1}', json_type), "acme", guests.C_JSON_BODY.name)
    await serve(app, served, scope_of())
    assert served.body == b'{"sandboxed":true,"a": 1}'
    assert b"content-length" not in served.headers
    too_much = Served()
    app = rig.wrap(echo(too_much, b'{"a":"' + b"x" * MIB + b'"}', json_type[:1]), "acme", guests.C_JSON_BODY.name)
    try:
        await serve(app, too_much, scope_of())
    except ExchangeReset:
        assert not too_much.ended
    else:
        assert too_much.status == 500


async def test_a_streaming_response_is_not_gathered(rig: Rig) -> None:
    """Each piece is at the server before the app makes the next one."""
    served = Served()
    at_server: list[bytes] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for number in range(5):
            await send({"type": "http.response.body", "body": b"%d" % number, "more_body": True})
            at_server.append(served.body)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    await serve(rig.wrap(app, "acme", guests.C_ADD_HEADER.name), served, scope_of())
    assert at_server == [b"0", b"01", b"012", b"0123", b"01234"]
    assert served.ended


async def test_trailers_go_behind_the_body(rig: Rig) -> None:
    served = Served()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [], "trailers": True})
        await send({"type": "http.response.body", "body": b"abc"})
        await send({"type": "http.response.trailers", "headers": [(b"x-t", b"1")]})

    await serve(rig.wrap(app, "acme", guests.HTTP_BODY_RESPONSE.name), served, scope_of())
    assert (served.body, served.ended) == (b"abc", True)
    assert served.sent[-1]["type"] == "http.response.trailers"
    assert served.sent[-1]["headers"] == [(b"x-t", b"1")]
    assert served.sent[0]["trailers"] is True


async def test_a_client_that_leaves(rig: Rig) -> None:
    """In the middle of a body that is held, and of one that is read by the app."""
    for plugin, reached in ((guests.HTTP_BODY_REQUEST.name, True), (guests.C_ADD_HEADER.name, True)):
        served = Served()
        app = rig.wrap(echo(served), "acme", plugin)
        await serve(app, served, posted(99), (b"some",), leave=True)
        assert served.sent == []
        assert bool(served.seen) == reached
        connection = app.session._current
        assert connection is not None
        assert connection.channel is not None
        assert not connection.channel.streams
        again = Served()
        await serve(rig.wrap(echo(again), "acme", plugin), again, scope_of())
        assert again.status == 200


async def test_an_app_that_raises(rig: Rig) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise KeyError("mine")

    middleware = rig.wrap(app, "acme", guests.C_ADD_HEADER.name)
    with pytest.raises(KeyError, match="mine"):
        await serve(middleware, Served(), scope_of())
    connection = middleware.session._current
    assert connection is not None
    assert connection.channel is not None
    assert not connection.channel.streams


async def test_many_requests_at_once(rig: Rig) -> None:
    """One channel, streams of their own."""
    app_served = [Served() for _ in range(40)]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await echo(app_served[int(scope["path"][1:])])(scope, receive, send)

    middleware = rig.wrap(app, "acme", guests.HTTP_BODY_REQUEST.name)
    bodies = [b"body %d" % n for n in range(40)]
    await asyncio.gather(
        *(
            serve(
                middleware,
                app_served[n],
                scope_of("POST", f"/{n}", ((b"transfer-encoding", b"chunked"),)),
                (bodies[n][:3], bodies[n][3:]),
            )
            for n in range(40)
        )
    )
    assert [served.body for served in app_served] == bodies


@pytest.mark.parametrize(("tenant", "status", "given"), [("closed", 555, b""), ("open", 200, b"1234567")])
async def test_a_trap_in_the_request_body(rig: Rig, tenant: str, status: int, given: bytes) -> None:
    """Closed: the app is told that the client left. Open: it gets every byte."""
    served = Served()
    app = rig.wrap(echo(served), tenant, guests.misdeed("trap_in_request_body").name)
    await app.session.attach(10)
    await serve(app, served, posted(7), (b"123", b"4567"))
    assert (served.status, served.given) == (status, given)


async def test_a_trap_in_the_response_fails_open(rig: Rig) -> None:
    served = Served()
    app = rig.wrap(echo(served, b"answer"), "open", guests.misdeed("trap_in_response_headers").name)
    await app.session.attach(10)
    await serve(app, served, scope_of())
    assert (served.status, served.body, served.ended) == (200, b"answer", True)


@pytest.mark.parametrize(("failure", "status"), [("closed", 599), ("open", 200)])
async def test_without_a_daemon_the_middlewares_own_policy_answers(tmp_path: Path, failure: Any, status: int) -> None:
    served = Served()
    app = SandboxMiddleware(
        echo(served, b"ok"), socket_path=tmp_path / "none.sock", tenant="acme", failure=failure, status=599
    )
    await serve(app, served, scope_of())
    assert served.status == status
    await app.close()


async def test_a_killed_worker_between_requests(own_daemon: FakeDaemon) -> None:
    """Every request is answered, and after a while they are filtered again."""
    served = Served()
    app = SandboxMiddleware(echo(served), socket_path=own_daemon.runtime / "attach.sock", tenant="acme")
    statuses = set()
    try:
        await serve(app, served, scope_of())
        os.kill(own_daemon.worker_pid("acme"), signal.SIGKILL)
        async with asyncio.timeout(20):
            filtered = 0
            while filtered < 3:
                answer = Served()
                await serve(app, answer, scope_of())
                statuses.add(answer.status)
                filtered += b"x-wasm-processed" in answer.headers
                await asyncio.sleep(0.02)
    finally:
        await app.close()
    assert statuses <= {200, 503}


async def test_other_scopes(rig: Rig) -> None:
    """Lifespan goes through; WebSockets do only if they are said to."""
    reached: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        reached.append(scope["type"])

    refusing = rig.wrap(app, "acme", guests.C_ADD_HEADER.name)
    served = Served()
    await serve(refusing, served, {"type": "lifespan"})
    await serve(refusing, served, {"type": "websocket"})
    assert reached == ["lifespan"]
    assert [message["type"] for message in served.sent] == ["websocket.close"]
    passing = rig.wrap(app, "acme", guests.C_ADD_HEADER.name, websockets="pass")
    await serve(passing, served, {"type": "websocket"})
    assert reached == ["lifespan", "websocket"]
    with pytest.raises(ValueError, match="scope of type 'odd'"):
        await serve(passing, served, {"type": "odd"})


@pytest.mark.parametrize("wrong", [{"failure": "ajar"}, {"status": 99}, {"websockets": "maybe"}])
def test_bad_settings_are_named(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=rf"{name}: .*allowed: "):
        SandboxMiddleware(echo(Served()), socket_path="x", tenant="t", **wrong)


async def test_an_extension_that_goes_past_the_filter_is_refused(rig: Rig) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.pathsend", "path": "/etc/passwd"})

    served = Served()
    with pytest.raises(Exception, match="would go past the filter"):
        await serve(rig.wrap(app, "acme", guests.C_ADD_HEADER.name), served, scope_of())
    assert served.sent == []
