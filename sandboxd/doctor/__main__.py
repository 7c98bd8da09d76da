"""
``python -m sandboxd.doctor [--json] [--quick] [--uid N] [--tolerate LAYER,...]``: try every layer of the jail
on this machine.

A process of its own, with one thread: probes are forked from it. Exit status 0: sound; 1: not; 2: bad
arguments.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys

from sandboxd.doctor.bait import bait
from sandboxd.doctor.examine import attack_all, attacks_for, examine
from sandboxd.doctor.observe import observe
from sandboxd.doctor.probe import PROBE_UID, Prison
from sandboxd.doctor.report import Report, layer_reports
from sandboxd.errors import SandboxdError
from sandboxd.jail.facts import MachineFacts, read_facts
from sandboxd.jail.filter_files import load_filters
from sandboxd.jail.layers import Layer, resolve


def main(argv: list[str]) -> int:
    """Run; returns the exit status."""
    parser = argparse.ArgumentParser(prog="sandboxd doctor", description="Try every layer of the jail on this machine.")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.add_argument("--quick", action="store_true", help="only try the whole jail, as the daemon does at start")
    parser.add_argument("--uid", type=int, default=0, help="the uid of a probe, when started as root")
    parser.add_argument(
        "--tolerate", default="", metavar="LAYER,...", help="layers that may be missing, as jail.tolerate"
    )
    options = parser.parse_args(argv)
    try:
        tolerate = resolve(tuple(filter(None, options.tolerate.split(","))))
    except ValueError as error:
        parser.error(f"--tolerate: {error}")
    try:
        facts = read_facts()
        prison = Prison(facts, load_filters(), options.uid or PROBE_UID, tolerate)
        if options.quick:
            return _quick(prison, as_json=options.json)
        report = full_report(prison)
    except (SandboxdError, OSError) as error:
        print(json.dumps({"sound": False, "error": str(error)}) if options.json else f"doctor: {error}")
        return 1
    print(json.dumps(report.to_json()) if options.json else report.to_text())
    return 0 if report.sound else 1


def full_report(prison: Prison) -> Report:
    """Examine everything. Raises JailError, OSError."""
    nothing = frozenset[Layer]()
    whole = prison.plan(0, 0, nothing, nothing)
    seen = observe(prison)
    with bait() as targets:
        findings = tuple(examine(attack, targets, prison) for attack in attacks_for(prison))
    missing = list(whole.missing)
    if prison.facts.cgroup.reason:
        missing.append((Layer.CGROUP, prison.facts.cgroup.reason))
    return Report(
        _machine(prison.facts),
        _identity(prison),
        layer_reports(whole.layers(), missing, findings, seen),
        findings,
        prison.tolerate,
    )


def _identity(prison: Prison) -> str:
    if prison.facts.own_uids:
        return "a uid of its own"
    return "the daemon's own uid" if prison.facts.namespaces.get("user") else "a user namespace"


def _quick(prison: Prison, *, as_json: bool) -> int:
    with bait() as targets:
        outcomes = [(attack, outcome) for attack, outcome in attack_all(targets, prison) if not outcome.stopped]
    through = {attack.name: f"{outcome.answer} {outcome.detail}".strip() for attack, outcome in outcomes}
    print(json.dumps({"sound": not through, "through": through}) if as_json else through or "Sound.")
    return 1 if through else 0


def _machine(facts: MachineFacts) -> dict[str, object]:
    return dataclasses.asdict(facts)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
