"""One exchange as both ends saw it, and what two exchanges differ in."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from sandboxd.demo import http1
from sandboxd.demo.client import fetch
from sandboxd.demo.echo import FRAMING, Recorder
from tests.support.cases import Case

CLOCKS = ("date", "x-envoy-upstream-service-time")
"""Headers whose value is a time: present or absent is compared, the value is not."""

IGNORED = ("connection",)
"""Headers that depend on timing: whether the request had been read to its end when a filter answered it."""

SMALL_BODY_BYTES = 512

Fields = dict[str, str]
"""What can be compared, by a dotted name such as ``client.headers.content-length``."""


@dataclass(frozen=True)
class Outcome:
    """What the client got and what the upstream saw of one request."""

    answer: http1.Message | None
    error: str
    """Why there is no answer: ``closed`` or ``timeout``; empty if there is one."""
    seen: tuple[http1.Message, ...] | None
    """What reached the upstream; None if that is a matter of timing."""


def perform(port: int, case: Case, recorder: Recorder) -> Outcome:
    """Send a case's request and return what came of it at both ends."""
    recorder.take()
    answer: http1.Message | None = None
    error = ""
    try:
        answer = asyncio.run(fetch(port, case.request, case.timeout_s))
    except TimeoutError:
        error = "timeout"
    except (ConnectionError, asyncio.IncompleteReadError):
        error = "closed"
    seen = recorder.take()
    return Outcome(answer, error, None if case.upstream_races else seen)


def _body(body: bytes) -> str:
    if len(body) <= SMALL_BODY_BYTES:
        return repr(body)
    return f"{len(body)} bytes, sha256 {hashlib.sha256(body).hexdigest()}"


def _headers(place: str, headers: Iterable[tuple[str, str]]) -> Fields:
    found: dict[str, list[str]] = {}
    for name, value in headers:
        if name.lower() not in (*FRAMING, *IGNORED):
            found.setdefault(name.lower(), []).append("(a time)" if name.lower() in CLOCKS else value)
    return {f"{place}.{name}": repr(values) for name, values in found.items()}


def _message(side: str, message: http1.Message) -> Fields:
    framing = [f"{name} {value}" for name in FRAMING for value in message.values(name)]
    found = {f"{side}.body": _body(message.body), f"{side}.framing": ", ".join(framing)}
    return found | _headers(f"{side}.headers", message.headers) | _headers(f"{side}.trailers", message.trailers)


def fields(outcome: Outcome) -> Fields:
    """
    Return all that is compared of an outcome.

    Not compared: the order of headers of different names, where chunks are cut, `IGNORED`, `CLOCKS`.
    """
    found = {"client.error": outcome.error}
    if (answer := outcome.answer) is not None:
        found |= {"client.status": str(answer.status), **_message("client", answer)}
    if outcome.seen is not None:
        found["upstream.requests"] = str(len(outcome.seen))
    for request in outcome.seen or ():
        found |= {"upstream.line": request.start_line, **_message("upstream", request)}
    return found


def differences(ours: Fields, theirs: Fields) -> dict[str, tuple[str, str]]:
    """Return the names of the fields that differ, each with both values (``-`` for absent)."""
    names = sorted(ours.keys() | theirs.keys())
    pairs = {name: (ours.get(name, "-"), theirs.get(name, "-")) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
