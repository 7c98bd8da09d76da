"""
One attack per promise, inside the real jail, as root and without privilege.

Three claims each: the whole jail stops it; every layer that claims to stop it does so while the attack's
other obstacles are left out; and without them it succeeds (the harmless twin: this test can fail). The last
may also be shown by the machine refusing the attack to everybody, jail or not; those are listed, so that
none hides there.
"""

from __future__ import annotations

import os
import platform
import socket
from typing import Any

import pytest

from sandboxd.doctor.bait import bait
from sandboxd.doctor.examine import Finding, attacks_for, examine
from sandboxd.doctor.probe import Answer, Outcome, Prison, run_attack
from sandboxd.jail.attacks import ATTACKS, Attack
from sandboxd.jail.facts import MachineFacts, read_facts
from sandboxd.jail.filter_files import load_filters
from sandboxd.jail.layers import Layer
from tests.support.jailed import in_child

FILTERS = load_filters()
NAMES = [attack.name for attack in ATTACKS[platform.machine()]]
ROADS = ["own uid", "user namespace"] if os.getuid() == 0 else ["user namespace"]

MAY_BE_REFUSED_TO_ALL = {
    "own uid": {"x32_call", "io_uring", "bpf", "perf_event", "userfaultfd", "keyctl"},
    "user namespace": {
        # Without privilege nobody may do these; with it, see the other road.
        *("setns", "setresuid", "clock_settime", "bpf", "mount"),
        *("x32_call", "io_uring", "perf_event", "userfaultfd", "keyctl", "user_namespace"),
    },
}
"""Attacks that a machine may refuse to every process, by its settings or for want of privilege."""


def as_data(finding: Finding) -> dict[str, Any]:
    def pair(outcome: Outcome) -> list[str]:
        return [outcome.answer, outcome.detail]

    return {
        "held": finding.held,
        "proven": finding.proven,
        "whole": pair(finding.whole),
        "alone": {layer: pair(outcome) for layer, outcome in finding.alone},
        "without": pair(finding.without),
        "machine_refuses": finding.machine_refuses,
    }


def examine_all(_control: socket.socket) -> Any:
    prison = Prison(read_facts(), FILTERS)
    with bait() as targets:
        return {attack.name: as_data(examine(attack, targets, prison)) for attack in attacks_for(prison)}


@pytest.fixture(scope="module")
def findings() -> dict[str, dict[str, Any]]:
    """All attacks on both roads, once."""
    found = {}
    for road in ROADS:
        ended = in_child(examine_all, as_nobody=road == "user namespace" and os.getuid() == 0)
        assert "failed" not in ended.report, ended.report
        found[road] = ended.report
    return found


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("name", NAMES)
def test_an_attack(findings: dict[str, dict[str, Any]], road: str, name: str) -> None:
    found = findings[road].get(name)
    if found is None:
        pytest.skip("no layer that stops it is available on this machine; `sandboxd doctor` says why")
    assert found["held"], found
    escaped = {layer: answer for layer, answer in found["alone"].items() if answer[0] not in ("refused", "killed")}
    assert escaped == {}, found
    assert found["proven"], found
    if found["machine_refuses"]:
        assert name in MAY_BE_REFUSED_TO_ALL[road], found


@pytest.mark.parametrize("road", ROADS)
def test_most_attacks_can_succeed(findings: dict[str, dict[str, Any]], road: str) -> None:
    """The twins as a whole: nearly every attack works where its obstacles are left out."""
    succeeded = [name for name, found in findings[road].items() if found["without"][0] == "succeeded"]
    assert len(succeeded) >= 30


@pytest.mark.parametrize("road", ROADS)
def test_the_filter_answers_by_death(findings: dict[str, dict[str, Any]], road: str) -> None:
    """What no honest worker does ends it, so that the supervisor knows."""
    for name in ("tcp_connect", "execve", "fork", "ptrace", "kill", "mount", "read_memory", "unknown_call"):
        if name in findings[road]:
            assert findings[road][name]["whole"] == ["killed", "SIGSYS"], name


def missing_everything(facts: MachineFacts) -> Attack:
    return next(attack for attack in ATTACKS[facts.architecture] if attack.name == "open")


def test_a_broken_probe_is_no_proof() -> None:
    """An attack that crashes for a reason of its own must not count as stopped."""

    def child(_control: socket.socket) -> Any:
        facts = read_facts()
        good = missing_everything(facts)

        def stumble(_bait: object, _prepared: int) -> None:
            raise ZeroDivisionError

        broken = Attack("broken", "x", stumble, good.stopped_by)
        leaver = Attack("leaver", "x", lambda _bait, _prepared: os._exit(3), good.stopped_by)
        with bait() as targets:
            prison = Prison(facts, FILTERS)
            return [
                [outcome.answer, outcome.stopped]
                for outcome in (run_attack(broken, targets, prison), run_attack(leaver, targets, None))
            ]

    assert in_child(child, as_nobody=os.getuid() == 0).report == [
        [Answer.BROKEN, False],
        [Answer.BROKEN, False],
    ]


def test_a_jail_without_its_layers_is_found_out() -> None:
    """The self-test itself: leave everything out, and it reports escapes."""

    def child(_control: socket.socket) -> Any:
        facts = read_facts()
        prison = Prison(facts, FILTERS)
        with bait() as targets:
            attack = missing_everything(facts)
            outcome = run_attack(attack, targets, prison, frozenset(Layer) - prison.fixed)
            return [outcome.answer, outcome.stopped]

    assert in_child(child, as_nobody=os.getuid() == 0).report == [Answer.SUCCEEDED, False]


def test_an_older_landlock_is_not_blamed_for_tcp() -> None:
    """Before its fourth version Landlock knew files only; the other layers stop a connection all the same."""
    (connect,) = [attack for attack in ATTACKS[platform.machine()] if attack.name == "tcp_connect"]

    assert Layer.LANDLOCK not in connect.stoppers(privileged=True, landlock_abi=2)
    assert Layer.LANDLOCK in connect.stoppers(privileged=True, landlock_abi=4)
    assert connect.stoppers(privileged=True, landlock_abi=0) >= {Layer.SECCOMP, Layer.NETWORK_NAMESPACE}
