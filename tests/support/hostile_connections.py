"""What a worker that was taken over does when the first bytes of a TCP connection come."""

from __future__ import annotations

from collections.abc import Iterable

from sandboxd.channel import layout, pairs
from sandboxd.channel.ring import Record
from tests.support.fake_vm import Event

DOWN, UP = layout.DOWNSTREAM_DATA, layout.UPSTREAM_DATA
FORGED = b"forged"
PEEKED = b"peeked"
"""The property that tells what the worker was shown."""
ENDLESS = 64
LATE = 400_000


class ConnectionDeeds:
    """Each takes the event of downstream data."""

    def tcp_twin(self, event: Event) -> Iterable[Record]:
        """No misdeed: an edit that the policy allows."""
        return [event.effect(DOWN, FORGED), event.verdict()]

    def tcp_peek(self, event: Event) -> Iterable[Record]:
        """Tells what it was shown, and writes what it may not."""
        shown = event.effect(layout.PROPERTY_SET, pairs.encode([(PEEKED, event.payload)]))
        return [shown, event.effect(DOWN, FORGED), event.verdict()]

    def tcp_http_effects(self, event: Event) -> Iterable[Record]:
        """Answers a connection as if it were an exchange."""
        return [event.effect(layout.REQUEST_BODY, FORGED), event.verdict()]

    def tcp_forged_end(self, event: Event) -> Iterable[Record]:
        """Ends what has not ended, and goes on afterwards."""
        end = event.effect(DOWN, FORGED, layout.FLAG_END_OF_STREAM)
        return [end, event.effect(DOWN, FORGED), event.verdict()]

    def tcp_others(self, event: Event) -> Iterable[Record]:
        """Sends bytes on every connection that anybody might have."""
        for stream_id in range(1, 400):
            yield event.effect(DOWN, FORGED, 0, 0, stream_id)
            yield event.effect(UP, FORGED, 0, 0, stream_id)
        yield event.verdict()

    def tcp_endless(self, event: Event) -> Iterable[Record]:
        """More bytes than any event may bring."""
        for _ in range(ENDLESS):
            yield event.effect(DOWN, bytes(1 << 20))
        yield event.verdict()

    def tcp_late_twin(self, event: Event) -> Iterable[Record]:
        """No misdeed: holds the bytes and frees them outside any event, as a timer does."""
        return [event.verdict(0, layout.STATE_REQUEST_PAUSED), (DOWN, 0, event.stream_id, 0, 0, FORGED)]

    def tcp_late_others(self, event: Event) -> Iterable[Record]:
        """The same on every connection that anybody might have."""
        yield event.verdict(0, layout.STATE_REQUEST_PAUSED)
        for stream_id in range(1, 400):
            yield (DOWN, 0, stream_id, 0, 0, FORGED)

    def tcp_late_flood(self, event: Event) -> Iterable[Record]:
        """The same again and again, without bytes, to keep the front busy."""
        yield event.verdict(0, layout.STATE_REQUEST_PAUSED)
        for _ in range(LATE):
            yield (DOWN, 0, event.stream_id, 0, 0, b"")
