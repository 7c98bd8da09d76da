"""How evidence becomes a verdict. Pure."""

from __future__ import annotations

import pytest

from sandboxd.doctor.examine import Finding
from sandboxd.doctor.observe import Seen, judge_owner, judge_status, status_fields
from sandboxd.doctor.probe import Answer, Outcome
from sandboxd.doctor.report import LayerReport, Report, State, layer_reports
from sandboxd.jail.attacks import Attack
from sandboxd.jail.full_plan import NOT_ASKED_FOR
from sandboxd.jail.layers import Layer

STOPPED, THROUGH = Outcome(Answer.REFUSED, "EPERM"), Outcome(Answer.SUCCEEDED)
BROKEN = Outcome(Answer.BROKEN, "no answer in time")
ATTACK = Attack("open", "read a file", lambda _bait, _prepared: None, frozenset({Layer.LANDLOCK}))
MACHINE = {"kernel": "6.18", "architecture": "x86_64"}


def finding(
    whole: Outcome = STOPPED, alone: Outcome = STOPPED, without: Outcome = THROUGH, bare: Outcome = THROUGH
) -> Finding:
    return Finding(ATTACK, whole, ((Layer.LANDLOCK, alone),), without, bare)


@pytest.mark.parametrize(
    ("found", "held", "proven"),
    [
        (finding(), True, True),
        (finding(whole=THROUGH), False, False),
        (finding(whole=BROKEN), False, False),
        (finding(alone=THROUGH), True, False),
        (finding(alone=BROKEN), True, False),
        (finding(without=STOPPED), True, False),
        (finding(without=STOPPED, bare=STOPPED), True, True),
        (finding(without=BROKEN, bare=BROKEN), True, False),
    ],
)
def test_a_finding(found: Finding, held: bool, proven: bool) -> None:
    assert (found.held, found.proven) == (held, proven)


def state(findings: list[Finding], seen: list[Seen], layer: Layer = Layer.LANDLOCK) -> State:
    (line,) = layer_reports([layer], [], findings, seen)
    return line.state


def test_states_of_a_layer() -> None:
    assert state([finding()], []) is State.LIVE
    assert state([], []) is State.APPLIED
    assert state([finding(alone=THROUGH)], []) is State.BROKEN
    assert state([finding(without=STOPPED)], []) is State.APPLIED
    assert state([], [Seen(Layer.LANDLOCK, True, "seen")]) is State.LIVE
    assert state([finding()], [Seen(Layer.LANDLOCK, False, "not there")]) is State.BROKEN
    missing = layer_reports([], [(Layer.TSC, NOT_ASKED_FOR), (Layer.MDWE, "needs Linux 6.3")], [], [])
    assert [(line.layer, line.state) for line in missing] == [
        (Layer.TSC, State.OFF),
        (Layer.MDWE, State.MISSING),
    ]


@pytest.mark.parametrize(
    ("line", "found", "sound"),
    [
        (LayerReport(Layer.MDWE, State.LIVE, ""), finding(), True),
        (LayerReport(Layer.MDWE, State.MISSING, ""), finding(), True),
        (LayerReport(Layer.SECCOMP, State.MISSING, ""), finding(), False),
        (LayerReport(Layer.MDWE, State.BROKEN, ""), finding(), False),
        (LayerReport(Layer.MDWE, State.LIVE, ""), finding(whole=THROUGH), False),
    ],
)
def test_soundness(line: LayerReport, found: Finding, sound: bool) -> None:
    report = Report(MACHINE, "a uid of its own", (line,), (found,))
    assert report.sound is sound
    assert report.to_json()["sound"] is sound
    assert ("NOT SOUND" in report.to_text()) is not sound


STATUS = """Name:\tpython
Uid:\t65533\t65533\t65533\t65533
NSpid:\t812\t1
CapInh:\t0000000000000000
CapPrm:\t0000000000000000
CapEff:\t0000000000000000
CapBnd:\t0000000000000000
CapAmb:\t0000000000000000
NoNewPrivs:\t1
Seccomp:\t2
Seccomp_filters:\t2
Speculation_Store_Bypass:\tthread force mitigated
"""


@pytest.mark.parametrize(
    ("line", "other", "layer"),
    [
        ("NoNewPrivs:\t1", "NoNewPrivs:\t0", Layer.NO_NEW_PRIVS),
        ("Seccomp:\t2", "Seccomp:\t0", Layer.SECCOMP),
        ("Seccomp_filters:\t2", "Seccomp_filters:\t1", Layer.NO_NEW_EXEC),
        ("CapBnd:\t0000000000000000", "CapBnd:\t0000000000200000", Layer.CAPABILITIES),
        ("CapAmb:\t0000000000000000\n", "", Layer.CAPABILITIES),
        ("NSpid:\t812\t1", "NSpid:\t812", Layer.PID_NAMESPACE),
        ("thread force mitigated", "thread vulnerable", Layer.SPECULATION),
    ],
)
def test_the_status_file(line: str, other: str, layer: Layer) -> None:
    assert {seen.live for seen in judge_status(status_fields(STATUS))} == {True}
    assert line in STATUS
    seen = {item.layer: item.live for item in judge_status(status_fields(STATUS.replace(line, other)))}
    assert seen[layer] is False


def test_the_owner_of_the_memory_file() -> None:
    assert judge_owner("5\t5\t5\t5", 0).live is True
    assert judge_owner("5\t5\t5\t5", 5).live is False
