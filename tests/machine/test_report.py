"""The verdict of a run on a machine: only a full and good one is a success."""

from __future__ import annotations

import json

from tests.machine.inside.names import PROOFS
from tests.machine.report import Report


def line(event: str, **fields: object) -> str:
    return json.dumps({"event": event, **fields})


def proof(name: str, *, ok: object = True) -> str:
    return line("proof", name=name, ok=ok, seconds=1.5, facts={"size": 3}, error="" if ok is True else "why\nnot")


def test_all_proofs_and_the_end_are_a_success() -> None:
    report = Report(("a", "b"))
    for text in (line("boot", number=1, kernel="6.1", uptime_s=40.2), proof("a"), proof("b"), line("done")):
        report.feed(text)

    assert report.problems() == []
    assert report.boots == 1


def test_what_went_wrong_is_shown() -> None:
    report = Report(("a",))

    shown = report.feed(proof("a", ok=False))
    report.feed(line("done"))

    assert shown.startswith("FAIL  a (1.5 s)")
    assert "why" in shown
    assert report.problems() == ["failed: a"]


def test_silence_is_a_failure() -> None:
    """A proof that never reports, and a run that never says that it is done."""
    report = Report(("a", "b"))
    report.feed(proof("a"))

    assert report.problems() == ["never reported: b", "the proof did not come to its end"]


def test_nonsense_is_a_failure() -> None:
    for text in ("nonsense", "[1]", line("praise"), line("proof", name="a"), "{}"):
        report = Report(())
        report.feed(text)
        report.feed(line("done"))
        assert report.problems() == ["failed: report"], text


def test_only_true_is_true() -> None:
    report = Report(("a",))
    report.feed(proof("a", ok="yes"))

    assert "failed: a" in report.problems()


def test_the_names_are_many_and_different() -> None:
    assert len(set(PROOFS)) == len(PROOFS) > 15
