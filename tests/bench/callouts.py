"""
What it costs that a callout is made by the broker: the time from a plugin's call to its answer, against the very same
client without sandboxd, to the same server in a process of its own, one call at a time and taken in turns.
"""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import uvloop

from sandboxd import client
from sandboxd.channel.pairs import encode
from sandboxd.demo import daemon
from sandboxd.egress.budget import Budget
from sandboxd.egress.http import HttpUpstream
from sandboxd.egress.resolve import SystemLookup
from sandboxd.egress.rules import http_request
from sandboxd.policy.callouts import Scheme, Upstream
from sandboxd.protos import control_pb2 as control
from sandboxd.supervisor.upstream_tls import Material
from tests.support import guests, stage
from tests.support.upstream import CAPABILITIES, LOOPBACK

ROOT = Path(__file__).resolve().parents[2]
FIGURES = ("callout_direct_us", "callout_us", "callout_overhead_us")
CALLS = 200
"""Of each kind in a round."""
WARM = 20
GET = [(b":method", b"GET"), (b":path", b"/"), (b":authority", b"bench.local"), (b":scheme", b"http")]
CALL = (b"x-do", b"http web GET /ok 0")


@contextlib.contextmanager
def _server() -> Iterator[int]:
    """Serve in another process; yields the port."""
    command = [sys.executable, "-m", "tests.support.upstream"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.stdin.close()
            process.wait(10)


def _tenant(port: int) -> stage.Tenant:
    web = {"url": f"http://127.0.0.1:{port}", "paths": ["/ok"], "allow_addresses": LOOPBACK}
    return stage.Tenant(
        "bench", [guests.CALLOUTS.plugin(capabilities=CAPABILITIES, callouts={"upstreams": {"web": web}})]
    )


async def _direct(upstream: Upstream, count: int) -> float:
    """Return the median of calls by the broker's own client in this process."""
    headers = encode([(b":method", b"GET"), (b":path", b"/ok"), (b":authority", b"a")])
    found = HttpUpstream(upstream, Material(), SystemLookup())
    try:
        taken = []
        for number in range(WARM + count):
            started = time.perf_counter_ns()
            response = await found.call(http_request(upstream, control.HttpCall(headers=headers)), Budget().lease())
            if number >= WARM:
                taken.append(time.perf_counter_ns() - started)
            assert response.body == b"ok"
        return statistics.median(taken) / 1000
    finally:
        await found.close()


async def _filtered(session: client.AsyncSession, count: int, *more: tuple[bytes, bytes]) -> float:
    """Return the median time of a request's headers through the plugin."""
    taken = []
    for number in range(WARM + count):
        stream = await session.open_stream({})
        started = time.perf_counter_ns()
        outcome = await stream.request_headers([*GET, *more], True)
        if number >= WARM:
            taken.append(time.perf_counter_ns() - started)
        assert outcome.failure is None, outcome.failure
        response = await stream.response_headers([(b":status", b"200")], True)
        stream.close()
        assert not more or (b"x-callouts", b"200 2 ok []") in (response.headers or [])
    return statistics.median(taken) / 1000


async def _rounds(rounds: int, port: int, attach: Path) -> dict[str, list[float]]:
    loopback = tuple(map(ip_network, LOOPBACK))
    upstream = Upstream("web", Scheme.HTTP, "127.0.0.1", port, ("/ok",), allow_addresses=loopback)
    found: dict[str, list[float]] = {name: [] for name in FIGURES}
    async with await client.connect_async(attach, "bench", guests.CALLOUTS.name) as session:
        for _ in range(rounds):
            direct = await _direct(upstream, CALLS)
            callout = await _filtered(session, CALLS, CALL) - await _filtered(session, CALLS)
            for name, value in zip(FIGURES, (direct, callout, callout - direct), strict=True):
                found[name].append(round(value, 1))
    return found


def measure(rounds: int, directory: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """
    Return the figures, each the median of the rounds, and the rounds.

    Args:
        rounds: how many.
        directory: empty subfolders are made in it.
        say: takes lines of progress.
    """
    say("callouts")
    place = directory / "callouts"
    policies = place / "policies"
    policies.mkdir(parents=True)
    config = {"attach": {"channels": 1}, "jail": {"self_test": False}}
    with _server() as port:
        _tenant(port).write(policies)
        with daemon.running(policies, place, config=config) as running:
            running.expect_tenants()
            found = uvloop.run(_rounds(rounds, port, running.runtime / "attach.sock"))
    medians = {name: round(statistics.median(values), 1) for name, values in found.items()}
    return {**medians, "callout_rounds": found}


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory(prefix="sandboxd-bench-") as name:
        print(measure(5, Path(name), print))
