"""
The same module, the same connections, through Envoy's own Wasm network filter and through network ext_proc.

As `test_differential`: a difference is allowed only if `KNOWN_DIFFERENCES` lists it and docs/compatibility.md explains
it, and one that is listed but does not occur is as wrong.
"""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from tests.support import tcp_stage
from tests.support.guests import tcp_probe
from tests.support.tcp_stage import Step, TcpStage

pytestmark = [pytest.mark.long, pytest.mark.envoy, pytest.mark.timeout(240)]

COMPATIBILITY = Path(__file__).resolve().parents[2] / "docs" / "compatibility.md"


@dataclass(frozen=True)
class Case:
    """A behaviour of the probe and what the client does."""

    behaviour: str
    steps: tuple[Step, ...]
    greeting: bool = False
    """The upstream speaks first."""

    @property
    def name(self) -> str:
        """As tests and `KNOWN_DIFFERENCES` name it."""
        steps = "-".join(step if isinstance(step, str) else step.decode().strip() for step in self.steps)
        return f"{self.behaviour}/{steps}" + ("/greeted" if self.greeting else "")


HELLO: tuple[Step, ...] = (b"hello", b"world", "end")
CLOSING: tuple[Step, ...] = (b"ab", b"close", b"x")
SCRIPTS: tuple[tuple[str, tuple[Step, ...]], ...] = (
    ("pass", HELLO),
    ("pass", (b"hello",)),
    ("pass", (b"bye",)),
    ("pass", (bytes(300_000), "end")),
    ("upper", HELLO),
    ("surround", (b"a", b"b")),
    ("drop", (b"a", "end")),
    ("whole-lines", (b"ab", b"cd\n", b"ef\n", "end")),
    ("whole-lines", (b"ab", "end")),
    ("whole-lines", (b"ab",)),
    ("whole-answers", (b"ab", b"cd\n", b"e", "end")),
    ("until-end", (b"ab", b"cd", "end")),
    ("until-end", (b"ab",)),
    ("swap-end", (b"ab", b"cd", "end")),
    ("pause-new", (b"ab", b"cd", "end")),
    ("resume-down", (b"ab", b"cd", "end")),
    ("close-new", (b"ab",)),
    ("close-down", CLOSING),
    ("close-up", CLOSING),
    ("close-answer", CLOSING),
    ("address", (b"a",)),
)
CASES = [
    *(Case(behaviour, steps, greeting) for behaviour, steps in SCRIPTS for greeting in (False, True)),
    # A trap ends the VM of Envoy's filter for good: one connection, the last.
    Case("trap", (b"ab", b"trap", b"x")),
]
TRACED = (
    Case("trace", HELLO),
    Case("trace", HELLO, greeting=True),
    Case("trace", (b"hello",)),
    Case("trace", ()),
)


@dataclass(frozen=True)
class Difference:
    """Fields that differ in some cases; shell-like patterns."""

    code: str
    """The heading of its explanation in docs/compatibility.md."""
    fields: tuple[str, ...]
    cases: tuple[str, ...]


KNOWN_DIFFERENCES = (
    Difference("T1", ("*",), ("pause-new/*", "close-new/*")),
    Difference("T1", ("trace",), ("trace/",)),
    Difference("T2", ("client.end",), ("trap/*",)),
    Difference("T3", ("trace",), ("trace/*",)),
)


class Comparison:
    """Both filters, and which differences have been met."""

    def __init__(self, stage: TcpStage) -> None:
        self.stage = stage
        self.met: set[str] = set()
        self.compared = 0

    def check(self, name: str, found: dict[str, tuple[str, str]]) -> None:
        """Fail on what is not listed."""
        self.compared += 1
        left = dict(found)
        for known in KNOWN_DIFFERENCES:
            if any(fnmatchcase(name, pattern) for pattern in known.cases):
                listed = {field for field in left if any(fnmatchcase(field, pattern) for pattern in known.fields)}
                self.met |= {known.code} if listed else set()
                left = {field: values for field, values in left.items() if field not in listed}

        assert not left, "differs (sandboxd, Envoy) and is not in KNOWN_DIFFERENCES"


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Comparison]:
    """Envoy with both kinds of filter for every behaviour."""
    guests = [tcp_probe(name) for name in dict.fromkeys(case.behaviour for case in (*CASES, *TRACED))]
    with tcp_stage.running(guests, tmp_path_factory.mktemp("tcp"), v8=True) as stage:
        address = (stage.proxy._admin_path).read_text().strip()
        request = urllib.request.Request(f"http://{address}/logging?wasm=info", method="POST")
        urllib.request.urlopen(request, timeout=5).close()
        yield Comparison(stage)


def seen(stage: TcpStage, kind: str, case: Case) -> dict[str, str]:
    """Perform a case; ports of the client are never the same."""
    ends = stage.talk(f"{kind}-tcp-{case.behaviour}", case.steps, greeting=case.greeting)
    return {name: re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:PORT", value) for name, value in ends.fields().items()}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_both_ends_see_the_same(comparison: Comparison, case: Case) -> None:
    """What client and upstream get does not depend on where the filter runs."""
    ours, theirs = (seen(comparison.stage, kind, case) for kind in ("net", "v8"))

    comparison.check(case.name, {name: (ours[name], theirs[name]) for name in ours if ours[name] != theirs[name]})


def traced(stage: TcpStage, kind: str, case: Case) -> list[str]:
    """Return the callbacks of one connection, as the guest has logged them."""
    pattern, folder = {
        "net": (r"tcp/tcp-trace stream=\d+: (.+)$", "sandboxd.log"),
        "v8": (r"wasm log tcp-trace[^:]*: (.+)$", "envoy.log"),
    }[kind]
    log = stage.policies.parent / folder
    before = log.stat().st_size
    stage.talk(f"{kind}-tcp-trace", case.steps, greeting=case.greeting)
    lines: list[str] = []

    def ended() -> bool:
        lines[:] = re.findall(pattern, log.read_bytes()[before:].decode(), re.MULTILINE)
        return "log 0" in lines

    if case.steps or kind == "v8":
        from tests.support.stage import eventually

        eventually(ended, f"the end of a connection in {folder}")
    return lines


@pytest.mark.parametrize("case", TRACED, ids=lambda case: case.name)
def test_the_same_callbacks_run(comparison: Comparison, case: Case) -> None:
    """With the same sizes and ends, in the same order."""
    ours, theirs = (traced(comparison.stage, kind, case) for kind in ("net", "v8"))
    if case.steps:
        without_peer = [[line for line in lines if not line.startswith("down-close")] for lines in (ours, theirs)]
        assert without_peer[0] == without_peer[1]
        assert [line[:10] for line in ours] == [line[:10] for line in theirs]

    comparison.check(case.name, {"trace": (str(ours), str(theirs))} if ours != theirs else {})


def test_every_known_difference_still_occurs(comparison: Comparison) -> None:
    """What does not differ any more leaves the table."""
    if comparison.compared < len(CASES) + len(TRACED):
        pytest.skip("only after all comparisons")

    assert comparison.met == {known.code for known in KNOWN_DIFFERENCES}


def test_every_known_difference_is_explained() -> None:
    """The table here and the headings of docs/compatibility.md name the same differences."""
    explained = re.findall(r"^### (T\d+)\b", COMPATIBILITY.read_text(), re.MULTILINE)

    assert sorted(explained) == sorted({known.code for known in KNOWN_DIFFERENCES})


def test_the_comparison_sees_a_difference(comparison: Comparison) -> None:
    """The harmless twin: two behaviours that differ in their bytes are told apart by them alone."""
    steps: tuple[Step, ...] = (b"hello",)
    plain, upper = (seen(comparison.stage, "net", Case(behaviour, steps)) for behaviour in ("pass", "upper"))

    assert {name for name in plain if plain[name] != upper[name]} == {"client.bytes", "upstream.bytes"}
