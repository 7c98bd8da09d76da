"""
`python -m tests.bench`: measure, print, and write build/bench.json. `python -m tests.bench soak` and `... matrix` are
programs of their own; each says with ``--help`` what it takes.

What `docs/specification.md` promises is held against the figures; each promise that was not kept is named at the end.
Exit code 0: measured; 1: with ``--strict``, and a promise was not kept; 2: something could not be measured.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sandboxd.demo.envoy import EnvoyMissingError
from sandboxd.demo.process import ChildFailedError
from tests.bench import (
    callouts,
    channel,
    cpu_limit,
    idle,
    matrix,
    neighbour,
    proxies,
    results,
    shared,
    soak,
    specification,
    store,
    vm,
    workers,
)
from tests.bench.load import LoadError

PARTS = (vm, shared, store, cpu_limit, workers, channel, idle, callouts, proxies, neighbour)
"""Each with the names of its ``FIGURES``; rounds as lists come beside them."""


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each subject in each round")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--servers", type=int, default=1, help="processes of each ext_proc server")
    parser.add_argument("--spin-us", type=int, help="busy waiting at both ends of the channels; default: the machine's")
    parser.add_argument("--output", type=Path, default=results.OUTPUT)
    parser.add_argument("--strict", action="store_true", help="exit 1 if a promise of the specification is not kept")
    return parser.parse_args()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _print(figures: dict[str, Any], rows: tuple[specification.Row, ...]) -> None:
    promised = {row.figure: row for row in rows}
    for name, value in figures.items():
        if isinstance(value, (int, float)):
            row = promised.get(name)
            goal = ""
            if row is not None and row.relation:
                goal = f"  promised {row.relation} {row.bound:g}: {'kept' if row.holds(value) else 'MISSED'}"
            print(f"{name:<34}{value:>12}{goal}")


def _measure(arguments: argparse.Namespace, plan: proxies.Plan) -> dict[str, Any]:
    rounds: int = arguments.rounds
    with tempfile.TemporaryDirectory(prefix="sandboxd-bench-") as name:
        place = Path(name)
        figures = vm.measure(rounds, place, _say)
        figures |= shared.measure(rounds, _say)
        figures |= store.measure(rounds, place, _say)
        figures |= cpu_limit.measure(cpu_limit.KILLS, _say)
        figures |= workers.measure(rounds, place, _say)
        figures |= channel.measure(rounds, place, _say)
        figures |= idle.measure(place, _say)
        figures |= callouts.measure(rounds, place, _say)
        figures |= proxies.measure(plan, place, _say)
        figures |= neighbour.measure(rounds, arguments.seconds, place, _say)
    return figures


PROGRAMS: dict[str, Callable[[Sequence[str]], int]] = {"matrix": matrix.main, "soak": soak.main}
"""By the first word; without one, everything that the specification names is measured."""


def main() -> int:
    """Do what the command line says and return the exit code."""
    if len(sys.argv) > 1 and (program := PROGRAMS.get(sys.argv[1])):
        return program(sys.argv[2:])
    return _all()


def _all() -> int:
    """Measure everything that the specification names."""
    arguments = _arguments()
    plan = proxies.Plan(
        arguments.rounds, arguments.seconds, arguments.connections, arguments.servers, arguments.spin_us
    )
    rows = specification.read()
    try:
        figures = _measure(arguments, plan)
    except (LoadError, ChildFailedError, EnvoyMissingError, TimeoutError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    results.write(arguments.output, {"conditions": {**results.machine(), **vars(plan)}, **figures})
    _print(figures, rows)
    print(f"written to {arguments.output}")
    missed = list(specification.misses(rows, figures))
    for line in missed:
        print(f"MISSED {line}")
    promises = sum(bool(row.relation) for row in rows)
    print(f"{promises - len(missed)} of {promises} promises of docs/specification.md kept")
    return 1 if missed and arguments.strict else 0


if __name__ == "__main__":
    sys.exit(main())
