"""Callouts of a Rust guest through Envoy, worker, supervisor and broker to real upstreams, and back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from sandboxd.demo import http1
from sandboxd.demo.client import Request, fetch
from tests.support import guests, stage, upstream

pytestmark = [pytest.mark.envoy, pytest.mark.timeout(180)]

PATH = "/caller/callouts/"
MODES = ("NONE", "STREAMED", "BUFFERED", "BUFFERED_PARTIAL")


@dataclass
class Callers:
    """The stage, and where its plugins call to."""

    stage: stage.Stage
    upstream: upstream.Upstream

    def do(self, commands: str, *headers: tuple[str, str], path: str = PATH, body: bytes = b"") -> http1.Message:
        """Have a request's plugin call out."""
        method = "POST" if body else "GET"
        return self.stage.send(Request(method, path, (("x-do", commands), *headers), body), 15)

    def result(self, commands: str, *headers: tuple[str, str], body: bytes = b"") -> str:
        """Return what the plugin says of its callouts."""
        answer = self.do(commands, *headers, body=body)
        return answer.value("x-callouts")


def plugin(known: upstream.Upstream, **more: object) -> dict[str, object]:
    """Return the caller's entry."""
    callouts = {**upstream.policy(known, timeout="2s", concurrency=64), "concurrency": 64}
    return guests.CALLOUTS.plugin(capabilities=upstream.CAPABILITIES, callouts=callouts, **more)


@pytest.fixture(scope="module", params=stage.TRANSPORTS)
def callers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callers]:
    with upstream.running() as known:
        tenants = [stage.Tenant("caller", [plugin(known)], body="FULL_DUPLEX_STREAMED")]
        tenants += [stage.Tenant(mode.lower(), [plugin(known)], body=mode) for mode in MODES]
        directory = tmp_path_factory.mktemp("callouts")
        with stage.running(directory, tenants, transport=request.param, ext_proc={"timeout_s": 10.0}) as found:
            yield Callers(found, known)


@pytest.mark.parametrize("phase", ["request", "request-body", "response"])
def test_a_stream_waits_for_an_answer(callers: Callers, phase: str) -> None:
    found = callers.result("http web GET /ok 0", ("x-phase", phase), body=b"hello" * 100)
    assert found == "200 2 ok []"


@pytest.mark.parametrize("phase", ["request", "response"])
@pytest.mark.parametrize("mode", MODES)
def test_headers_wait_in_every_body_mode(callers: Callers, mode: str, phase: str) -> None:
    """Of a request and a response with bodies, which arrive whole."""
    answer = callers.do(
        "http web GET /slow/50 0", ("x-phase", phase), path=f"/{mode.lower()}/callouts/", body=b"hello" * 10_000
    )
    assert (answer.status, answer.value("x-callouts")) == (200, "200 4 late []")
    assert callers.stage.recorder.take()[-1].body == b"hello" * 10_000


def test_a_response_body_waits_for_an_answer(callers: Callers) -> None:
    answer = callers.do("http web GET /ok 0", ("x-phase", "response-body"))
    assert answer.body == b"200 2 ok []"


def test_an_answer_in_the_plugins_own_response(callers: Callers) -> None:
    for phase in ("request", "response"):
        answer = callers.do("http web GET /ok 0", ("x-phase", phase), ("x-local", "1"))
        assert (answer.status, answer.body) == (418, b"200 2 ok []")


def test_a_request_arrives_as_the_plugin_made_it(callers: Callers) -> None:
    callers.upstream.heads.clear()
    assert callers.result("http web POST /echo?q=1 0 content-type=text/plain body=70000") == "200 10 POST 70000 []"
    head = callers.upstream.heads[0].lower()
    assert head.startswith(b"post /echo?q=1 http/1.1\r\n")
    assert f"host: 127.0.0.1:{callers.upstream.port}\r\n".encode() in head
    assert b"content-type: text/plain\r\n" in head
    assert b"of-the-plugin" not in head
    assert b"user-agent" not in head


def test_many_callouts_of_one_stream(callers: Callers) -> None:
    commands = "; ".join(f"http web GET /slow/{10 * number} 0" for number in range(12))
    assert callers.result(commands) == "; ".join(["200 4 late []"] * 12)


def test_many_streams_that_wait_at_once(callers: Callers) -> None:
    """They take as long as one of them, and each has its own answer."""

    async def run() -> list[http1.Message]:
        port = callers.stage.port
        requests = [Request("GET", PATH, (("x-do", f"http web GET /slow/{500 + n} 0"),), b"") for n in range(40)]
        return list(await asyncio.gather(*(fetch(port, request, 15) for request in requests)))

    started = time.monotonic()
    answers = asyncio.run(run())
    assert {answer.value("x-callouts") for answer in answers} == {"200 4 late []"}
    assert time.monotonic() - started < 5


def test_grpc_call(callers: Callers) -> None:
    assert callers.result("grpc rpc test.Echo Unary hello") == "message 10 echo:hello"
    assert callers.result("grpc rpc test.Echo Fail hello") == "closed 9 not today"


def test_grpc_stream(callers: Callers) -> None:
    found = callers.result("stream rpc test.Echo Stream one,two,three")
    messages = "message 8 echo:one message 8 echo:two message 10 echo:three"
    assert found == f"initial some {messages} trailing two closed 0"


def test_grpc_stream_that_the_guest_gives_up(callers: Callers) -> None:
    before = callers.upstream.cancelled
    assert callers.result("stream rpc test.Echo Stuck !") == "initial none message 5 begun cancelled"
    stage.eventually(lambda: callers.upstream.cancelled == before + 1, "the server sees the end")


def test_a_large_response(callers: Callers) -> None:
    assert callers.result("http web GET /big/900000 0").startswith("200 900000 xxx")


@pytest.mark.long
@pytest.mark.parametrize(
    ("commands", "expected"),
    [
        ("http web GET /slow/5000 100", "504 24 upstream request timeout []"),
        ("http web GET /stuck 0", "504 24 upstream request timeout []"),
        ("http web GET /reset 0", "503 "),
        ("http web GET /junk 0", "502 "),
        ("http web GET /redirect 0", "302 0  []"),
        ("http web GET /endless 0", "failed 11 a response of more than"),
        ("http web GET /drip 300", "failed 11 reset"),
        ("http web DELETE /ok 0", "failed 11 denied by the policy: methods"),
        ("http web GET /../ok 0", "failed 11 denied by the policy: paths"),
        ("http web GET /ok 0 x-evil=1", "failed 11 denied by the policy: headers"),
        ("http other GET /ok 0", "refused BadArgument"),
        ("grpc rpc test.Other Unary hello", "closed 7 denied by the policy: paths"),
        ("grpc web test.Echo Unary hello", "closed 7 denied by the policy: url"),
        ("grpc other test.Echo Unary hello", "refused ParseFailure"),
        ("stream rpc test.Echo Stuck -", "initial none message 5 begun closed 4 the stream was idle for too long"),
        ("http web GET /headers 0", "200 2 ok [x-shown=yes,x-hidden=secret]"),
    ],
)
def test_what_does_not_go_well(callers: Callers, commands: str, expected: str) -> None:
    """A plugin hears of it, its stream goes on, and the next callout is served."""
    assert callers.result(commands).startswith(expected)
    assert callers.result("http web GET /ok 0") == "200 2 ok []"


def test_denials_are_counted_and_logged(callers: Callers) -> None:
    callers.result("http web PATCH /ok 0")

    def counters() -> dict[str, int]:
        return callers.stage.sandbox.status()["egress"]["callouts"].get("caller/callouts", {}).get("web", {})

    stage.eventually(lambda: counters().get("denied.methods", 0) > 0, "the denial is counted")
    assert counters()["answered"] > 0
    assert (
        "tenant caller: plugin callouts: a callout to web is denied by methods: "
        in callers.stage.sandbox.child.log.read_text()
    )


def test_the_client_leaves_while_the_plugin_waits(callers: Callers) -> None:
    with pytest.raises(TimeoutError):
        callers.stage.send(Request("GET", PATH, (("x-do", "http web GET /slow/600 0"),)), 0.2)
    assert callers.result("http web GET /slow/700 0") == "200 4 late []"


def test_status_shows_callouts_by_upstream(callers: Callers) -> None:
    callers.result("http web GET /ok 0")

    def shown() -> bool:
        lines = callers.stage.sandbox.command("status").stdout.splitlines()
        return any(line.split()[:2] == ["caller/callouts", "web"] for line in lines)

    stage.eventually(shown, "the table of callouts")
