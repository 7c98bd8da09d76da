"""What a worker that was taken over does with bodies that its plugin may not write. Each deed answers every event."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sandboxd.channel import layout
from sandboxd.channel.ring import Record
from tests.support.fake_vm import Event, pass_through

FORGED = b"forged"
LATE = 60
HEADERS = {layout.REQUEST_HEADERS, layout.RESPONSE_HEADERS}
TO_TRAILERS = layout.REQUEST_TRAILERS - layout.REQUEST_HEADERS


def answers_everything(deed: Any) -> Any:
    """Mark a deed that is not done when a request comes alone."""
    deed.answers_everything = True
    return deed


def _nothing(event: Event) -> list[Record]:
    return [] if event.kind in layout.WITHOUT_VERDICT else [event.verdict()]


class BodyDeeds:
    """Each takes any event."""

    @answers_everything
    def body_twin(self, event: Event) -> Iterable[Record]:
        """No misdeed: all goes on as it came."""
        return pass_through(event)

    @answers_everything
    def body_ends_with_headers(self, event: Event) -> Iterable[Record]:
        """Says with the headers that all is over, and lets nothing go of what comes behind."""
        if event.kind in HEADERS:
            return [event.effect(event.kind, flags=layout.FLAG_END_OF_STREAM), event.verdict()]
        return _nothing(event)

    @answers_everything
    def body_ends_early(self, event: Event) -> Iterable[Record]:
        """Says with each piece that it is the last, and lets nothing go but the first."""
        if event.kind in layout.BODY_KINDS:
            flags = layout.FLAG_AS_SUBMITTED | layout.FLAG_END_OF_STREAM
            first = b"one" in event.payload or not event.payload
            return [event.effect(event.kind, flags=flags), event.verdict()] if first else _nothing(event)
        return pass_through(event)

    @answers_everything
    def body_trailers_first(self, event: Event) -> Iterable[Record]:
        """Lets trailers go that nobody has sent yet, so that the true ones find the body gone."""
        if event.kind in HEADERS:
            return [event.effect(event.kind), event.effect(event.kind + TO_TRAILERS), event.verdict()]
        return _nothing(event)

    @answers_everything
    def body_left_behind(self, event: Event) -> Iterable[Record]:
        """Lets headers and trailers go, and of the body one byte."""
        if event.kind in layout.BODY_KINDS:
            return [event.effect(event.kind, event.payload[:1]), event.verdict()]
        return pass_through(event)

    @answers_everything
    def body_forged(self, event: Event) -> Iterable[Record]:
        """Puts its own bytes in the place of the others', and before them."""
        if event.kind in layout.BODY_KINDS:
            flags = event.flags & layout.FLAG_END_OF_STREAM
            return [event.effect(event.kind, FORGED, flags), event.verdict()]
        if event.kind in HEADERS:
            return [event.effect(event.kind), event.effect(event.kind + 1, FORGED), event.verdict()]
        return pass_through(event)

    @answers_everything
    def body_late(self, event: Event) -> Iterable[Record]:
        """Lets bodies go that nobody has sent, outside any event, more than anybody can hold."""
        yield from pass_through(event)
        if event.kind == layout.REQUEST_HEADERS:
            for kind in (layout.REQUEST_BODY, layout.RESPONSE_BODY):
                for _ in range(LATE):
                    yield (kind, 0, event.stream_id, 0, 0, FORGED * 20_000)

    @answers_everything
    def body_mute(self, event: Event) -> Iterable[Record]:
        """Holds everything back, and says that it holds nothing."""
        return _nothing(event)
