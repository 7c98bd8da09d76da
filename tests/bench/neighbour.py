"""
What a noisy tenant costs its neighbour: the neighbour's p99 alone and beside a tenant that misbehaves in all ways.

Both in the same run, on the same daemon and Envoy, quiet and noisy in turns. The neighbour's load is light, so that
its latency is that of the path and not of a queue; the noisy tenant's requests come at a bounded rate, for who sends
more than a proxy takes is the proxy's business. The noisy tenant has no share of the CPU of its own
(``isolation.cpu``): what protects the neighbour here is what every tenant gets by default. A third kind of turn has a
polite tenant send as many requests, to tell what misbehaving costs from what any company costs on a shared front.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandboxd.demo import http1
from sandboxd.demo.client import Connection, Request
from tests.bench import load
from tests.support import guests, stage
from tests.support.stage import Stage, Tenant

FIGURES = (
    *(f"neighbour_{name}_p99_us" for name in ("alone", "polite", "noisy")),
    *(f"{name}_neighbour_{figure}_ratio" for name in ("polite", "noisy") for figure in ("p50", "p99")),
)
CALM = guests.C_ADD_HEADER
LOUD = tuple(map(guests.misdeed, ("loop_in_request_headers", "grow_forever", "log_flood")))
CALM_CONNECTIONS = 4
CALM_PAUSE_US = 20_000
LOUD_CONNECTIONS = 1
LOUD_PAUSE_US = 100_000
"""Of each misdeed: together about a sixth of the calm tenant's requests."""
CHECKED = 50
"""Answers of the calm tenant that are compared whole in each turn."""


@dataclass(frozen=True)
class Turn:
    """One turn: the calm tenant's latency, and what it got."""

    load: load.Load
    answers: frozenset[tuple[int, bytes, tuple[tuple[str, str], ...]]]


def _path(tenant: str, guest: guests.Guest) -> str:
    return f"/{tenant}/{guest.name}/x"


def _whole(message: http1.Message) -> tuple[int, bytes, tuple[tuple[str, str], ...]]:
    changing = ("date", "x-envoy-upstream-service-time", "x-request-id")
    return message.status, message.body, tuple(item for item in message.headers if item[0].lower() not in changing)


async def _answers(port: int) -> frozenset[tuple[int, bytes, tuple[tuple[str, str], ...]]]:
    connection = await Connection.open(port)
    request = Request("GET", _path("calm", CALM), (("x-request-id", "a"),))
    found = [_whole(await connection.exchange(request)) for _ in range(CHECKED)]
    await connection.close()
    return frozenset(found)


@contextlib.contextmanager
def _company(program: Path, running: Stage, paths: Sequence[str], seconds: float) -> Iterator[None]:
    """Have others' routes asked for, whatever comes of it."""
    loud = [
        subprocess.Popen(
            load.command(program, running.port, LOUD_CONNECTIONS, seconds, load.Route(path, LOUD_PAUSE_US)),
            stdout=subprocess.DEVNULL,
        )
        for path in paths
    ]
    try:
        yield
    finally:
        for process in loud:
            process.kill()
            process.wait()


def _turn(program: Path, running: Stage, seconds: float) -> Turn:
    route = load.Route(_path("calm", CALM), CALM_PAUSE_US)
    found = load.run(program, running.port, CALM_CONNECTIONS, seconds, route)
    return Turn(found, asyncio.run(_answers(running.port)))


def measure(rounds: int, seconds: float, directory: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """
    Return the figures: medians over rounds, the ratio that of each round.

    Raises:
        LoadError: the calm tenant's answers were not all 200, or not all the same.
    """
    program = load.build(Path("build"))
    place = directory / "neighbour"
    place.mkdir()
    tenants = (
        Tenant("calm", [CALM.plugin()]),
        Tenant("polite", [CALM.plugin()]),
        Tenant("loud", [guest.plugin() for guest in LOUD]),
    )
    company = {
        "alone": (),
        "polite": (_path("polite", CALM),) * len(LOUD),
        "noisy": tuple(_path("loud", guest) for guest in LOUD),
    }
    turns: dict[str, list[Turn]] = {name: [] for name in company}
    with stage.running(place, tenants, config={"log": {"level": "warning"}}) as running:
        _turn(program, running, 0.5)
        for number in range(rounds):
            for name in company if number % 2 == 0 else reversed(company):
                with _company(program, running, company[name], seconds + 60):
                    turns[name].append(_turn(program, running, seconds))
            p99 = ", ".join(f"{name} {found[-1].load.p99_us:.0f} us" for name, found in turns.items())
            say(f"neighbour, round {number + 1} of {rounds}: p99 {p99}")
    return summarise(turns)


def summarise(turns: dict[str, list[Turn]]) -> dict[str, Any]:
    """Return the figures by the names that ``bench.json`` uses. Raises as `measure`."""
    answers = frozenset[Any]().union(*(turn.answers for found in turns.values() for turn in found))
    if len(answers) != 1 or next(iter(answers))[0] != 200:
        raise load.LoadError(f"beside a noisy neighbour a tenant got {len(answers)} different answers: {answers}")
    figures: dict[str, Any] = {}
    for name, found in turns.items():
        figures[f"neighbour_{name}_p99_us"] = round(statistics.median(turn.load.p99_us for turn in found), 1)
    for name in ("polite", "noisy"):
        for figure in ("p50", "p99"):
            values = [
                getattr(beside.load, f"{figure}_us") / getattr(alone.load, f"{figure}_us")
                for alone, beside in zip(turns["alone"], turns[name], strict=True)
            ]
            figures[f"{name}_neighbour_{figure}_ratio"] = round(statistics.median(values), 3)
    return figures
