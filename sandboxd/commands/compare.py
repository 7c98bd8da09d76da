"""What came of a case against what was expected: one line for each difference. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from sandboxd.commands.cases import (
    Action,
    BodyExpectation,
    Expectations,
    HeaderExpectation,
    LogExpectation,
    MessageExpectation,
    canonical_json,
)
from sandboxd.commands.exchange import Outcome, Seen
from sandboxd.log import GUEST_LEVELS, one_line
from sandboxd.policy.redact import Headers

SHOWN_CHARACTERS = 300


def differences(expect: Expectations, outcome: Outcome) -> list[str]:
    """Return what is not as expected; empty: all is."""
    return list(_differences(expect, outcome))


def _differences(expect: Expectations, outcome: Outcome) -> Iterator[str]:
    if outcome.action is not expect.action:
        yield _differs("action", str(expect.action), str(outcome.action)) + _why(outcome)
    if expect.upstream is not None:
        yield from _message("upstream", expect.upstream, outcome.upstream)
    if expect.client is not None:
        yield from _message("client", expect.client, outcome.client)
    if expect.local_response is not None:
        yield from _local_response(expect.local_response, outcome)
    yield from _logs(expect, outcome)
    yield from _properties(expect, outcome)
    if expect.denied is not None and set(expect.denied) != set(outcome.denied):
        yield _differs("denied", ", ".join(sorted(set(expect.denied))), ", ".join(sorted(set(outcome.denied))))


def _logs(expect: Expectations, outcome: Outcome) -> Iterator[str]:
    for wanted in expect.logs:
        if not any(_logged(wanted, level, text) for level, text in outcome.logs):
            level = f" at level {wanted.level}" if wanted.level else ""
            yield f"logs: no line{level} contains {_shown(wanted.contains)}; {_all_logs(outcome)}"
    for text in expect.no_logs:
        for _, line in outcome.logs:
            if text in line:
                yield f"no_logs: {_shown(text)} was logged: {_shown(line)}"


def _properties(expect: Expectations, outcome: Outcome) -> Iterator[str]:
    for name, wanted_value in expect.properties.items():
        got = outcome.properties.get(name)
        if got is None:
            known = ", ".join(sorted(outcome.properties)) or "none"
            yield f"properties.{name}: was not set (set: {known})"
        elif got != wanted_value.encode():
            yield _differs(f"properties.{name}", wanted_value, got.decode("utf-8", "replace"))


def _why(outcome: Outcome) -> str:
    if outcome.failure:
        return f" ({outcome.failure})"
    if outcome.action is Action.RESPOND and outcome.local_response is not None:
        return f" (status {outcome.local_response.status}, details {_shown(outcome.local_response.details)})"
    return ""


def _message(side: str, expect: MessageExpectation, seen: Seen) -> Iterator[str]:
    if seen.headers is None:
        yield f"{side}: saw no message"
        return
    if expect.status is not None and seen.status != expect.status:
        yield _differs(f"{side}.status", str(expect.status), str(seen.status))
    yield from _headers(f"{side}.headers", expect.headers, seen.headers)
    if expect.body is not None:
        yield from _body(f"{side}.body", expect.body, bytes(seen.body))
    yield from _headers(f"{side}.trailers", expect.trailers, seen.trailers or [])


def _local_response(expect: MessageExpectation, outcome: Outcome) -> Iterator[str]:
    response = outcome.local_response
    if response is None:
        yield "local_response: the plugin sent none"
        return
    for key in ("status", "details", "grpc_status"):
        wanted, got = getattr(expect, key), getattr(response, key)
        if wanted is not None and wanted != got:
            yield _differs(f"local_response.{key}", str(wanted), str(got))
    yield from _headers("local_response.headers", expect.headers, list(response.headers))
    if expect.body is not None:
        yield from _body("local_response.body", expect.body, response.body)


def _headers(key: str, expect: dict[str, HeaderExpectation], headers: Headers) -> Iterator[str]:
    for name, wanted in expect.items():
        got = tuple(_text(value) for other, value in headers if other.lower() == name.encode())
        if wanted.pattern is not None:
            if len(got) != 1 or not re.fullmatch(wanted.pattern, got[0]):
                yield _differs(f"{key}.{name}", f"one value that matches {wanted.pattern}", _values(got))
        elif got != wanted.values:
            yield _differs(f"{key}.{name}", _values(wanted.values or ()), _values(got))


def _body(key: str, expect: BodyExpectation, body: bytes) -> Iterator[str]:
    if expect.size is not None and len(body) != expect.size:
        yield _differs(f"{key}.size", str(expect.size), str(len(body)))
    if expect.exact is not None and body != expect.exact:
        at = next(
            (i for i, (a, b) in enumerate(zip(body, expect.exact, strict=False)) if a != b),
            min(len(body), len(expect.exact)),
        )
        yield (
            f"{key}: differs at byte {at}\n"
            f"    - {len(expect.exact)} bytes: {_around(expect.exact, at)}\n"
            f"    + {len(body)} bytes: {_around(body, at)}"
        )
    if expect.contains is not None and expect.contains.encode() not in body:
        yield f"{key}: does not contain {_shown(expect.contains)}: {_around(body, 0)}"
    if expect.json is not None:
        yield from _json(key, expect.json, body)


def _json(key: str, expect: str, body: bytes) -> Iterator[str]:
    try:
        got = canonical_json(json.loads(body))
    except (ValueError, RecursionError):
        yield f"{key}: is not JSON: {_around(body, 0)}"
        return
    if got != expect:
        yield _differs(f"{key}.json", expect, got)


def _logged(wanted: LogExpectation, level: int, text: str) -> bool:
    return wanted.contains in text and wanted.level in ("", GUEST_LEVELS[level])


def _all_logs(outcome: Outcome) -> str:
    if not outcome.logs:
        return "nothing was logged"
    return "logged: " + "; ".join(f"[{GUEST_LEVELS[level]}] {_shown(text)}" for level, text in outcome.logs[:20])


def _differs(key: str, wanted: str, got: str) -> str:
    return f"{key}:\n    - {_cut(wanted)}\n    + {_cut(got)}"


def _values(values: tuple[str, ...]) -> str:
    return ", ".join(repr(value) for value in values) if values else "absent"


def _text(value: bytes) -> str:
    return value.decode("utf-8", "backslashreplace")


def _around(data: bytes, at: int) -> str:
    start = max(0, at - 20)
    dots = "..." if start else ""
    return dots + _shown(data[start : start + 100].decode("utf-8", "backslashreplace"))


def _shown(text: str) -> str:
    return repr(_cut(text))


def _cut(text: str) -> str:
    return one_line(text, SHOWN_CHARACTERS)
