"""Requests per second through one Envoy: no filter, its own Wasm filter, ext_proc without and with us, shm."""

from __future__ import annotations

import contextlib
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandboxd.commands.envoy_filters import NOTHING_AFTER_RESPONSE_HEADERS
from sandboxd.demo import daemon, envoy, envoy_config
from sandboxd.demo.process import Child
from tests.bench import load
from tests.support import envoy_module, guests

TENANT = "bench"
GUEST = guests.HTTP_HEADERS
SUBJECTS = ("none", "v8", "shm", "ext_proc_noop", "ext_proc")
"""In the order in which the first round measures them."""
FIGURES = (
    *(f"{name}_{figure}" for name in SUBJECTS for figure in ("rps", "p50_us", "p99_us")),
    *("shm_vs_v8_rps_ratio", "shm_vs_v8_p99_ratio", "shm_vs_ext_proc_rps_ratio", "ext_proc_ratio"),
)


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    rounds: int
    seconds: float
    connections: int
    servers: int
    """Processes of the ext_proc servers, the same for both."""
    spin_us: int | None = None
    """Busy waiting of VMs, fronts and the dynamic module; None: what is the default on this machine."""


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


def _listeners(attach: Path) -> list[dict[str, Any]]:
    # Envoy answers by itself, so that an upstream is no part of the figures. No attributes are asked for.
    routes = [envoy_config.direct_route("hello world\n")]
    bare: dict[str, Any] = {"request_attributes": [], "response_attributes": []}
    # Nothing comes after the response headers, which is what `sandboxd envoy-config` says of such a mode as well.
    metadata = [*envoy_config.metadata(TENANT, GUEST.name), NOTHING_AFTER_RESPONSE_HEADERS]
    service = {"envoy_grpc": {"cluster_name": "sandboxd"}, "initial_metadata": metadata}
    filters = {
        "none": [],
        "v8": [envoy_config.wasm(GUEST.name, GUEST.path)],
        "shm": [envoy_config.shm(attach, TENANT, GUEST.name)],
        "ext_proc_noop": [envoy_config.ext_proc("noop", **bare)],
        "ext_proc": [envoy_config.ext_proc("sandboxd", grpc_service=service, **bare)],
    }
    return [envoy_config.listener(name, filters[name], routes) for name in SUBJECTS]


def measure(plan: Plan, directory: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Return the figures of all subjects: medians over rounds; in each, every subject had its turn."""
    program = load.build(Path("build"))
    envoy_module.built()
    quiet: dict[str, Any] = {"log": {"level": "warning"}, "attach": {}}
    if plan.spin_us is not None:
        quiet |= {"worker": {"spin_us": plan.spin_us}, "channel": {"spin_us": plan.spin_us}}
    with contextlib.ExitStack() as stack:
        noop = stack.enter_context(_noop_servers(directory, plan.servers))
        sandbox = stack.enter_context(
            daemon.running(_policies(directory), directory, fronts=plan.servers, config=quiet)
        )
        sandbox.expect_tenants()
        servers = {"noop": noop, "sandboxd": sandbox.sockets}
        clusters = [envoy_config.grpc_cluster(name, sockets) for name, sockets in servers.items()]
        proxy = stack.enter_context(
            envoy.running(envoy_config.bootstrap(_listeners(sandbox.runtime / "attach.sock"), clusters), directory)
        )
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
    figures["shm_vs_v8_rps_ratio"] = _ratio(found, "rps", "shm", "v8")
    figures["shm_vs_v8_p99_ratio"] = _ratio(found, "p99_us", "shm", "v8")
    figures["shm_vs_ext_proc_rps_ratio"] = _ratio(found, "rps", "shm", "ext_proc")
    figures["ext_proc_ratio"] = _ratio(found, "rps", "ext_proc", "ext_proc_noop")
    return figures


def _ratio(found: dict[str, list[load.Load]], figure: str, ours: str, theirs: str) -> float:
    # Round by round: what slows the machine down for a while slows both down.
    pairs = zip(found[ours], found[theirs], strict=True)
    return round(statistics.median(getattr(one, figure) / getattr(other, figure) for one, other in pairs), 3)
