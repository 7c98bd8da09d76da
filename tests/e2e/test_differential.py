"""
The same module, the same requests, through Envoy's own Wasm filter and through sandboxd: equal at both ends.

A difference is allowed only if `KNOWN_DIFFERENCES` lists it and docs/compatibility.md explains it; one that
is listed but does not occur any more is as wrong as one that is not listed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from tests.support import exchange, pair, stage, subjects
from tests.support.cases import Case

pytestmark = [pytest.mark.envoy, pytest.mark.timeout(300)]

COMPATIBILITY = Path(__file__).resolve().parents[2] / "docs" / "compatibility.md"


@dataclass(frozen=True)
class Difference:
    """Fields that may differ in some combinations. Everything is a list of shell-like patterns."""

    code: str
    """The heading of its explanation in docs/compatibility.md."""
    fields: tuple[str, ...]
    guests: tuple[str, ...] = ("*",)
    modes: tuple[str, ...] = ("*",)
    cases: tuple[str, ...] = ("*",)

    def covers(self, guest: str, mode: str, case: str) -> bool:
        """Tell whether this difference may occur in a combination."""
        wanted = ((guest, self.guests), (mode, self.modes), (case, self.cases))
        return all(matches(name, patterns) for name, patterns in wanted)


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    """Tell whether a name fits one of the patterns."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


UNMEASURED = ("BUFFERED_PARTIAL", "STREAMED", "FULL_DUPLEX_STREAMED")
PIECEWISE = ("BUFFERED", "BUFFERED_PARTIAL", "STREAMED")
PROBE = ("probe",)
RESULT = "client.headers.x-probe-result-"

KNOWN_DIFFERENCES = (
    Difference("D1", ("client.framing", "upstream.framing"), modes=UNMEASURED),
    Difference("D2", ("*",), modes=PIECEWISE, cases=("*-trailers", "trailers-*")),
    Difference("D3", ("*.body", "*.framing", "*.trailers.x-new-trailer"), PROBE, cases=("*-add-trailers-chunked",)),
    Difference("D4", ("client.*",), PROBE, cases=("*-close",)),
    Difference("D5", ("client.*",), PROBE, cases=("response-body-local-*",)),
    Difference("D6", ("*.body", "*.framing", f"{RESULT}request-body-middle"), PROBE, cases=("*-body-middle-*",)),
    Difference("D7", ("client.*",), PROBE, cases=("response-pause-resume",)),
    Difference("D8", (f"{RESULT}metrics",), PROBE, cases=("metrics",)),
    Difference("D9", (f"{RESULT}wrong-phase",), PROBE, cases=("wrong-phase",)),
    Difference("D10", (f"{RESULT}property-response-*",), PROBE, cases=("properties",)),
    Difference("D11", (f"{RESULT}property-*-15",), PROBE, cases=("properties",)),
    Difference(
        "D12",
        ("*.headers.x-empty", "client.body", "client.framing"),
        PROBE,
        modes=(stage.SHM,),
        cases=("request-empty", "response-empty"),
    ),
)

COMBINATIONS = [
    pytest.param(subject.guest.name, mode, case, id=f"{subject.guest.name}-{mode}-{case.name}")
    for subject in subjects.SUBJECTS
    for mode in (*subject.modes, stage.SHM)
    for case in subject.cases
]


class Comparison:
    """Both filters, what Envoy's own did with each case, and which differences have been met."""

    def __init__(self, both: pair.Pair) -> None:
        self._both = both
        self._theirs: dict[tuple[str, str], exchange.Fields] = {}
        self.compared = 0
        self.met: set[str] = set()

    def differences(self, guest: str, mode: str, case: Case) -> dict[str, tuple[str, str]]:
        """Return what differs, sandboxd's value first."""
        if (guest, case.name) not in self._theirs:
            self._theirs[guest, case.name] = self._perform(f"v8-{guest}", case)
        self.compared += 1
        return exchange.differences(self._perform(f"{mode}-{guest}", case), self._theirs[guest, case.name])

    def _perform(self, listener: str, case: Case) -> exchange.Fields:
        return exchange.fields(exchange.perform(self._both.port(listener), case, self._both.recorder))


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Comparison]:
    """Envoy with both kinds of filter for every guest."""
    with pair.running(subjects.SUBJECTS, tmp_path_factory.mktemp("differential")) as running:
        yield Comparison(running)


@pytest.mark.parametrize(("guest", "mode", "case"), COMBINATIONS)
def test_both_ends_see_the_same(comparison: Comparison, guest: str, mode: str, case: Case) -> None:
    """What the client gets and what the upstream sees does not depend on where the filter runs."""
    found = comparison.differences(guest, mode, case)
    for known in KNOWN_DIFFERENCES:
        if known.covers(guest, mode, case.name):
            listed = {name for name in found if matches(name, known.fields)}
            comparison.met |= {known.code} if listed else set()
            found = {name: values for name, values in found.items() if name not in listed}

    assert not found, "differs (sandboxd, Envoy) and is not in KNOWN_DIFFERENCES"


def test_every_known_difference_still_occurs(comparison: Comparison) -> None:
    """What does not differ any more leaves the table."""
    if comparison.compared < len(COMBINATIONS):
        pytest.skip("only after all comparisons")

    assert comparison.met == {known.code for known in KNOWN_DIFFERENCES}


def test_every_known_difference_is_explained() -> None:
    """The table here and the headings of docs/compatibility.md name the same differences."""
    explained = re.findall(r"^### (D\d+)\b", COMPATIBILITY.read_text(), re.MULTILINE)

    assert sorted(explained) == sorted(known.code for known in KNOWN_DIFFERENCES)


def test_the_comparison_sees_a_difference() -> None:
    """The harmless twin: outcomes that differ in one header are told apart by that header alone."""
    from sandboxd.demo.http1 import Message

    answers = [Message("HTTP/1.1 200 OK", (("x-a", value), ("date", value)), b"body") for value in "12"]
    ours, theirs = (exchange.fields(exchange.Outcome(answer, "", ())) for answer in answers)

    assert exchange.differences(ours, theirs) == {"client.headers.x-a": ("['1']", "['2']")}
