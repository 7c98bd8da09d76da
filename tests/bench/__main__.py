"""
`python -m tests.bench`: measure, print, and write build/bench.json.

Exit code 0: measured (whether a target was missed is in the output); 2: something could not be measured.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

from sandboxd.demo.envoy import EnvoyMissingError
from sandboxd.demo.process import ChildFailedError
from tests.bench import proxies, vm
from tests.bench.load import LoadError

OUTPUT = Path("build/bench.json")

TARGETS = {
    "hostcall_ns": ("<", 100),
    "stream_worker_us": ("<", 20),
    "vm_restart_ms": ("<", 10),
    "ext_proc_ratio": (">=", 0.85),
}


def _machine() -> dict[str, Any]:
    return {
        "cores": len(os.sched_getaffinity(0)),
        "pinning": "none: generator, Envoy and servers share all cores",
        "machine": platform.machine(),
        "python": platform.python_version(),
        "kernel": platform.release(),
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each subject in each round")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--servers", type=int, default=1, help="processes of each ext_proc server")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    return parser.parse_args()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _print(figures: dict[str, Any]) -> None:
    for name, value in figures.items():
        if isinstance(value, (int, float)):
            relation, target = TARGETS.get(name, ("", 0))
            goal = ""
            if relation:
                reached = value < target if relation == "<" else value >= target
                goal = f"  target {relation} {target}: {'reached' if reached else 'MISSED'}"
            print(f"{name:<28}{value:>12}{goal}")


def main() -> int:
    """Measure everything and return the exit code."""
    arguments = _arguments()
    plan = proxies.Plan(arguments.rounds, arguments.seconds, arguments.connections, arguments.servers)
    try:
        with tempfile.TemporaryDirectory(prefix="sandboxd-bench-") as name:
            figures = vm.measure(arguments.rounds, Path(name), _say)
            figures |= proxies.measure(plan, Path(name), _say)
    except (LoadError, ChildFailedError, EnvoyMissingError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    conditions = {**_machine(), **vars(plan)}
    arguments.output.write_text(json.dumps({"conditions": conditions, **figures}, indent=1) + "\n")
    _print(figures)
    print(f"written to {arguments.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
