"""
The same module, the same requests, through Envoy's own Wasm filter and through sandboxd: foreign functions.

Each of Envoy's, and names that nobody has, from request, response and `proxy_on_configure`. As `test_differential`: a
difference is allowed only if `KNOWN_DIFFERENCES` lists it and docs/compatibility.md explains it, and one that is
listed but does not occur is as wrong.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest

from sandboxd.demo.client import Request, fetch
from sandboxd.front.wire import field, number_field
from tests.support import guests, known, pair, stage
from tests.support.subjects import Subject

pytestmark = [pytest.mark.envoy, pytest.mark.timeout(120)]

KINDS = ("NONE", stage.SHM)


@dataclass(frozen=True)
class Case:
    """Commands for the guest, of one request after the other."""

    name: str
    requests: tuple[str, ...]
    responses: tuple[str, ...] = ()
    """Commands in the responses of these requests."""


def call(name: str, arguments: bytes = b"", way: str = "call") -> str:
    """Return the command that calls a foreign function."""
    return f"{way} {name} {arguments.hex() or '-'}"


def case(name: str, *commands: str) -> Case:
    """Return a case of one request."""
    return Case(name, (";".join(commands),))


def state(path: str, value: str, span: int = 0) -> bytes:
    """Return SetEnvoyFilterStateArguments."""
    return field(1, path.encode()) + field(2, value.encode()) + (number_field(3, span) if span else b"")


def declared(name: str, readonly: bool = False, **more: int) -> bytes:
    """Return DeclarePropertyArguments; ``more``: ``kind`` and ``span``."""
    numbers = {2: int(readonly), 3: more.get("kind", 0), 5: more.get("span", 0)}
    return field(1, name.encode()) + b"".join(number_field(at, value) for at, value in numbers.items() if value)


def key(name: str, pem: int) -> bytes:
    """Return arguments of `sign` and `verify_signature` with a key that is none."""
    return field(1, name.encode()) + field(2, b"key") + field(3, b"text") + field(pem, b"")


TEXT = b"a text that repeats, that repeats, that repeats"
PACKED = zlib.compress(TEXT)
STRING = "envoy.string"
"""Filter state that Envoy can make of any text."""
ROUTED = "header x-route other"
STATE = call("set_envoy_filter_state", state(STRING, "other"))
"""What leads to other routes, if the route is chosen again; a change of the request's headers has it chosen again."""


def leads(by: str, match: dict[str, Any]) -> dict[str, Any]:
    """Return a route that tells the upstream what it was chosen by."""
    return {"match": {"prefix": "/", **match}, "request_headers_to_add": [{"header": {"key": "x-routed", "value": by}}]}


OTHER = {"string_match": {"exact": "other"}}
METADATA = {
    "filter": f"sandboxd.{pair.TENANT}.{guests.C_FOREIGN_PROBE.name}",
    "path": [{"key": f"filter_state.{STRING}"}],
    "value": OTHER,
}
ROUTES = (
    leads("header", {"headers": [{"name": "x-route", **OTHER}]}),
    # The same state, where Envoy's own filter puts it and where sandboxd's is seen.
    leads("state", {"filter_state": [{"key": STRING, **OTHER}]}),
    leads("state", {"dynamic_metadata": [METADATA]}),
)

START = (
    call("declare_property", declared("start.once", readonly=True)),
    call("declare_property", declared("start.often")),
    call("declare_property", declared("start.once")),
    call("declare_property", b"\xff"),
    call("set_envoy_filter_state", state(STRING, "value")),
    call("clear_route_cache"),
    call("uncompress", PACKED),
    call("nobody_knows"),
    call("set_envoy_filter_state", b"\xff"),
)
"""Commands of `proxy_on_configure`, where there is no stream."""

CASES = (
    *(
        case(f"pack-{len(data)}", f"pack {data.hex() or '-'}")
        for data in (b"", b"a", b"ab" * 400, bytes(range(256)), bytes(2000))
    ),
    case("fill", "fill 70000", "fill 1000000"),
    case("fill-17m", "fill 17825792"),
    case("compress", call("compress", TEXT)),
    *(
        case(f"uncompress-{name}", call("uncompress", packed))
        for name, packed in {
            "level-6": PACKED,
            "level-0": zlib.compress(TEXT, 0),
            "level-9": zlib.compress(TEXT * 40, 9),
            "of-nothing": zlib.compress(b""),
            "nothing": b"",
            "no-stream": b"no stream",
            "head": PACKED[:2],
            "cut": PACKED[:-1],
            "cut-data": PACKED[:20],
            "wrong-sum": PACKED[:-1] + bytes([PACKED[-1] ^ 1]),
            "more": PACKED + b"more",
            "raw": PACKED[2:-4],
        }.items()
    ),
    *(
        case(f"results-{way}", *(call(name, PACKED, way) for name in ("uncompress", "compress", "nobody_knows")))
        for way in ("blind", "address")
    ),
    case("uncompress-17m", call("uncompress", zlib.compress(bytes(17 << 20), 9), "size")),
    case("results-size", *(call(name, PACKED, "size") for name in ("uncompress", "nobody_knows"))),
    case("route-kept", STATE),
    case("route-chosen-again", STATE, call("clear_route_cache")),
    case("route-chosen-before", call("clear_route_cache"), STATE),
    case("route-arguments", STATE, call("clear_route_cache", b"ignored"), call("clear_route_cache")),
    case("route-by-header", ROUTED),
    case("route-by-header-again", ROUTED, call("clear_route_cache")),
    Case("route-in-response", ("get no/thing",), (call("clear_route_cache"),)),
    case("state", call("set_envoy_filter_state", state(STRING, "value"))),
    *(case(f"state-span-{span}", call("set_envoy_filter_state", state(STRING, "value", span))) for span in (1, 2)),
    case("state-read", call("set_envoy_filter_state", state(STRING, "value")), f"get filter_state/{STRING}"),
    Case(
        "state-read-in-response",
        (call("set_envoy_filter_state", state(STRING, "value")),),
        (f"get filter_state/{STRING}",),
    ),
    case(
        "state-again",
        call("set_envoy_filter_state", state(STRING, "one")),
        call("set_envoy_filter_state", state(STRING, "two")),
        f"get filter_state/{STRING}",
    ),
    Case("state-next-request", (call("set_envoy_filter_state", state(STRING, "value")), f"get filter_state/{STRING}")),
    case("state-unset", f"get filter_state/{STRING}"),
    case("state-unknown", call("set_envoy_filter_state", state("nobody.makes.this", "value"))),
    case("state-refused", call("set_envoy_filter_state", state("envoy.network.ip", "no address"))),
    case("state-no-path", call("set_envoy_filter_state", field(2, b"value"))),
    case("state-malformed", call("set_envoy_filter_state", b"\x0a\x7fshort")),
    case("state-nothing", call("set_envoy_filter_state")),
    case("declared-once", "set start.once 31", "set start.once 32", "get start.once"),
    case("declared-often", "set start.often 31", "set start.often 32", "get start.often"),
    case("declared-never", "set start.never 31", "set start.never 32", "get start.never"),
    Case("declared-once-each-request", ("set start.once 31;get start.once", "set start.once 33;get start.once")),
    case("declare-malformed", call("declare_property", b"\x0a\x7fshort")),
    case("declare-no-name", call("declare_property", field(3, b""))),
    case(
        "declare-kinds",
        *(call("declare_property", declared(f"kind.{kind}", kind=kind)) for kind in range(4)),
        *(f"set kind.{kind} 3132" for kind in range(2)),
        *(f"get kind.{kind}" for kind in range(2)),
    ),
    case(
        "declare-in-request",
        call("declare_property", declared("request.once", readonly=True)),
        call("declare_property", declared("request.once")),
        "set request.once 31",
        "set request.once 32",
        "get request.once",
    ),
    Case("declare-in-each-request", (call("declare_property", declared("request.each")),) * 2),
    *(
        case(f"unknown-{name or 'empty'}", call(name or "-", b"x"), call(name or "-", way="size"))
        for name in ("", "compres", "compressed", "Compress", "nobody_knows", "n" * 300)
    ),
    case("cel-create", call("expr_create", b"request.path")),
    case("cel-create-broken", call("expr_create", b"((")),
    case("cel-evaluate", call("expr_evaluate", bytes(4)), call("expr_evaluate", b"")),
    case("cel-delete", call("expr_delete", bytes(4)), call("expr_delete", b"")),
    case("sign", call("sign", key("sha256", 4)), call("sign", b"\xff")),
    case("verify", call("verify_signature", key("sha256", 5)), call("verify_signature", b"\xff")),
    Case("in-response", ("get no/thing",), (";".join((call("uncompress", PACKED), call("nobody_knows"))),)),
)

KNOWN_DIFFERENCES = (
    known.Known("F1", ("request",), ("*/fill-17m", "*/uncompress-17m")),
    known.Known("F2", ("request",), ("*/state-unknown", "*/state-refused")),
    known.Known("F3", ("request",), ("*/declare-in-request", "*/declare-in-each-request")),
    known.Known("F4", ("request",), ("*/cel-*",)),
    known.Known("F5", ("request",), ("*/sign", "*/verify")),
)

GUEST = replace(guests.C_FOREIGN_PROBE, configuration=";".join(START))


class Comparison:
    """Both filters, and what Envoy's own did."""

    def __init__(self, both: pair.Pair) -> None:
        self._both = both
        self._theirs: dict[str, dict[str, str]] = {}
        self.ledger = known.Ledger(KNOWN_DIFFERENCES)

    def theirs(self, case: Case) -> dict[str, str]:
        """Return what Envoy's own filter does; once per case."""
        if case.name not in self._theirs:
            self._theirs[case.name] = self.perform("v8", case)
        return self._theirs[case.name]

    def perform(self, kind: str, case: Case) -> dict[str, str]:
        """Return what the guest said, and which route each request took."""
        said: dict[str, list[str]] = {"status": [], "request": [], "response": [], "route": []}
        for number, commands in enumerate(case.requests):
            headers = [("x-foreign", commands)]
            headers += [("x-foreign-response", commands) for commands in case.responses[number : number + 1]]
            self._both.recorder.take()
            answer = asyncio.run(
                fetch(self._both.port(f"{kind}-{GUEST.name}"), Request("GET", "/", tuple(headers)), 10)
            )
            (seen,) = self._both.recorder.take()
            said["status"].append(str(answer.status))
            said["request"].append(answer.value("x-request"))
            said["response"].append(answer.value("x-response"))
            said["route"].append(seen.value("x-routed"))
        return {name: " | ".join(values) for name, values in said.items()}

    def start(self, kind: str) -> dict[str, str]:
        """Return what the guest said to each command of its configuration."""
        answer = asyncio.run(fetch(self._both.port(f"{kind}-{GUEST.name}"), Request("GET", "/"), 10))
        return dict(zip(map(str, range(len(START))), answer.value("x-start").split("; "), strict=True))


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Comparison]:
    subjects = (Subject(GUEST, ("NONE",)),)
    with pair.running(subjects, tmp_path_factory.mktemp("foreign"), more_routes=ROUTES) as running:
        yield Comparison(running)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_guest_sees_the_same(comparison: Comparison, case: Case, kind: str) -> None:
    ours, theirs = comparison.perform(kind, case), comparison.theirs(case)

    assert "?" not in theirs["request"] + theirs["response"], "the guest does not know the command"
    assert all(theirs["request"].split(" | ")), "the guest said nothing"
    comparison.ledger.compare(f"{kind}/{case.name}", ours, theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_the_root_context_sees_the_same(comparison: Comparison, kind: str) -> None:
    """Calls from `proxy_on_configure`, before there is any stream."""
    comparison.ledger.compare(f"{kind}/start", comparison.start(kind), comparison.start("v8"))


def test_every_known_difference_still_occurs(comparison: Comparison) -> None:
    """What does not differ any more leaves the table."""
    if comparison.ledger.compared < (len(CASES) + 1) * len(KINDS):
        pytest.skip("only after all comparisons")

    assert comparison.ledger.never_met() == set()


def test_every_known_difference_is_explained() -> None:
    """The table here and the headings of docs/compatibility.md name the same differences."""
    assert known.unexplained(KNOWN_DIFFERENCES, "F") == {}
