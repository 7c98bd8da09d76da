"""
The same module, the same requests, through Envoy's own Wasm filter and through sandboxd: HTTP and gRPC callouts.

What is a cluster for Envoy's filter is an upstream of the policy for sandboxd; both are the same servers. As
`test_differential`: a difference is allowed only if `KNOWN_DIFFERENCES` lists it and docs/compatibility.md explains it,
and one that is listed but does not occur is as wrong.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from sandboxd.demo import envoy_config
from sandboxd.demo.client import Request, fetch
from tests.support import guests, known, pair, stage, upstream
from tests.support.subjects import DUPLEX, Subject

pytestmark = [pytest.mark.envoy, pytest.mark.timeout(120)]

KINDS = (DUPLEX, "STREAMED", stage.SHM)
PHASES = ("request", "request-body", "response", "response-body")


@dataclass(frozen=True)
class Case:
    """Commands for the guest."""

    name: str
    commands: str
    phase: str = "request"
    then: str = ""
    local: bool = False

    def request(self) -> Request:
        """Return the request that carries them; one with a body, so that every phase comes."""
        headers = [("x-do", self.commands), ("x-phase", self.phase)]
        headers += [("x-then", self.then)] if self.then else []
        headers += [("x-local", "1")] if self.local else []
        return Request("POST", "/", tuple(headers), b"hello" * 100)


CASES = (
    *(Case(f"http-{phase}", "http web GET /ok 1000", phase) for phase in PHASES),
    *(Case(f"http-local-{phase}", "http web GET /ok 1000", phase, local=True) for phase in PHASES[:3]),
    *(Case(f"grpc-{phase}", "grpc rpc test.Echo Unary hello", phase) for phase in PHASES),
    Case("body", "http web POST /echo?q=1 1000 content-type=text/plain body=70000"),
    Case("put", "http web PUT /echo 1000 body=1"),
    Case("delete", "http web DELETE /echo 1000"),
    Case("head", "http web HEAD /status/200 1000"),
    Case("headers", "http web GET /headers 1000 x-more=1"),
    *(Case(f"status-{status}", f"http web GET /status/{status} 1000") for status in (201, 204, 404, 500, 503)),
    Case("redirect", "http web GET /redirect 1000"),
    Case("big", "http web GET /big/900000 2000"),
    Case("many", "; ".join(f"http web GET /slow/{ms} 2000" for ms in (40, 20, 10, 30))),
    Case(
        "one-after-the-other", "http web GET /ok 1000", then="http web GET /slow/20 1000; http web GET /status/404 1000"
    ),
    Case("both-kinds", "http web GET /slow/20 1000; grpc rpc test.Echo Unary hello"),
    Case("timeout", "http web GET /slow/2000 100"),
    Case("stuck", "http web GET /stuck 100"),
    Case("drip", "http web GET /drip 100"),
    Case("reset", "http web GET /reset 1000"),
    Case("junk", "http web GET /junk 1000"),
    Case("cut", "http web GET /cut 1000"),
    Case("unknown-upstream", "http other GET /ok 1000"),
    Case("grpc-fail", "grpc rpc test.Echo Fail hello"),
    Case("grpc-unknown-method", "grpc rpc test.Echo Nothing hello"),
    Case("grpc-unknown-upstream", "grpc other test.Echo Unary hello"),
    Case("grpc-stream", "stream rpc test.Echo Stream one,two,three"),
    Case("grpc-stream-empty", "stream rpc test.Echo Stream -"),
    Case("grpc-stream-answers", "stream rpc test.Echo Count 3"),
    Case("grpc-stream-cancel", "stream rpc test.Echo Stuck !"),
    Case("grpc-stream-unknown-method", "stream rpc test.Echo Nothing one"),
    Case("grpc-stream-unknown-upstream", "stream other test.Echo Stream one"),
)

KNOWN_DIFFERENCES = (
    known.Known("C1", ("service-time",), ("*",)),
    known.Known("C2", ("via",), ("*/grpc-*",)),
    known.Known("C3", ("initial",), ("*/grpc-stream*",)),
)

PARTS = {
    "service-time": re.compile(r",?(x-envoy-upstream-service-time)=\d+"),
    "via": re.compile(r"(\{via_upstream\}| via_upstream)"),
    "initial": re.compile(r"initial (some|none)"),
}
"""What is compared apart from the rest of the guest's words."""


def split(result: str) -> dict[str, str]:
    """Return the parts of what the guest says, and the rest."""
    found = {name: ",".join(pattern.findall(result)) for name, pattern in PARTS.items()}
    for pattern in PARTS.values():
        result = pattern.sub("", result)
    return {**found, "result": result.strip()}


AT_START = replace(
    guests.CALLOUTS, name="callouts-start", configuration="http web GET /ok 1000; http web GET /status/404 0"
)
"""Calls from ``proxy_on_configure``, of the root context."""


class Comparison:
    """Both filters, the servers that they call, and what Envoy's own did."""

    def __init__(self, both: pair.Pair, servers: upstream.Upstream) -> None:
        self._both, self._servers = both, servers
        self._theirs: dict[str, dict[str, str]] = {}
        self.ledger = known.Ledger(KNOWN_DIFFERENCES)

    def theirs(self, case: Case) -> dict[str, str]:
        """Return what Envoy's own filter does; once per case."""
        if case.name not in self._theirs:
            self._theirs[case.name] = self.perform("v8", case)
        return self._theirs[case.name]

    def at_start(self, kind: str) -> dict[str, str]:
        """Return what came of the calls that the plugin made when it was configured."""
        answer = asyncio.run(fetch(self._both.port(f"{kind}-{AT_START.name}"), Request("GET", "/"), 10))
        return split(answer.value("x-start"))

    def perform(self, kind: str, case: Case) -> dict[str, str]:
        """Return what client, upstream and called servers saw."""
        self._servers.heads.clear()
        self._both.recorder.take()
        port = self._both.port(f"{kind}-{guests.CALLOUTS.name}")
        answer = asyncio.run(fetch(port, case.request(), 10))
        called = sorted(head.partition(b" HTTP")[0].decode() for head in self._servers.heads)
        in_body = case.local or case.phase == "response-body"
        result = answer.body.decode() if in_body else answer.value("x-callouts")
        arrived = [request.body for request in self._both.recorder.take()]
        return {"status": str(answer.status), "called": str(called), "arrived": str(arrived), **split(result)}


def clusters(servers: upstream.Upstream) -> list[dict[str, object]]:
    """Return what Envoy's filter calls."""
    rpc = envoy_config.grpc_cluster("rpc", [])
    plain = envoy_config.http_cluster("rpc", servers.grpc_port)
    return [envoy_config.http_cluster("web", servers.port), {**rpc, "load_assignment": plain["load_assignment"]}]


def policy(servers: upstream.Upstream) -> dict[str, object]:
    """Return what sandboxd's plugin may call: what Envoy's filter can."""
    callouts = upstream.policy(servers, timeout="5s", concurrency=64)
    web = callouts["upstreams"]["web"]
    web |= {"methods": ["GET", "HEAD", "POST", "PUT", "DELETE"], "headers": ["*"]}
    web["redact_response_headers"] = {"set-cookie": "show"}
    return {"capabilities": upstream.CAPABILITIES, "callouts": callouts}


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Comparison]:
    with upstream.running() as servers:
        subjects = [Subject(guest, (DUPLEX, "STREAMED"), more=policy(servers)) for guest in (guests.CALLOUTS, AT_START)]
        with pair.running(tuple(subjects), tmp_path_factory.mktemp("callouts"), clusters(servers)) as running:
            yield Comparison(running, servers)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_all_see_the_same(comparison: Comparison, case: Case, kind: str) -> None:
    ours, theirs = comparison.perform(kind, case), comparison.theirs(case)

    comparison.ledger.compare(f"{kind}/{case.name}", ours, theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_the_root_context_sees_the_same(comparison: Comparison, kind: str) -> None:
    """Calls from `proxy_on_configure`, before there is any stream."""
    stage.eventually(lambda: comparison.at_start(kind)["result"].count("[]") == 2, "both answers")

    comparison.ledger.compare(f"{kind}/start", comparison.at_start(kind), comparison.at_start("v8"))


def test_every_known_difference_still_occurs(comparison: Comparison) -> None:
    """What does not differ any more leaves the table."""
    if comparison.ledger.compared < (len(CASES) + 1) * len(KINDS):
        pytest.skip("only after all comparisons")

    assert comparison.ledger.never_met() == set()


def test_every_known_difference_is_explained() -> None:
    """The table here and the headings of docs/compatibility.md name the same differences."""
    assert known.unexplained(KNOWN_DIFFERENCES, "C") == {}
