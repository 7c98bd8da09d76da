"""
The dynamic module in a chain with filters that keep bodies: Envoy's own, and the module itself a second time.

Envoy has one buffer for the bodies of all filters of a chain. What one of them keeps there must not be taken for
another's: bytes that go twice are the next request on a connection to the upstream.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sandboxd.demo import daemon, echo, envoy, envoy_config, http1
from sandboxd.demo.client import Request, fetch
from tests.support import envoy_module, guests
from tests.support.pair import QUIET

pytestmark = [pytest.mark.envoy, pytest.mark.timeout(120)]

TYPE = "type.googleapis.com/envoy.extensions.filters.http"
BUFFER = {
    "name": "envoy.filters.http.buffer",
    "typed_config": {"@type": f"{TYPE}.buffer.v3.Buffer", "max_request_bytes": 1 << 20},
}
SLOW, UPPER, HEADERS, RESPONSE = (
    guests.C_SLOW_BODY, guests.C_UPPER_BODY, guests.C_ADD_HEADER, guests.HTTP_BODY_RESPONSE,
)  # fmt: skip
"""Holds each piece for a moment; makes the request's body upper case; looks at headers alone; holds responses whole."""

CHAINS: dict[str, tuple[guests.Guest | dict[str, Any] | None, ...]] = {
    "buffer-none": (BUFFER, None),
    "none-buffer": (None, BUFFER),
    "buffer-headers": (BUFFER, HEADERS),
    "headers-buffer": (HEADERS, BUFFER),
    "buffer-slow": (BUFFER, SLOW),
    "slow-buffer": (SLOW, BUFFER),
    "buffer-upper": (BUFFER, UPPER),
    "upper-buffer": (UPPER, BUFFER),
    "slow-upper": (SLOW, UPPER),
    "upper-slow": (UPPER, SLOW),
    "slow-response": (SLOW, RESPONSE),
    "response-slow": (RESPONSE, SLOW),
    "slow-slow": (SLOW, SLOW),
    "slow-buffer-slow-upper-headers": (SLOW, BUFFER, SLOW, UPPER, HEADERS),
}
"""None: the module on a route without a plugin."""


@dataclass(frozen=True)
class Running:
    """The whole."""

    proxy: envoy.Envoy
    recorder: echo.Recorder


def filters(chain: str, attach: Path, spin_us: int) -> Iterator[dict[str, Any]]:
    """Yield the filters of a chain."""
    for index, link in enumerate(CHAINS[chain]):
        if isinstance(link, dict):
            yield link
            continue
        names = ("chained", link.name) if link else ("", "")
        yield {**envoy_config.shm(attach, *names, spin_us=spin_us), "name": f"sandboxd.{index}"}


@pytest.fixture(scope="module", params=[0, 2000], ids=["later", "at-once"])
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Envoy with a listener for each chain; verdicts come while its thread looks for them, or later."""
    directory = tmp_path_factory.mktemp("chain")
    policies = directory / "policies"
    policies.mkdir()
    plugins = [guest.plugin() for guest in (SLOW, UPPER, HEADERS, RESPONSE)]
    policy = {"tenant": "chained", "isolation": {"pids": 32}, "plugins": plugins}
    (policies / "chained.yaml").write_text(json.dumps(policy))
    recorder = echo.Recorder()
    envoy_module.built()
    with echo.running(recorder.record) as upstream, daemon.running(policies, directory, config=QUIET) as sandbox:
        sandbox.expect_tenants()
        routes = [envoy_config.route("/", "upstream")]
        attach = sandbox.runtime / "attach.sock"
        listeners = [
            envoy_config.listener(name, list(filters(name, attach, request.param)), routes, buffer_bytes=1 << 20)
            for name in CHAINS
        ]
        config = envoy_config.bootstrap(listeners, [envoy_config.http_cluster("upstream", upstream.port)])
        with envoy.running(config, directory) as proxy:
            yield Running(proxy, recorder)


BODY = b"".join(b"%04x:abcdefghij" % number for number in range(2000))
REQUESTS = {
    "whole": Request("POST", "/", (), BODY),
    "pieces": Request("POST", "/", (), BODY[:120], (7, 1, 31), chunk_pause_s=0.004),
    "long-pieces": Request("POST", "/", (), BODY, (4093, 7, 9000), chunk_pause_s=0.004),
    "trailers": Request("POST", "/", (), BODY[:300], (100,), (("x-end", "e"),), chunk_pause_s=0.004),
}
ANSWER = (("x-echo-body-size", "30000"), ("x-echo-chunks", "1,4093,7"))


def seen_by_upstream(running: Running, chain: str, request: Request) -> tuple[http1.Message, http1.Message]:
    """Return what the upstream got and what the client got of one exchange."""
    running.recorder.take()
    wanted = Request(request.method, "/", ANSWER, request.body, request.chunks, request.trailers, request.chunk_pause_s)
    answer = asyncio.run(fetch(running.proxy.ports[chain], wanted, 20))
    (seen,) = running.recorder.take()
    return seen, answer


def is_refused(chain: str, kind: str) -> bool:
    """Whether a chain keeps bodies behind a filter that lets their pieces go later, and the request has no length."""
    links = CHAINS[chain]
    before = links[: links.index(BUFFER)] if BUFFER in links else ()
    return kind != "whole" and any(guest in before for guest in (SLOW, UPPER))


COMBINATIONS = [(chain, kind) for chain in CHAINS for kind in REQUESTS]


@pytest.mark.parametrize(("chain", "kind"), [pair for pair in COMBINATIONS if is_refused(*pair)])
def test_a_body_is_refused_that_would_be_counted_twice(running: Running, chain: str, kind: str) -> None:
    """Or it is whole: that is a matter of when the verdicts come."""
    request = REQUESTS[kind]
    running.recorder.take()
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        asyncio.run(fetch(running.proxy.ports[chain], request, 20))
    for seen in running.recorder.take():
        assert seen.body.lower() == request.body


@pytest.mark.parametrize(("chain", "kind"), [pair for pair in COMBINATIONS if not is_refused(*pair)])
def test_each_byte_goes_through_each_filter_once(running: Running, chain: str, kind: str) -> None:
    request = REQUESTS[kind]
    seen, answer = seen_by_upstream(running, chain, request)

    assert request.body is not None
    assert seen.body == (request.body.upper() if UPPER in CHAINS[chain] else request.body)
    if BUFFER not in CHAINS[chain]:  # which gives the body a length, and so drops its trailers
        assert seen.trailers == request.trailers
    assert (answer.status, answer.body) == (200, echo.pattern(30000))
