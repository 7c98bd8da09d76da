"""
`python -m tests.bench matrix`: what a filter costs in an Envoy of one worker thread, by what it does and at how many
connections.

Subjects are interleaved in one run, to and fro in each round: no filter, Envoy's own Wasm filter (V8), the dynamic
module with the machine's default spinning, the same with other settings, and ext_proc. Written as the section
``matrix`` of ``build/bench.json``, beside what is there of the same machine. Exit codes as of `tests.bench`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sandboxd.commands.envoy_filters import NOTHING_AFTER_RESPONSE_HEADERS
from sandboxd.config import ChannelConfig, WorkerConfig
from sandboxd.demo import daemon, envoy, envoy_config
from sandboxd.demo.envoy import EnvoyMissingError
from sandboxd.demo.process import ChildFailedError
from tests.bench import load, processes, results
from tests.support import envoy_module, guests
from tests.support.guests import Guest

TENANT = "bench"
BODY_BYTES = 16 << 10
QUIET = {"log": {"level": "warning"}, "attach": {}}
SECTION = "matrix"


@dataclass(frozen=True)
class Workload:
    """What the filter has to do."""

    name: str
    guest: Guest
    body: str = "hello world\n"
    """Of each response."""
    mode: str = "NONE"
    """Envoy's body mode of responses for ext_proc."""


WORKLOADS = (
    Workload("headers", guests.HTTP_HEADERS),
    # Withholds the body until all of it has come and looks through it.
    Workload("body_16k", guests.HTTP_BODY_RESPONSE, "0123456789abcdef" * (BODY_BYTES // 16), "BUFFERED"),
    Workload("calls_20", guests.C_TWENTY_CALLS),
)


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    rounds: int
    seconds: float
    connections: tuple[int, ...]
    spins: tuple[int, ...]
    """Microseconds of spinning of the further shm subjects, at both ends."""
    workloads: tuple[Workload, ...] = WORKLOADS

    @property
    def subjects(self) -> tuple[str, ...]:
        """In the order in which the first round measures them."""
        return ("none", "v8", "shm", *(f"shm_spin_{spin}us" for spin in self.spins), "ext_proc")


@dataclass(frozen=True)
class Turn:
    """What one subject did in one round."""

    load: load.Load
    cpu_us: float
    """CPU time for each request of all processes together but the load generator's."""


Turns = dict[str, list[Turn]]


def default_spin_us() -> dict[str, int]:
    """Return what VMs and clients do on this machine if nobody says anything."""
    return {"worker": WorkerConfig().spin_us, "channel": ChannelConfig().spin_us}


def _policies(directory: Path, workloads: Sequence[Workload]) -> Path:
    policies = directory / "policies"
    policies.mkdir(parents=True)
    plugins = [workload.guest.plugin() for workload in workloads]
    isolation = {"pids": 64}
    (policies / "bench.yaml").write_text(json.dumps({"tenant": TENANT, "isolation": isolation, "plugins": plugins}))
    return policies


def _filters(workload: Workload, sockets: dict[str, Path], plan: Plan) -> dict[str, list[dict[str, Any]]]:
    """Return each subject's filters; `sockets` are the daemons' by subject."""
    name = workload.guest.name
    mode = {**envoy_config.processing_mode(), "response_body_mode": workload.mode}
    metadata = envoy_config.metadata(TENANT, name)
    if workload.mode == "NONE":
        metadata.append(NOTHING_AFTER_RESPONSE_HEADERS)
    service = {"envoy_grpc": {"cluster_name": "sandboxd"}, "initial_metadata": metadata}
    bare: dict[str, Any] = {"request_attributes": [], "response_attributes": [], "processing_mode": mode}
    spinning = {
        f"shm_spin_{spin}us": [envoy_config.shm(sockets[f"shm_spin_{spin}us"], TENANT, name, spin_us=spin)]
        for spin in plan.spins
    }
    return {
        "none": [],
        "v8": [envoy_config.wasm(name, workload.guest.path)],
        "shm": [envoy_config.shm(sockets["shm"], TENANT, name)],
        **spinning,
        "ext_proc": [envoy_config.ext_proc("sandboxd", grpc_service=service, **bare)],
    }


def _listeners(plan: Plan, sockets: dict[str, Path]) -> Iterator[dict[str, Any]]:
    for workload in plan.workloads:
        for subject, filters in _filters(workload, sockets, plan).items():
            route = envoy_config.direct_route(workload.body)
            listener = envoy_config.listener(f"{workload.name}-{subject}", filters, [route])
            manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
            manager["route_config"]["max_direct_response_body_size_bytes"] = 2 * BODY_BYTES
            yield listener


class _Stage:
    """Envoy and the daemons, and whose CPU time counts."""

    def __init__(self, proxy: envoy.Envoy, daemons: Sequence[daemon.Daemon], program: Path) -> None:
        self._ports = proxy.ports
        self._program = program
        roots = [proxy.child.pid, *(one.child.pid for one in daemons)]
        self._pids = [pid for root in roots for pid in processes.tree(root)]

    def turn(self, workload: Workload, subject: str, connections: int, seconds: float) -> Turn:
        """Let a subject have its turn. Raises LoadError if not everything was answered with 200."""
        before = processes.cpu_s(self._pids)
        done = load.run(self._program, self._ports[f"{workload.name}-{subject}"], connections, seconds)
        return Turn(done, (processes.cpu_s(self._pids) - before) / done.requests * 1e6)


@contextlib.contextmanager
def _running(plan: Plan, directory: Path) -> Iterator[_Stage]:
    envoy_module.built()
    with contextlib.ExitStack() as stack:
        daemons: dict[str, daemon.Daemon] = {}
        for subject, spin in (("shm", None), *((f"shm_spin_{spin}us", spin) for spin in plan.spins)):
            place = directory / subject
            config = QUIET if spin is None else {**QUIET, "worker": {"spin_us": spin}, "channel": {"spin_us": spin}}
            policies = _policies(place, plan.workloads)
            daemons[subject] = stack.enter_context(daemon.running(policies, place, config=config))
            daemons[subject].expect_tenants()
        sockets = {subject: one.runtime / "attach.sock" for subject, one in daemons.items()}
        cluster = envoy_config.grpc_cluster("sandboxd", daemons["shm"].sockets)
        bootstrap = envoy_config.bootstrap([*_listeners(plan, sockets)], [cluster])
        proxy = stack.enter_context(envoy.running(bootstrap, directory))
        yield _Stage(proxy, [*daemons.values()], load.build(Path("build")))


def measure(plan: Plan, directory: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Return the figures of each combination, by ``WORKLOAD_cCONNECTIONS``. Raises as `_Stage.turn`."""
    found: dict[str, dict[str, Any]] = {}
    with _running(plan, directory) as running:
        for workload in plan.workloads:
            for subject in plan.subjects:
                running.turn(workload, subject, 8, 0.3)
            for connections in plan.connections:
                turns: Turns = {subject: [] for subject in plan.subjects}
                for number in range(plan.rounds):
                    # To and fro, so that a drift of the machine meets every subject alike.
                    for subject in plan.subjects if number % 2 == 0 else reversed(plan.subjects):
                        turns[subject].append(running.turn(workload, subject, connections, plan.seconds))
                name = f"{workload.name}_c{connections}"
                found[name] = summarise(turns)
                say(f"{name}: " + ", ".join(f"{one} {found[name][f'{one}_rps']:.0f}/s" for one in plan.subjects))
    return found


def _median(turns: Sequence[float], digits: int = 1) -> float:
    return round(statistics.median(turns), digits)


def summarise(turns: Turns) -> dict[str, Any]:
    """Return the medians over rounds of a combination, and the medians of each round's own ratios."""
    figures: dict[str, Any] = {}
    for subject, rounds in turns.items():
        for name in ("rps", "p50_us", "p99_us"):
            figures[f"{subject}_{name}"] = _median([getattr(turn.load, name) for turn in rounds])
        figures[f"{subject}_cpu_us"] = _median([turn.cpu_us for turn in rounds])
        figures[f"{subject}_rps_rounds"] = [turn.load.rps for turn in rounds]

    def ratio(name: str, ours: str, theirs: str) -> float:
        pairs = zip(turns[ours], turns[theirs], strict=True)
        return _median([getattr(one.load, name) / getattr(other.load, name) for one, other in pairs], 3)

    best = max((one for one in turns if one.startswith("shm")), key=lambda one: figures[f"{one}_rps"])
    figures["shm_vs_v8_rps_ratio"] = ratio("rps", "shm", "v8")
    figures["shm_vs_v8_p99_ratio"] = ratio("p99_us", "shm", "v8")
    figures["shm_vs_ext_proc_rps_ratio"] = ratio("rps", "shm", "ext_proc")
    figures["shm_best"] = best
    figures["shm_best_vs_v8_rps_ratio"] = ratio("rps", best, "v8")
    figures["shm_best_vs_v8_p99_ratio"] = ratio("p99_us", best, "v8")
    return figures


def table(found: dict[str, dict[str, Any]], subjects: Sequence[str]) -> Iterator[str]:
    """Yield a table in Markdown: requests per second, p99 in us and CPU in us per request, then the ratios."""
    ratios = ("shm_vs_v8_rps_ratio", "shm_vs_v8_p99_ratio", "shm_vs_ext_proc_rps_ratio", "shm_best")
    yield "| combination | " + " | ".join(f"`{name}`" for name in (*subjects, *ratios)) + " |"
    yield "| --- " * (1 + len(subjects) + len(ratios)) + "|"
    for name, figures in found.items():
        cells = [
            f"{figures[f'{one}_rps']:.0f} / {figures[f'{one}_p99_us']:.0f} / {figures[f'{one}_cpu_us']:.0f}"
            for one in subjects
        ]
        cells += [str(figures[ratio]) for ratio in ratios]
        yield f"| {name} | " + " | ".join(cells) + " |"


def _arguments(words: Sequence[str]) -> tuple[Plan, Path]:
    parser = argparse.ArgumentParser(prog="python -m tests.bench matrix")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each subject in each round")
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 16, 128])
    other = 0 if any(default_spin_us().values()) else 20
    help_spins = f"further settings of spinning, in microseconds; the default of this machine is {default_spin_us()}"
    parser.add_argument("--spins", type=int, nargs="*", default=[other], help=help_spins)
    names = [workload.name for workload in WORKLOADS]
    parser.add_argument("--workloads", nargs="+", choices=names, default=names)
    parser.add_argument("--output", type=Path, default=results.OUTPUT)
    found = parser.parse_args(words)
    workloads = tuple(workload for workload in WORKLOADS if workload.name in found.workloads)
    plan = Plan(found.rounds, found.seconds, tuple(found.connections), tuple(found.spins), workloads)
    return plan, found.output


def main(words: Sequence[str]) -> int:
    """Measure all combinations, print the table, and write the figures."""
    plan, output = _arguments(words)
    try:
        with tempfile.TemporaryDirectory(prefix="sandboxd-matrix-") as name:
            found = measure(plan, Path(name), lambda text: print(text, file=sys.stderr, flush=True))
    except (load.LoadError, ChildFailedError, EnvoyMissingError, TimeoutError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    how = {**asdict(plan), "workloads": [workload.name for workload in plan.workloads]}
    conditions = {**results.machine(), **how, "default_spin_us": default_spin_us(), "envoy_concurrency": 1}
    results.write_section(output, SECTION, {"conditions": conditions, **found})
    print("requests per second / p99 in us / CPU of all processes but the generator in us per request")
    for line in table(found, plan.subjects):
        print(line)
    print(f"written to {output}, section {SECTION}")
    return 0
