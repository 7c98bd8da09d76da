"""
What is spent while nothing happens: the CPU of daemon, fronts, worker and dynamic module together.

Envoy has had traffic through the module, so its worker thread has a channel, and every stream has ended; then all are
watched for some seconds. Envoy itself is not idle without traffic (it writes its statistics, for one), so what
counts of it is the module's own thread; the rest stands beside it for comparison.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bench import load, processes
from tests.support import guests, stage

FIGURES = ("idle_cpu_percent", "idle_envoy_cpu_percent")
WATCHED_S = 12.0
SETTLE_S = 2.0
TRAFFIC_S = 1.0
CONNECTIONS = 16
MODULE_THREADS = "sandboxd"
"""What the names of the module's threads begin with."""
GUEST = guests.HTTP_HEADERS


def _envoy_ns(pid: int) -> tuple[int, int]:
    """Return the CPU time of the module's threads in Envoy, and of all others. Raises LoadError without any."""
    ours = others = found = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        spent = int((task / "schedstat").read_text().split()[0])
        if (task / "comm").read_text().startswith(MODULE_THREADS):
            ours += spent
            found += 1
        else:
            others += spent
    if not found:
        raise load.LoadError(f"Envoy has no thread {MODULE_THREADS}*: the module's thread is not there to be measured")
    return ours, others


def measure(directory: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Return the figures, in percent of one core."""
    place = directory / "idle"
    place.mkdir()
    program = load.build(Path("build"))
    tenants = [stage.Tenant("calm", [GUEST.plugin()])]
    with contextlib.ExitStack() as stack:
        running = stack.enter_context(
            stage.running(place, tenants, transport=stage.SHM, config={"log": {"level": "warning"}})
        )
        load.run(program, running.port, CONNECTIONS, TRAFFIC_S, load.Route(f"/calm/{GUEST.name}/"))
        assert running.proxy.stats("sandboxd.streams$"), "no stream went through the module"
        time.sleep(SETTLE_S)
        daemon = processes.tree(running.sandbox.child.pid)

        def spent() -> tuple[int, int, int]:
            return processes.fine_cpu_ns(daemon), *_envoy_ns(running.proxy.child.pid)

        started, before = time.monotonic_ns(), spent()
        time.sleep(WATCHED_S)
        taken, after = time.monotonic_ns() - started, spent()
        ours, module, others = (100 * (late - early) / taken for late, early in zip(after, before, strict=True))
    say(f"idle: daemon and workers {ours:.3f} %, the module {module:.3f} %, the rest of Envoy {others:.3f} %")
    return {"idle_cpu_percent": round(ours + module, 3), "idle_envoy_cpu_percent": round(others, 3)}
