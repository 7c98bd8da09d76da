"""How long tenants wait for a worker: at the start, after a death, with one tenant and with fifty."""

from __future__ import annotations

import os
import signal
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from tests.support.daemon_client import ADD_HEADER, FakeDaemon, alive, fake_daemon, policy_text

FIGURES = (
    "spare_worker_mib",
    "worker_restart_ms",
    "worker_start_50_tenants_ms",
    "worker_start_50_tenants_all_ms",
    "worker_restart_50_tenants_ms",
)
MANY = 50
MIB = 1 << 20
QUIET = "jail: {self_test: false}\nlog: {level: info}\n"
SETTLE_S = 2.0
"""Until the spares are there again."""


def _restart_ms(daemon: FakeDaemon, tenant: str) -> float:
    """Kill a tenant's worker; return the time until a stream of it is served."""
    pid = daemon.worker_pid(tenant)
    started = time.perf_counter()
    os.kill(pid, signal.SIGKILL)
    while alive(pid):
        pass
    time.sleep(0.01)  # a front that still believes in the dead VM would wait for it
    while not daemon.serves(f"{tenant} main"):
        if time.perf_counter() - started > 30:
            raise TimeoutError(f"tenant {tenant} is not served again:\n{daemon.log[-2000:]}")
    return (time.perf_counter() - started) * 1000


def _spare_mib(daemon: FakeDaemon) -> float:
    """Return what a process that waits has for itself."""
    workers = {tenant["worker"]["waiter_pid"] for tenant in daemon.status()["tenants"]}
    children = psutil.Process(daemon.process.pid).children()
    idle = [one for one in children if "sandboxd.worker" in one.cmdline() and one.pid not in workers]
    return statistics.median(one.memory_full_info().uss for one in idle) / MIB


def _one(directory: Path, cache: Path, rounds: int) -> dict[str, Any]:
    directory.mkdir()
    with fake_daemon(directory, cache, {"a": policy_text("alpha", ADD_HEADER)}, fronts=1, more=QUIET) as daemon:
        time.sleep(SETTLE_S)
        figures: dict[str, Any] = {"spare_worker_mib": round(_spare_mib(daemon), 1)}
        found = []
        for _ in range(min(rounds, 3)):  # one that dies more often is made to wait
            found.append(_restart_ms(daemon, "alpha"))
            time.sleep(SETTLE_S)
        figures["worker_restart_ms"] = round(min(found), 1)
    return figures


def _many(directory: Path, cache: Path, rounds: int) -> dict[str, Any]:
    directory.mkdir()
    with fake_daemon(directory, cache, {"a": policy_text("t0", ADD_HEADER)}, fronts=1, more=QUIET) as daemon:
        for number in range(1, MANY):
            (daemon.policies / f"t{number}.yaml").write_text(policy_text(f"t{number}", ADD_HEADER))
        started = time.perf_counter()
        results = daemon.reload()
        taken_ms = (time.perf_counter() - started) * 1000
        late = [name for name, result in results.items() if result["error"]]
        if late or len(results) != MANY:
            raise TimeoutError(f"of {MANY} tenants {late or len(results)} did not start")
        time.sleep(SETTLE_S)
        found = [_restart_ms(daemon, f"t{1 + number}") for number in range(min(rounds, 5)) if not time.sleep(1)]
    return {
        "worker_start_50_tenants_ms": round(taken_ms / (MANY - 1), 1),
        "worker_start_50_tenants_all_ms": round(taken_ms, 0),
        "worker_restart_50_tenants_ms": round(statistics.median(found), 1),
    }


def measure(rounds: int, directory: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """
    Return the figures.

    Raises:
        TimeoutError: a tenant was not served.
    """
    place = directory / "workers"
    place.mkdir()
    cache = place / "cache"
    cache.mkdir(mode=0o700)
    figures = {**_one(place / "one", cache, rounds), **_many(place / "many", cache, rounds)}
    say(f"workers: restart {figures['worker_restart_ms']} ms, {MANY} tenants started in "
        f"{figures['worker_start_50_tenants_all_ms'] / 1000:.1f} s")  # fmt: skip
    return figures
