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
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sandboxd.demo import daemon, envoy, envoy_config
from sandboxd.demo.envoy import EnvoyMissingError
from sandboxd.demo.process import ChildFailedError
from sandboxd.errors import SandboxdError
from tests.bench import load, processes, soak_scenes, soak_verdict
from tests.bench.soak_scenes import Lane, Part
from tests.support import envoy_module, stage

EXCHANGES = Path(__file__).with_name("exchanges.c")
OUTPUT = Path("build/soak.json")


@dataclass(frozen=True)
class Plan:
    """What is done, and for how long: until so many requests or so many seconds are over; 0: no such end."""

    parts: Sequence[Part] = soak_scenes.PLAIN
    transport: str = stage.SHM
    requests: int = 0
    seconds: int = 0
    connections: int = 16
    kill_every_s: float = 3.0
    reload_every_s: float = 0.0
    """0: never."""
    settle_s: float = 45.0
    """At the end, for streams and workers of older versions, which may take half a minute to end."""

    @property
    def lanes(self) -> tuple[Lane, ...]:
        """The lanes of all parts."""
        return tuple(lane for part in self.parts for lane in part.lanes)

    @property
    def config(self) -> dict[str, Any]:
        """Sections of the daemon's file. For each VM of Envoy's there may be one of an older version beside it."""
        base: dict[str, Any] = {"log": {"level": "error"}, "attach": {"channels": 4}}
        for part in self.parts:
            base |= part.config
        return base


@dataclass
class _Running:
    """The running whole, and what happens to it."""

    plan: Plan
    sandbox: daemon.Daemon
    proxy: envoy.Envoy
    policies: Path
    killed: int = 0
    reloads: int = 0
    samples: dict[str, list[processes.Usage]] = field(default_factory=lambda: {"envoy": [], "daemon": [], "fronts": []})
    said: list[str] = field(default_factory=list)

    def usage(self) -> dict[str, processes.Usage]:
        """Return what the processes hold that live as long as the soak."""
        fronts = [front["pid"] for front in self.sandbox.status()["fronts"]]
        roles = {"envoy": [self.proxy.child.pid], "daemon": [self.sandbox.child.pid], "fronts": fronts}
        return {role: processes.usage(pids) for role, pids in roles.items()}

    def sample(self) -> None:
        """Note what they hold, and let the parts look."""
        for role, found in self.usage().items():
            self.samples[role].append(found)
        for part in self.plan.parts:
            self.said += part.check(self.sandbox)

    def kill(self, lane: Lane) -> None:
        """Kill a lane's worker, if it has one just now."""
        worker = self.sandbox.tenants()[lane.name]["worker"]
        if worker:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker["pid"], signal.SIGKILL)
                self.killed += 1

    def reload(self, lane: Lane) -> None:
        """Bring another version of a lane's plugin."""
        lane.version(self.reloads + 1).write(self.policies)
        done = self.sandbox.command("reload")
        self.reloads += 1
        # A worker that was killed in the middle of its start may make the reload fail; the last version serves on.
        if done.returncode not in (0, 1):
            self.said.append(f"reload: {done.stdout}{done.stderr}")

    def settle(self) -> None:
        """Wait until no stream is open by the workers' reports, and no worker of an older version is left."""
        deadline = time.monotonic() + self.plan.settle_s
        while (self.streams() or self._draining()) and time.monotonic() < deadline:
            time.sleep(0.2)

    def _draining(self) -> int:
        return sum(len(tenant["draining_workers"]) for tenant in self.sandbox.tenants().values())

    def streams(self) -> int:
        """Return how many streams the VMs have open by their last report."""
        tenants = self.sandbox.tenants().values()
        return sum(vm["streams"] for tenant in tenants for plugin in tenant["plugins"] for vm in plugin["vms"])


def _every(seconds: float, stop: threading.Event, lanes: Sequence[Lane], act: Any, said: list[str]) -> None:
    turn = 0
    while not stop.wait(seconds):
        try:
            act(lanes[turn % len(lanes)])
        except (SandboxdError, OSError, subprocess.TimeoutExpired) as error:
            said.append(f"{act.__name__}: {error}")
        turn += 1


@contextlib.contextmanager
def _disturbed(running: _Running) -> Iterator[None]:
    plan, stop = running.plan, threading.Event()
    deeds = ((plan.kill_every_s, running.kill), (plan.reload_every_s, running.reload))
    threads = [
        threading.Thread(target=_every, args=(seconds, stop, plan.lanes, act, running.said))
        for seconds, act in deeds
        if seconds
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _routes(lane: Lane, transport: str) -> Iterator[dict[str, Any]]:
    """Yield the lane's route to the upstream, and the one with `soak_scenes.PROOF_PREFIX`."""
    for route in lane.tenant.routes(transport):
        yield route
        proof = {"match": {"prefix": soak_scenes.PROOF_PREFIX + lane.path}}
        yield {
            **envoy_config.direct_route("ok\n"),
            **proof,
            "typed_per_filter_config": route["typed_per_filter_config"],
        }


@contextlib.contextmanager
def _started(plan: Plan, directory: Path, upstream_port: int) -> Iterator[_Running]:
    """Run daemon and Envoy for the length of a ``with`` block."""
    policies = directory / "policies"
    policies.mkdir()
    for lane in plan.lanes:
        lane.tenant.write(policies)
    if plan.transport == stage.SHM:
        envoy_module.built()
    with contextlib.ExitStack() as stack:
        for part in plan.parts:
            stack.enter_context(part.helper())
        sandbox = stack.enter_context(daemon.running(policies, directory, config=plan.config))
        sandbox.expect_tenants()
        own = (
            envoy_config.shm(sandbox.runtime / "attach.sock")
            if plan.transport == stage.SHM
            else envoy_config.ext_proc("sandboxd", request_attributes=[], response_attributes=[])
        )
        routes = [route for lane in plan.lanes for route in _routes(lane, plan.transport)]
        listener = envoy_config.listener("soak", [own], routes)
        clusters = [
            envoy_config.http_cluster("upstream", upstream_port),
            envoy_config.grpc_cluster("sandboxd", sandbox.sockets),
        ]
        proxy = stack.enter_context(envoy.running(envoy_config.bootstrap([listener], clusters), directory))
        yield _Running(plan, sandbox, proxy, policies)


def _exchange(running: _Running, upstream: socket.socket, program: Path) -> Mapping[str, Mapping[str, int]]:
    """Have the exchanges, sample meanwhile, and return the totals by path."""
    plan = running.plan
    numbers = (upstream.fileno(), running.proxy.ports["soak"], plan.connections, plan.requests, plan.seconds)
    words = [str(program), *map(str, numbers), *(lane.path for lane in plan.lanes)]
    with (
        subprocess.Popen(words, stdout=subprocess.PIPE, text=True, pass_fds=[upstream.fileno()]) as process,
        _disturbed(running),
    ):
        assert process.stdout is not None
        try:
            said: dict[str, Any] = {}
            for line in process.stdout:
                said = json.loads(line)
                if not said["last"] or not running.samples["envoy"]:  # the connections are going by then
                    running.sample()
                _say_progress(said, running)
        finally:
            process.terminate()
    if not said.get("last"):
        raise load.LoadError(f"{EXCHANGES.name} ended with {process.returncode} before its last report")
    return dict(said["paths"])


def _say_progress(said: Mapping[str, Any], running: _Running) -> None:
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
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as upstream, contextlib.ExitStack() as stack:
        running = stack.enter_context(_started(plan, directory, upstream.getsockname()[1]))
        totals = _exchange(running, upstream, program)
        running.settle()
        for part in plan.parts:
            running.said += part.check(running.sandbox)
            running.said += part.prove(running.proxy.ports["soak"])
        for name, child in (("Envoy", running.proxy.child), ("the daemon", running.sandbox.child)):
            if child.exit_code is not None:
                running.said.append(f"{name} ended with {child.exit_code}: {child.said()}")
        return soak_verdict.Outcome(
            plan.lanes,
            totals,
            running.samples,
            running.usage(),
            running.killed,
            running.reloads,
            running.streams(),
            list(dict.fromkeys(running.said)),
        )


def _arguments(words: Sequence[str]) -> Plan:
    parser = argparse.ArgumentParser(prog="python -m tests.bench soak")
    parser.add_argument("--requests", type=int, help="default: 1000000 unless --minutes is given")
    parser.add_argument("--minutes", type=float, default=0.0)
    parser.add_argument("--transport", choices=stage.TRANSPORTS, default=stage.SHM)
    parser.add_argument("--all", action="store_true", help="timers, shared data, queues, metrics as well")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--kill-every", type=float, default=3.0, help="seconds; 0: never")
    parser.add_argument("--reload-every", type=float, default=0.0, help="seconds; 0: never")
    found = parser.parse_args(words)
    seconds = int(found.minutes * 60)
    requests = found.requests if found.requests is not None else 0 if seconds else 1_000_000
    plan = Plan(soak_scenes.EVERYTHING if found.all else soak_scenes.PLAIN, found.transport, requests, seconds)
    return replace(
        plan,
        connections=found.connections,
        kill_every_s=found.kill_every,
        reload_every_s=found.reload_every,
    )


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
        "kill_every_s": plan.kill_every_s,
        "reload_every_s": plan.reload_every_s,
        "seconds": round(time.monotonic() - started, 1),
    }
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT.write_text(
        json.dumps({"conditions": conditions, **soak_verdict.figures(outcome), "wrong": wrong}, indent=1) + "\n"
    )
    print(f"written to {OUTPUT}")
    return int(bool(wrong))
