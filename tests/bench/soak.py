"""
`python -m tests.bench soak`: many exchanges through Envoy while workers are killed and plugins reloaded.

Each exchange is followed by its number at both ends (`exchanges.c`): asked once, seen by the upstream at most once,
answered exactly once, and as the failure policy of its lane says. Memory and descriptors of Envoy, daemon and fronts
are watched. Writes what it found into ``build/soak.json``. Exit code 0: all as it should be; 1: the lines that begin
with ``WRONG`` say what is not; 2: something could not be measured.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sandboxd.demo import daemon, envoy, envoy_config
from sandboxd.demo.envoy import EnvoyMissingError
from sandboxd.demo.process import ChildFailedError
from sandboxd.errors import SandboxdError
from tests.bench import load, soak_everything, soak_scenes, soak_verdict
from tests.bench.soak_running import Running, Trouble
from tests.bench.soak_scenes import Lane, Part, Scene
from tests.support import envoy_module, stage

EXCHANGES = Path(__file__).with_name("exchanges.c")
OUTPUT = Path("build/soak.json")


@dataclass(frozen=True)
class Plan:
    """What is done, and for how long: until so many requests or so many seconds are over; 0: no such end."""

    scene: Scene = soak_scenes.PLAIN
    transport: str = stage.SHM
    requests: int = 0
    seconds: int = 0
    connections: int = 16
    trouble: Trouble = field(default_factory=Trouble)
    settle_s: float = 45.0
    """At the end, for streams and workers of older versions, which may take half a minute to end."""


def _config(parts: Sequence[Part]) -> dict[str, Any]:
    """Return sections of the daemon's file."""
    base: dict[str, Any] = {"log": {"level": "error"}, "attach": {"channels": 4}}
    for part in parts:
        base |= part.config
    return base


def _routes(lane: Lane, transport: str) -> Iterator[dict[str, Any]]:
    """Yield the lane's route to the upstream, and the one with `soak_scenes.PROOF_PREFIX`."""
    for route in lane.tenant.routes(transport):
        if route["match"]["prefix"] != lane.path:
            continue
        yield route
        proof = {"match": {"prefix": soak_scenes.PROOF_PREFIX + lane.path}}
        yield {
            **envoy_config.direct_route("ok\n"),
            **proof,
            "typed_per_filter_config": route["typed_per_filter_config"],
        }


@contextlib.contextmanager
def _started(plan: Plan, parts: Sequence[Part], directory: Path, upstream_port: int) -> Iterator[Running]:
    """Run daemon and Envoy for the length of a ``with`` block."""
    policies = directory / "policies"
    policies.mkdir()
    lanes = [lane for part in parts for lane in part.lanes]
    for lane in lanes:
        lane.tenant.write(policies)
    if plan.transport == stage.SHM:
        envoy_module.built()
    with daemon.running(policies, directory, config=_config(parts)) as sandbox:
        sandbox.expect_tenants()
        own = (
            envoy_config.shm(sandbox.runtime / "attach.sock")
            if plan.transport == stage.SHM
            else envoy_config.ext_proc("sandboxd", request_attributes=[], response_attributes=[])
        )
        routes = [route for lane in lanes if lane.is_http for route in _routes(lane, plan.transport)]
        listeners = [envoy_config.listener("soak", [own], routes)]
        clusters = [
            envoy_config.http_cluster("upstream", upstream_port),
            envoy_config.grpc_cluster("sandboxd", sandbox.sockets),
        ]
        for part in parts:
            listeners += map(dict, part.listeners)
            clusters += map(dict, part.clusters)
        with envoy.running(envoy_config.bootstrap(listeners, clusters), directory) as proxy:
            yield Running(parts, plan.trouble, sandbox, proxy, policies)


def _exchange(plan: Plan, running: Running, upstream: socket.socket, program: Path) -> Mapping[str, Mapping[str, int]]:
    """Have the exchanges, sample meanwhile, and return the totals by path."""
    numbers = (upstream.fileno(), running.proxy.ports["soak"], plan.connections, plan.requests, plan.seconds)
    words = [str(program), *map(str, numbers), *(lane.path for lane in running.lanes if lane.is_http)]
    with contextlib.ExitStack() as stack:
        process = stack.enter_context(
            subprocess.Popen(words, stdout=subprocess.PIPE, text=True, pass_fds=[upstream.fileno()])
        )
        stack.callback(process.terminate)
        for part in running.parts:
            stack.enter_context(part.drive(running.proxy.ports))
        stack.enter_context(running.disturbed())
        assert process.stdout is not None
        said: dict[str, Any] = {}
        for line in process.stdout:
            said = json.loads(line)
            if not said["last"] or not running.samples["envoy"]:  # the connections are going by then
                running.sample()
            _say_progress(said, running)
    if not said.get("last"):
        raise load.LoadError(f"{EXCHANGES.name} ended with {process.returncode} before its last report")
    return dict(said["paths"])


def _say_progress(said: Mapping[str, Any], running: Running) -> None:
    sent = sum(totals["sent"] for totals in said["paths"].values())
    if said["last"] or len(running.samples["envoy"]) % 10 == 0:
        print(f"{sent} exchanges, {running.killed} workers killed", file=sys.stderr, flush=True)


def soak(plan: Plan, directory: Path) -> soak_verdict.Outcome:
    """
    Do it and return what came of it.

    Raises:
        LoadError: the program at both ends did not come to its end.
        ChildFailedError, EnvoyMissingError: Envoy or the daemon does not run.
        SandboxdError: the daemon does not answer.
    """
    program = load.build(Path("build"), EXCHANGES)
    with (
        plan.scene() as parts,
        socket.create_server(("127.0.0.1", 0), backlog=1024) as upstream,
        _started(plan, parts, directory, upstream.getsockname()[1]) as running,
    ):
        totals = _exchange(plan, running, upstream, program)
        running.settle(plan.settle_s)
        for part in parts:
            running.said += part.check(running.sandbox)
            running.said += part.prove(running.proxy.ports["soak"])
            running.said += part.judge(running.sandbox)
        for name, child in (("Envoy", running.proxy.child), ("the daemon", running.sandbox.child)):
            if child.exit_code is not None:
                running.said.append(f"{name} ended with {child.exit_code}: {child.said()}")
        return soak_verdict.Outcome(
            [lane for lane in running.lanes if lane.is_http],
            totals,
            {role: samples for role, samples in running.samples.items() if samples},
            running.usage(),
            running.killed,
            running.reloads,
            running.streams(),
            list(dict.fromkeys(running.said)),
            running.brokers_killed,
            {name: value for part in parts for name, value in part.figures(running.sandbox).items()},
        )


def _arguments(words: Sequence[str]) -> Plan:
    parser = argparse.ArgumentParser(prog="python -m tests.bench soak")
    parser.add_argument("--requests", type=int, help="default: 1000000 unless --minutes is given")
    parser.add_argument("--minutes", type=float, default=0.0)
    parser.add_argument("--transport", choices=stage.TRANSPORTS, default=stage.SHM)
    parser.add_argument("--all", action="store_true", help="whatever plugins can do, TCP as well")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--kill-every", type=float, default=3.0, help="seconds; 0: never")
    parser.add_argument("--reload-every", type=float, default=0.0, help="seconds; 0: never")
    parser.add_argument("--kill-broker-every", type=float, default=15.0, help="seconds, in the first half; 0: never")
    found = parser.parse_args(words)
    seconds = int(found.minutes * 60)
    requests = found.requests if found.requests is not None else 0 if seconds else 1_000_000
    trouble = Trouble(found.kill_every, found.reload_every, found.kill_broker_every, seconds / 2)
    scene = soak_everything.scene if found.all else soak_scenes.PLAIN
    return Plan(scene, found.transport, requests, seconds, found.connections, trouble)


def main(words: Sequence[str]) -> int:
    """Soak, print the table, and judge it."""
    plan = _arguments(words)
    started = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="sandboxd-soak-") as name:
            outcome = soak(plan, Path(name))
    except (load.LoadError, ChildFailedError, EnvoyMissingError, SandboxdError) as error:
        print(f"soak: {error}", file=sys.stderr)
        return 2
    wrong = list(soak_verdict.problems(outcome))
    for line in soak_verdict.table(outcome):
        print(line)
    for line in wrong:
        print(f"WRONG {line}")
    conditions = {
        "cores": len(os.sched_getaffinity(0)),
        "transport": plan.transport,
        "connections": plan.connections,
        **asdict(plan.trouble),
        "seconds": round(time.monotonic() - started, 1),
    }
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT.write_text(
        json.dumps({"conditions": conditions, **soak_verdict.figures(outcome), "wrong": wrong}, indent=1) + "\n"
    )
    print(f"written to {OUTPUT}")
    return int(bool(wrong))
