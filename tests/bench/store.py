"""
What a read of shared data costs when it lies in a Valkey or Redis server: the wall time of one `proxy_get_shared_data`,
for which the guest waits, over worker, supervisor and server and back; all on this machine, one at a time.

A request that reads often is held against one that reads nothing. Where there is no server there is no figure.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sandboxd import client
from sandboxd.demo import daemon
from tests.support import guests, redis_server, stage

FIGURES = ("store_get_us",)
READS = 50
"""In a request."""
REQUESTS = 40
"""Of each kind in a round."""
WARM = 5
GET = [(b":method", b"GET"), (b":path", b"/"), (b":authority", b"bench.local"), (b":scheme", b"http")]
LIMITS = {"time_per_event": "5s", "cpu_per_call": "1s"}


async def _told(session: client.AsyncSession, commands: list[str]) -> tuple[str, int]:
    """Return what the guest says to its commands, and how long that took in nanoseconds."""
    stream = await session.open_stream({})
    started = time.perf_counter_ns()
    outcome = await stream.request_headers([*GET, (b"x-state", ";".join(commands).encode())], True)
    taken = time.perf_counter_ns() - started
    stream.close()
    assert outcome.failure is None, outcome.failure
    return dict(outcome.headers or []).get(b"x-result", b"").decode(), taken


async def _median_ns(session: client.AsyncSession, reads: int) -> float:
    """Return the median time of a request with so many reads."""
    taken = []
    for number in range(WARM + REQUESTS):
        said, one = await _told(session, ["get key"] * reads)
        assert said == "; ".join(["0=value cas"] * reads), said
        if number >= WARM:
            taken.append(one)
    return statistics.median(taken)


async def _rounds(rounds: int, attach: Path) -> list[float]:
    async with await client.connect_async(attach, "bench", guests.C_STATE_PROBE.name) as session:
        said, _ = await _told(session, ["set key value 0"])
        assert said == "0", said
        found = []
        for _ in range(rounds):
            some = await _median_ns(session, READS)
            found.append(round((some - await _median_ns(session, 0)) / READS / 1000, 1))
    return found


def measure(rounds: int, directory: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """
    Return the figure, the median of the rounds, and the rounds; nothing if there is no server.

    Args:
        rounds: how many.
        directory: empty subfolders are made in it.
        say: takes lines of progress, and that there is no server.
    """
    say("shared data in a Redis server")
    place = directory / "store"
    policies = place / "policies"
    policies.mkdir(parents=True)
    server = redis_server.Server(place)
    try:
        redis_server.command()
    except FileNotFoundError as error:
        say(f"NOT MEASURED: {', '.join(FIGURES)}: {error}")
        return {}
    try:
        server.start()
        backend = {"shared": {"backend": {"url": server.url, "timeout": "1s"}}}
        stage.Tenant("bench", [guests.C_STATE_PROBE.plugin(limits=LIMITS)], more=backend).write(policies)
        config = {"attach": {"channels": 1}, "jail": {"self_test": False}}
        with daemon.running(policies, place, config=config) as running:
            running.expect_tenants()
            found = asyncio.run(_rounds(rounds, running.runtime / "attach.sock"))
    finally:
        server.stop()
    return {"store_get_us": round(statistics.median(found), 1), "store_get_rounds": found}


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory(prefix="sandboxd-bench-") as name:
        print(measure(5, Path(name), print))
