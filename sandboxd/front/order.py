"""Which message of a direction of an HTTP exchange may come next, and what the VM has to be told before it. Pure."""

from __future__ import annotations

from sandboxd.errors import PeerError
from sandboxd.exchange.side import Ask
from sandboxd.front.direction import Direction


def no_longer_waits(side: Direction) -> None:
    """
    The proxy sends on: nothing of this direction may be unanswered, or it is answered now.

    Raises:
        PeerError: the proxy had to wait for an answer.
    """
    if side.unanswered == side.names.headers and side.early_body:
        side.answer_headers_early()
    elif side.unanswered:
        raise PeerError(f"{side.names.word} message before the one before it was answered")


def after_headers(side: Direction) -> list[Ask]:
    """
    Check that a body or trailers may come; returns what the VM has to be told first.

    Raises:
        PeerError: they may not.
    """
    if side.input_over:
        raise PeerError(f"{side.names.word} body or trailers after the end of the {side.names.word}")
    no_longer_waits(side)
    if side.headers_seen:
        return []
    side.skip_headers()
    return [Ask(side.names.headers, b"", False)]
