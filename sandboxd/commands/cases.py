"""
What a case of `sandboxd run` says, as frozen data: an exchange, and what must come of it (``docs/run.md``).
"""

from __future__ import annotations

import enum
import json
from dataclasses import dataclass, field
from typing import Any

from sandboxd.policy.redact import Headers


class Action(enum.StrEnum):
    """How an exchange ended."""

    CONTINUE = "continue"
    """The request reached the upstream, and its response the client."""
    RESPOND = "respond"
    """The plugin answered."""
    PAUSE = "pause"
    """The plugin held a direction back and never let it go."""
    RESET = "reset"
    """The plugin closed the stream."""
    FAIL = "fail"
    """The plugin failed; the client gets what the failure policy says."""


@dataclass(frozen=True, slots=True)
class Message:
    """A request or response as given."""

    headers: Headers
    body: bytes = b""
    chunks: tuple[int, ...] = ()
    """Sizes of the pieces that the body arrives in; empty: no body."""
    trailers: Headers | None = None

    def pieces(self) -> list[bytes]:
        """Return the body as it arrives."""
        pieces, start = [], 0
        for size in self.chunks:
            pieces.append(self.body[start : start + size])
            start += size
        return pieces


@dataclass(frozen=True, slots=True)
class HeaderExpectation:
    """What one header must be; exactly one of the fields says."""

    values: tuple[str, ...] | None = None
    """These values in this order; empty: the header is not there."""
    pattern: str | None = None
    """One value that this regular expression matches in full."""


@dataclass(frozen=True, slots=True)
class BodyExpectation:
    """What a body must be; what is None is not looked at."""

    exact: bytes | None = None
    contains: str | None = None
    json: str | None = None
    """As canonical JSON."""
    size: int | None = None


@dataclass(frozen=True, slots=True)
class MessageExpectation:
    """What one side must see; what is None is not looked at."""

    status: int | None = None
    headers: dict[str, HeaderExpectation] = field(default_factory=dict)
    body: BodyExpectation | None = None
    trailers: dict[str, HeaderExpectation] = field(default_factory=dict)
    details: str | None = None
    grpc_status: int | None = None


@dataclass(frozen=True, slots=True)
class LogExpectation:
    """A line that the plugin must have logged."""

    contains: str
    level: str = ""
    """Empty: any."""


@dataclass(frozen=True, slots=True)
class Expectations:
    """What must come of a case."""

    action: Action = Action.CONTINUE
    upstream: MessageExpectation | None = None
    client: MessageExpectation | None = None
    local_response: MessageExpectation | None = None
    logs: tuple[LogExpectation, ...] = ()
    no_logs: tuple[str, ...] = ()
    properties: dict[str, str] = field(default_factory=dict)
    denied: tuple[str, ...] | None = None
    """Functions whose call was refused, in any order; None: not looked at."""


@dataclass(frozen=True, slots=True)
class Case:
    """One exchange."""

    name: str
    line: int
    request: Message
    response: Message
    attributes: dict[str, str | int | bool]
    expect: Expectations
    wait_s: float = 0.0
    """How long the VM is left alone before the request, for ticks and queue items."""


def canonical_json(data: Any) -> str:
    """Return one text for all texts of the same JSON value."""
    return json.dumps(data, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
