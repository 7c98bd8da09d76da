"""Requests per second through one Envoy: no filter, its own Wasm filter, ext_proc without and with us."""

from __future__ import annotations

import contextlib
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandboxd.demo import daemon, envoy, envoy_config
from sandboxd.demo.process import Child
from tests.bench import load
from tests.support import guests

TENANT = "bench"
GUEST = guests.HTTP_HEADERS
SUBJECTS = ("none", "v8", "ext_proc_noop", "ext_proc")
"""In the order in which the first round measures them."""


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    rounds: int
    seconds: float
    connections: int
    servers: int
    """Processes of the ext_proc servers, the same for both."""


@contextlib.contextmanager
def _noop_servers(directory: Path, count: int) -> Iterator[list[Path]]:
    sockets = [directory / f"noop-{index}.sock" for index in range(count)]
    with contextlib.ExitStack() as stack:
        for path in sockets:
            arguments = [sys.executable, "-m", "tests.support.noop_ext_proc", str(path)]
            child = Child("the no-op server", arguments, path.with_suffix(".log"))
            stack.callback(child.stop)
            child.wait_until(path.exists, 20)
        yield sockets


def _policies(directory: Path) -> Path:
    policies = directory / "policies"
    policies.mkdir()
    (policies / "bench.yaml").write_text(json.dumps({"tenant": TENANT, "plugins": [GUEST.plugin()]}))
    return policies


def _listeners() -> list[dict[str, Any]]:
    # Envoy answers by itself, so that an upstream is no part of the figures. No attributes are asked for.
    routes = [envoy_config.direct_route("hello world\n")]
    bare: dict[str, Any] = {"request_attributes": [], "response_attributes": []}
    metadata = envoy_config.metadata(TENANT, GUEST.name)
    service = {"envoy_grpc": {"cluster_name": "sandboxd"}, "initial_metadata": metadata}
    filters = {
        "none": [],
        "v8": [envoy_config.wasm(GUEST.name, GUEST.path)],
        "ext_proc_noop": [envoy_config.ext_proc("noop", **bare)],
        "ext_proc": [envoy_config.ext_proc("sandboxd", grpc_service=service, **bare)],
    }
    return [envoy_config.listener(name, filters[name], routes) for name in SUBJECTS]


def measure(plan: Plan, directory: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Return the figures of all subjects: medians over rounds; in each, every subject had its turn."""
    program = load.build(Path("build"))
    quiet = {"log": {"level": "warning"}}
    with contextlib.ExitStack() as stack:
        noop = stack.enter_context(_noop_servers(directory, plan.servers))
        sandbox = stack.enter_context(
            daemon.running(_policies(directory), directory, fronts=plan.servers, config=quiet)
        )
        sandbox.expect_tenants()
        servers = {"noop": noop, "sandboxd": sandbox.sockets}
        clusters = [envoy_config.grpc_cluster(name, sockets) for name, sockets in servers.items()]
        proxy = stack.enter_context(envoy.running(envoy_config.bootstrap(_listeners(), clusters), directory))
        for name in SUBJECTS:
            load.run(program, proxy.ports[name], plan.connections, 0.5)
        found: dict[str, list[load.Load]] = {name: [] for name in SUBJECTS}
        for number in range(plan.rounds):
            # To and fro, so that a drift of the machine meets every subject alike.
            for name in SUBJECTS if number % 2 == 0 else reversed(SUBJECTS):
                found[name].append(load.run(program, proxy.ports[name], plan.connections, plan.seconds))
            rates = ", ".join(f"{name} {found[name][-1].rps:.0f}/s" for name in SUBJECTS)
            say(f"round {number + 1} of {plan.rounds}: {rates}")
    return summarise(found)


def summarise(found: dict[str, list[load.Load]]) -> dict[str, Any]:
    """Return the medians by the names that ``bench.json`` uses."""
    figures: dict[str, Any] = {}
    for name, rounds in found.items():
        for figure in ("rps", "p50_us", "p99_us"):
            figures[f"{name}_{figure}"] = round(statistics.median(getattr(one, figure) for one in rounds), 1)
        figures[f"{name}_rps_rounds"] = [one.rps for one in rounds]
    pairs = zip(found["ext_proc"], found["ext_proc_noop"], strict=True)
    # Round by round: what slows the machine down for a while slows both down.
    figures["ext_proc_ratio"] = round(statistics.median(ours.rps / noop.rps for ours, noop in pairs), 3)
    return figures
