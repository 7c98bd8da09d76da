"""
Bodies that a plugin may not write, and a worker that was taken over, behind a real Envoy over both transports.

Whatever it says: what arrives is the whole message as it was sent, or nothing; and nobody waits for ever. The twin: the
same program without a misdeed, whose messages arrive.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from sandboxd.demo import echo, envoy, envoy_config, http1
from sandboxd.demo.client import Request, fetch
from tests.escape.test_trusted_side import Target
from tests.support import envoy_module, guests, stage
from tests.support.daemon_client import policy_text

pytestmark = [pytest.mark.envoy, pytest.mark.timeout(120)]

DEEDS = (
    *("body-ends-with-headers", "body-ends-early", "body-trailers-first", "body-left-behind", "body-forged"),
    *("body-late", "body-mute"),
)
MORE = "write: {body: false}\nlimits: {time_per_event: 300ms, time_per_pause: 1s}\n"
MORE += "failure: {restart: {backoff: 0ms, max_crashes: 1000}}"
ANSWER_S = 8.0
MAX_GROWN_KIB = 64 << 10

BODY = b"one two three four"
RESPONSE = (("x-echo-body", "reflect"), ("x-echo-chunks", "4"), ("x-echo-trailers", "x-end=1"))
LONG = ("whole", "none")
"""Kinds of requests whose attacks are among the long tests."""
REQUESTS = {
    "whole": Request("POST", "/", RESPONSE, BODY),
    "pieces": Request("POST", "/", RESPONSE, BODY, (4, 4, 6, 4), chunk_pause_s=0.02),
    "trailers": Request("POST", "/", RESPONSE, BODY, (4, 4, 6, 4), (("x-end", "1"),), 0.02),
    "none": Request("GET", "/", RESPONSE),
}


@dataclass(frozen=True)
class Scene:
    """Envoy before the daemon under attack."""

    proxy: envoy.Envoy
    recorder: echo.Recorder

    def send(self, deed: str, transport: str, kind: str) -> tuple[http1.Message | None, tuple[http1.Message, ...]]:
        """Return the answer, None if there was none, and what the upstream saw whole."""
        self.recorder.take()
        answer = None
        port = self.proxy.ports[f"{transport}-evil-{deed}"]
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            answer = asyncio.run(fetch(port, REQUESTS[kind], ANSWER_S))
        return answer, self.recorder.take()

    def resident_kib(self) -> int:
        """Return Envoy's memory."""
        status = Path(f"/proc/{self.proxy.child.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0])


def listeners(target: Target) -> Iterator[dict[str, object]]:
    """Yield one for each deed and transport."""
    attach = target.directory / "runtime" / "attach.sock"
    mode = envoy_config.processing_mode("FULL_DUPLEX_STREAMED", trailers=True)
    for deed in ("body-twin", *DEEDS):
        tenant = f"evil-{deed}"
        plain, routed = (
            envoy_config.route("/", "upstream", per_filter)
            for per_filter in (None, envoy_config.ext_proc_route(tenant, "main", mode))
        )
        yield envoy_config.listener(f"{stage.SHM}-{tenant}", [envoy_config.shm(attach, tenant, "main")], [plain])
        ext_proc = envoy_config.ext_proc("sandboxd", timeout_s=5.0)
        yield envoy_config.listener(f"{stage.EXT_PROC}-{tenant}", [ext_proc], [routed])


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    envoy_module.built()
    recorder = echo.Recorder()
    module = guests.HTTP_BODY_RESPONSE.path
    more = {f"evil-{deed}": policy_text(f"evil-{deed}", module, more=MORE) for deed in ("body-twin", *DEEDS)}
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sbx")))
        upstream = stack.enter_context(echo.running(recorder.record))
        target = Target(directory, (), attach="attach: {channels: 1}\n", **more)
        stack.callback(target.process.wait, 30)
        stack.callback(target.process.terminate)
        sockets = [directory / "runtime" / "front-0.sock"]
        clusters = [
            envoy_config.http_cluster("upstream", upstream.port),
            envoy_config.grpc_cluster("sandboxd", sockets),
        ]
        config = envoy_config.bootstrap(list(listeners(target)), clusters)
        place = directory / "envoy"
        place.mkdir()
        yield Scene(stack.enter_context(envoy.running(config, place)), recorder)
        found = target.log.find("Traceback")
        assert found < 0, target.log[max(found - 500, 0) : found + 4000]


@pytest.mark.parametrize("kind", REQUESTS)
@pytest.mark.parametrize("transport", stage.TRANSPORTS)
def test_twin_is_served(scene: Scene, transport: str, kind: str) -> None:
    answer, seen = scene.send("body-twin", transport, kind)

    assert answer is not None
    body = REQUESTS[kind].body or b""
    assert (answer.status, answer.body, [message.body for message in seen]) == (200, body, [body])


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.long] if kind in LONG else []) for kind in REQUESTS]
)
@pytest.mark.parametrize("transport", stage.TRANSPORTS)
@pytest.mark.parametrize("deed", DEEDS)
def test_what_arrives_is_whole_and_true(scene: Scene, deed: str, transport: str, kind: str) -> None:
    began_s = time.monotonic()
    answer, seen = scene.send(deed, transport, kind)

    body = REQUESTS[kind].body or b""
    assert [message.body for message in seen] in ([], [body])
    assert answer is None or answer.status != 200 or answer.body == body
    assert time.monotonic() - began_s < ANSWER_S
    served, _ = scene.send("body-twin", transport, kind)
    assert served is not None
    assert served.status == 200


def test_bodies_that_nobody_sent_fill_no_memory(scene: Scene) -> None:
    """Of many streams at once; each would be some fourteen megabytes."""
    before = scene.resident_kib()
    for _ in range(20):
        scene.send("body-late", stage.SHM, "pieces")
    assert scene.resident_kib() - before < MAX_GROWN_KIB
