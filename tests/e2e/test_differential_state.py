"""
The same module, the same requests, through Envoy's own Wasm filter and through sandboxd: timers, shared data, queues.

As `test_differential`: a difference is allowed only if `KNOWN_DIFFERENCES` lists it and docs/compatibility.md explains
it, and one that is listed but does not occur is as wrong.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from sandboxd.demo.client import Request, fetch
from tests.support import guests, known, pair, stage
from tests.support.subjects import Subject

pytestmark = [pytest.mark.long, pytest.mark.envoy, pytest.mark.timeout(120)]

FIRST = replace(guests.C_STATE_PROBE, name="state-a")
SECOND = replace(guests.C_STATE_PROBE, name="state-b")
"""The same module, with a vm_id of its own."""

KINDS = ("NONE", stage.SHM)

Step = tuple[str, str] | float
"""Which guest gets which commands, or a pause in seconds. ``{k}`` makes names unique to a transport."""


@dataclass(frozen=True)
class Case:
    """What is done, one after the other."""

    name: str
    steps: tuple[Step, ...]


def a(commands: str) -> Step:
    """Give commands to the first guest."""
    return "state-a", commands


def b(commands: str) -> Step:
    """Give commands to the second guest."""
    return "state-b", commands


CASES = (
    Case("get-missing", (a("get {k}none"),)),
    Case("set-get", (a("set {k}x one 0;get {k}x"), a("get {k}x"))),
    Case("overwrite", (a("set {k}o one 0;set {k}o two 0;get {k}o"),)),
    Case("empty-value", (a("set {k}e - 0;get {k}e"), a("get {k}e"))),
    Case("empty-key", (a("set - one 0;get -"),)),
    Case("cas-right", (a("set {k}c one 0;get {k}c;set {k}c two last;get {k}c"),)),
    Case("cas-stale", (a("set {k}s one 0;get {k}s;set {k}s two stale;get {k}s"),)),
    Case("cas-used", (a("set {k}u one 0;get {k}u;set {k}u two last;set {k}u three last;get {k}u"),)),
    Case(
        "cas-across-requests", (a("set {k}r one 0;get {k}r"), a("set {k}r two last"), a("set {k}r three last;get {k}r"))
    ),
    Case("cas-missing", (a("get {k}m;set {k}m one stale;get {k}m"), a("set {k}m two stale;get {k}m"))),
    Case("big", (a("big {k}b 1024;size {k}b"), a("big {k}b 60000;size {k}b;big {k}b 1;size {k}b"))),
    Case("other-vm-id", (a("set {k}v one 0"), b("get {k}v;set {k}v two 0"), a("get {k}v"))),
    Case("register", (a("register {k}q;register {k}q;register {k}other;register {k}other"),)),
    Case("resolve", (a("resolve state-a {k}p;register {k}p;resolve state-a {k}p;resolve state-b {k}p"),)),
    Case("resolve-no-vm-id", (a("register {k}n;resolve - {k}n;resolve - {k}missing"),)),
    Case("queue-order", (a("register {k}f;enqueue one;enqueue -;enqueue three;dequeue;dequeue;dequeue;dequeue"),)),
    Case("queue-across-requests", (a("register {k}g;enqueue one"), a("enqueue two;dequeue"), a("dequeue;dequeue"))),
    Case("queue-unknown", (a("unknown"),)),
    Case("queue-of-another", (a("register {k}h"), b("resolve state-a {k}h;enqueue one"), a("dequeue;dequeue"))),
    Case("queue-taken-by-another", (a("register {k}i;enqueue one"), b("resolve state-a {k}i;dequeue;dequeue"))),
    Case(
        "queue-ready",
        (
            a("register {k}j"),
            a("ready"),
            b("resolve state-a {k}j;enqueue one;enqueue two"),
            0.2,
            a("ready;dequeue;dequeue"),
        ),
    ),
    Case("queue-ready-of-its-own", (a("register {k}k;ready;enqueue one"), 0.2, a("ready;dequeue"))),
    Case("queue-taken-when-ready", (a("register {k}l;take;enqueue one;enqueue two"), 0.2, a("report;dequeue"))),
    Case("no-tick", (a("ticks"), 0.1, a("ticks"))),
    Case("ticks", (a("tick 5"), 0.3, a("ticks;tick 0"), a("ticks"), 0.1, a("ticks"))),
    Case("tick-period-changes", (a("tick 60000;tick 5"), 0.2, a("ticks;tick 60000;ticks"), 0.1, a("ticks;tick 0"))),
    Case("tick-of-another", (a("tick 5"), 0.1, b("ticks"), a("tick 0;ticks"))),
    Case("get-in-tick", (a("set {k}t one 0;later get {k}t"), 0.2, a("report;ticks"))),
    Case("set-in-tick", (a("later set {k}w one 0"), 0.2, a("report;get {k}w;ticks"))),
    Case("queue-in-tick", (a("register {k}y;enqueue one;later dequeue"), 0.2, a("report;dequeue;ticks"))),
    Case("register-in-tick", (a("later register {k}z"), 0.2, a("report;enqueue one;dequeue;ticks"))),
)

KNOWN_DIFFERENCES: tuple[known.Known, ...] = ()


class Comparison:
    """Both filters, and what Envoy's own did."""

    def __init__(self, both: pair.Pair) -> None:
        self._both = both
        self._theirs: dict[str, list[str]] = {}
        self.ledger = known.Ledger(KNOWN_DIFFERENCES)

    def theirs(self, case: Case) -> list[str]:
        """Return what Envoy's own filter does; once per case."""
        if case.name not in self._theirs:
            self._theirs[case.name] = self.perform("v8", case)
        return self._theirs[case.name]

    def perform(self, kind: str, case: Case) -> list[str]:
        """Return what the guest said to each step."""
        said = []
        for step in case.steps:
            if isinstance(step, float):
                time.sleep(step)
                continue
            guest, commands = step
            header = ("x-state", commands.replace("{k}", f"{kind}."))
            self._both.recorder.take()
            asyncio.run(fetch(self._both.port(f"{kind}-{guest}"), Request("GET", "/", (header,)), 10))
            (seen,) = self._both.recorder.take()
            said.append(seen.value("x-result"))
        return said


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Comparison]:
    subjects = (Subject(FIRST, ("NONE",)), Subject(SECOND, ("NONE",)))
    with pair.running(subjects, tmp_path_factory.mktemp("state")) as running:
        yield Comparison(running)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_guest_sees_the_same(comparison: Comparison, case: Case, kind: str) -> None:
    ours, theirs = comparison.perform(kind, case), comparison.theirs(case)

    assert all("?" not in text and text for text in theirs), "the guest does not know the command"
    comparison.ledger.compare(f"{kind}/{case.name}", {"said": str(ours)}, {"said": str(theirs)})


def test_every_known_difference_still_occurs(comparison: Comparison) -> None:
    """What does not differ any more leaves the table."""
    if comparison.ledger.compared < len(CASES) * len(KINDS):
        pytest.skip("only after all comparisons")

    assert comparison.ledger.never_met() == set()


def test_every_known_difference_is_explained() -> None:
    """The table here and the headings of docs/compatibility.md name the same differences."""
    assert known.unexplained(KNOWN_DIFFERENCES, "S") == {}


def test_the_ledger_sees_a_difference() -> None:
    """The harmless twin: one that nothing allows fails, one that is allowed is kept."""
    ledger = known.Ledger([known.Known("S1", ("said",), ("NONE/odd-*",))])
    ledger.compare("NONE/odd-one", {"said": "0"}, {"said": "1"})
    assert (ledger.met, ledger.never_met()) == ({"S1"}, set())
    for case, field in (("NONE/even-one", "said"), ("NONE/odd-one", "status")):
        with pytest.raises(AssertionError, match="is not in KNOWN_DIFFERENCES"):
            ledger.compare(case, {field: "0"}, {field: "1"})
