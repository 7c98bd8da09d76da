"""What ext_proc says of one direction of an HTTP exchange beside `sandboxd.exchange.side`: body modes, limits. Pure."""

from __future__ import annotations

from collections.abc import Callable

from sandboxd.exchange.side import HeldMap
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


EMPTY_MAP = HeldMap([], [], Section.REQUEST_HEADERS)


class CannotCarryError(Exception):
    """What the plugin did cannot be said to the proxy, and leaving it out would damage the message."""
