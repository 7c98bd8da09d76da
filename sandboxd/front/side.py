"""What is said of one direction (request or response) of an HTTP exchange: body modes, names, header maps. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sandboxd.channel import layout
from sandboxd.channel.pairs import Pair
from sandboxd.policy.model import Section

# envoy.extensions.filters.http.ext_proc.v3.ProcessingMode.BodySendMode
NONE = 0
STREAMED = 1
BUFFERED = 2
BUFFERED_PARTIAL = 3
FULL_DUPLEX_STREAMED = 4
UNKNOWN = -1
"""The proxy sent no ``protocol_config``: as STREAMED, but written so that BUFFERED is served as well."""

Report = Callable[[str, str], None]
"""Takes the name of a counter and a detail for the log."""


@dataclass(frozen=True, slots=True)
class Names:
    """What is different between the two directions."""

    word: str
    headers: int
    body: int
    trailers: int
    body_callback: str
    trailers_callback: str
    headers_section: Section
    trailers_section: Section
    paused: int
    headers_held: int
    all_stopped: int


REQUEST = Names(
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
RESPONSE = Names(
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


@dataclass(slots=True)
class HeldMap:
    """A header map: as the proxy sent it, and as the plugin sees it."""

    original: list[Pair]
    view: list[Pair]
    section: Section


EMPTY_MAP = HeldMap([], [], Section.REQUEST_HEADERS)


class CannotCarryError(Exception):
    """What the plugin did cannot be said to the proxy, and leaving it out would damage the message."""
