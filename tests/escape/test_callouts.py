"""
Callouts of workers that were taken over: whatever they say, it is their own policy that decides, and nobody else waits.

The twin is a worker of the same kind that calls what it may.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from sandboxd.limits import MIB
from tests.escape.test_trusted_side import Target, served, set_headers
from tests.support import guests, upstream
from tests.support.daemon_client import wait_for
from tests.support.hostile_callouts import RESULT

pytestmark = pytest.mark.timeout(120)

DEEDS = (
    *("callout-twin", "callout-forbidden-path", "callout-foreign-upstream", "callout-address", "callout-foreign-vm"),
    *("callout-wild-ids", "callout-garbage", "callout-long-piece", "callout-no-end", "callout-many-open"),
    "callout-flood",
)
MORE = "limits: {time_per_event: 8s}\nfailure: {restart: {backoff: 0ms, max_crashes: 1000}}\n"
CALL = (("x-do", "http web GET /ok 0"), ("x-local", "1"))


class Callers(Target):
    """The daemon under attack, and an honest tenant that calls out."""

    def __init__(self, directory: Path, known: upstream.Upstream) -> None:
        callouts = upstream.policy(known, timeout="3s")
        callouts["upstreams"]["web"]["paths"] = ["/ok"]
        honest = guests.CALLOUTS.plugin(capabilities=upstream.CAPABILITIES, callouts=callouts)
        vault = {"upstreams": {"vault": {**callouts["upstreams"]["web"]}}}
        owner = guests.C_ADD_HEADER.plugin(capabilities=upstream.CAPABILITIES, callouts=vault)
        super().__init__(
            directory,
            DEEDS,
            f"{MORE}callouts: {json.dumps(callouts)}\n",
            **{
                "caller": json.dumps({"tenant": "caller", "plugins": [{**honest, "name": "main"}]}),
                "owner": json.dumps({"tenant": "owner", "plugins": [owner]}),
                "evil-callout-unasked": json.dumps(
                    {
                        "tenant": "evil-callout-unasked",
                        "plugins": [{**guests.C_ADD_HEADER.plugin(limits={"time_per_event": "8s"}), "name": "main"}],
                    }
                ),
            },
        )
        self.upstream = known

    def calls(self) -> str:
        """Return what the honest tenant's callout brings."""
        answer = self.request("caller", *CALL)
        return answer.immediate_response.body.decode()

    def attack_calls(self, deed: str) -> bytes:
        """Have a deed done between two honest callouts; return what came of it."""
        assert self.calls() == "200 2 ok []"
        answer = self.attack(deed)
        assert self.calls() == "200 2 ok []"
        assert self.status()["egress"]["restarts"] == 0
        return set_headers(answer).get(RESULT, b"") if served(answer) else b"failed"


@pytest.fixture(scope="module")
def target() -> Iterator[Callers]:
    with upstream.running() as known, tempfile.TemporaryDirectory(prefix="sbx") as directory:
        found = Callers(Path(directory), known)
        try:
            yield found
        finally:
            found.process.terminate()
            found.process.wait(30)
        # gRPC's own, of a client that does not wait, is not ours.
        traces = [line for line in found.log.splitlines() if "Traceback" in line and "ExecuteBatchError" not in line]
        assert not traces, traces[0]


def suppressed(work: Callable[[str], object], tenant: str) -> None:
    """Whether the flood's own request is answered is its own affair."""
    with contextlib.suppress(Exception):
        work(tenant)


def test_twin_calls_what_it_may(target: Callers) -> None:
    assert target.attack_calls("callout-twin") == b"status 200"


@pytest.mark.parametrize(
    ("deed", "answer"),
    [
        ("callout-forbidden-path", b"denied by the policy: paths"),
        ("callout-foreign-upstream", b"denied by the policy: upstreams"),
        ("callout-address", b"denied by the policy: upstreams"),
        ("callout-garbage", b"denied by the policy: form"),
        ("callout-no-end", b"denied by the policy: request_bytes"),
        ("callout-many-open", b"too many callouts are in flight"),
        ("callout-wild-ids", b"status 200"),
    ],
)
def test_a_forged_callout_is_decided_by_the_workers_own_policy(target: Callers, deed: str, answer: bytes) -> None:
    before = len(target.upstream.heads)
    assert target.attack_calls(deed) == answer
    assert all(path == "/ok" for path in target.upstream.paths()[before:])


@pytest.mark.parametrize(
    ("deed", "reason"),
    [
        ("callout-foreign-vm", "spoke of VM"),
        ("callout-long-piece", "a piece of a callout of 60000 bytes"),
    ],
)
def test_a_frame_that_no_worker_sends_costs_the_worker(target: Callers, deed: str, reason: str) -> None:
    target.attack_calls(deed)
    target.killed_for(deed, reason)


def test_a_callout_without_any_upstream_is_denied(target: Callers) -> None:
    assert target.attack_calls("callout-unasked") == b"denied by the policy: upstreams"
    assert "plugin main: a callout is denied: its policy names no upstreams" in target.log
    counters = target.status()["egress"]["callouts"]
    assert counters["evil-callout-unasked/main"] == {"(unknown)": {"denied.upstreams": 1}}


def test_a_flood_is_slowed_down_and_nobody_else_is(target: Callers) -> None:
    """It neither ends the broker, nor fills anybody's memory, nor holds up the neighbour's callouts."""
    wait_for(lambda: target.tenant("evil-callout-flood")["state"] == "running", 20, "its worker runs")
    daemon = psutil.Process(target.process.pid)
    before = daemon.memory_info().rss
    flood = threading.Thread(target=suppressed, args=(target.request, "evil-callout-flood"))
    flood.start()
    while flood.is_alive():
        started = time.monotonic()
        assert target.calls() == "200 2 ok []"
        assert time.monotonic() - started < 2
    flood.join()
    assert daemon.memory_info().rss - before < 64 * MIB
    assert target.status()["egress"]["restarts"] == 0
