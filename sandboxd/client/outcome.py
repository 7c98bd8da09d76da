"""What a program is told to do after each event. Pure data."""

from __future__ import annotations

from dataclasses import dataclass, field

from sandboxd.channel.pairs import Pair
from sandboxd.policy.failure import Cause
from sandboxd.policy.write_rules import LocalResponse, Refusal


@dataclass(slots=True)
class Part:
    """What goes on in one direction, in this order: headers, body, trailers."""

    headers: list[Pair] | None = None
    """As they are to be sent; None: they do not go now, or went before."""
    body: bytes = b""
    """Bytes that go now."""
    trailers: list[Pair] | None = None
    ended: bool = False
    """Nothing more comes in this direction."""

    def __bool__(self) -> bool:
        return self.headers is not None or bool(self.body) or self.trailers is not None or self.ended


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one event."""

    own: Part
    """The direction of the event."""
    other: Part
    """The other direction, which an event can free as well."""
    paused: bool
    """Something of this direction is held back, and more input may free it."""
    local_response: LocalResponse | None = None
    """Answer with this; nothing else of the exchange goes on."""
    reset: bool = False
    """Break the exchange off: it cannot be answered any more."""
    failure: Cause | None = None
    """The plugin failed, and this is what its failure policy says."""
    bypassed: bool = False
    """It failed open: the exchange goes on without it."""
    clear_route_cache: bool = False
    properties: list[tuple[bytes, bytes]] = field(default_factory=list)
    """What the plugin set: path (segments parted by NUL) and value."""
    refusals: list[Refusal] = field(default_factory=list)
    """What it tried and may not."""

    @property
    def headers(self) -> list[Pair] | None:
        """Headers of the event's direction that go on now."""
        return self.own.headers

    @property
    def body(self) -> bytes:
        """Body bytes of the event's direction that go on now."""
        return self.own.body

    @property
    def trailers(self) -> list[Pair] | None:
        """Trailers of the event's direction that go on now."""
        return self.own.trailers

    @property
    def ended(self) -> bool:
        """Whether the event's direction is over."""
        return self.own.ended

    @property
    def over(self) -> bool:
        """Whether nothing of the exchange may go on any more."""
        return self.local_response is not None or self.reset
