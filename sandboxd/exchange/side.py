"""What is said of one direction (request or response) of an HTTP exchange: names, header maps, events. Pure."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final, NamedTuple

from sandboxd.channel import layout
from sandboxd.channel.pairs import Pair
from sandboxd.policy.failure import Phase
from sandboxd.policy.model import Section


@dataclass(frozen=True, slots=True)
class Names:
    """What is different between the two directions."""

    word: str
    headers: int
    """Kind of event and of effect, as the next two."""
    body: int
    trailers: int
    body_callback: str
    trailers_callback: str
    headers_section: Section
    trailers_section: Section
    paused: int
    """State bits, as the next two."""
    headers_held: int
    all_stopped: int

    def pauses_again(self, behind: int, released: Collection[int]) -> bool:
        """
        Return whether the plugin holds the direction still, though something outside its own events let headers go.

        Behind a stop of all iteration the VM keeps what it is told of from the plugin's callbacks. They run when the
        headers go, and may pause in their turn: so it is if what came last was not let go as well.

        Args:
            behind: kind of the last event behind the headers that the VM was told of; 0: none.
            released: kinds of the effects that came.
        """
        return behind != 0 and not any(kind in released for kind in range(behind, self.trailers + 1))


REQUEST: Final = Names(
    "request",
    layout.REQUEST_HEADERS,
    layout.REQUEST_BODY,
    layout.REQUEST_TRAILERS,
    "proxy_on_request_body",
    "proxy_on_request_trailers",
    Section.REQUEST_HEADERS,
    Section.REQUEST_TRAILERS,
    layout.STATE_REQUEST_PAUSED,
    layout.STATE_REQUEST_HEADERS_HELD,
    layout.STATE_REQUEST_ALL_STOPPED,
)
RESPONSE: Final = Names(
    "response",
    layout.RESPONSE_HEADERS,
    layout.RESPONSE_BODY,
    layout.RESPONSE_TRAILERS,
    "proxy_on_response_body",
    "proxy_on_response_trailers",
    Section.RESPONSE_HEADERS,
    Section.RESPONSE_TRAILERS,
    layout.STATE_RESPONSE_PAUSED,
    layout.STATE_RESPONSE_HEADERS_HELD,
    layout.STATE_RESPONSE_ALL_STOPPED,
)

PHASES: Final = {
    layout.REQUEST_HEADERS: Phase.REQUEST_HEADERS,
    layout.REQUEST_BODY: Phase.REQUEST_BODY,
    layout.REQUEST_TRAILERS: Phase.REQUEST_TRAILERS,
    layout.RESPONSE_HEADERS: Phase.RESPONSE_HEADERS,
    layout.RESPONSE_BODY: Phase.RESPONSE_BODY,
    layout.RESPONSE_TRAILERS: Phase.RESPONSE_TRAILERS,
}
"""The phase in which an event fails, by its kind."""


@dataclass(slots=True)
class HeldMap:
    """A header map: as it came, and as the plugin sees it."""

    original: list[Pair]
    view: list[Pair]
    section: Section


class Ask(NamedTuple):
    """One event for the VM."""

    kind: int
    payload: bytes
    end_of_stream: bool
