"""What an event that waits for its verdict has brought so far, and what it may bring yet. Without I/O."""

from __future__ import annotations

from sandboxd.channel.completions import Effect, EventLimits
from sandboxd.channel.errors import ChannelBroken
from sandboxd.channel.layout import FLAG_MORE, NOTICE_KINDS
from sandboxd.channel.ring import Record

EFFECT_OVERHEAD_BYTES = 64
"""Counted for each record besides its payload."""


class Pending:
    """
    One event that waits for its verdict.

    Args:
        stream_id: the event's own stream.
        kind: of the submission.
        payload: a body as submitted, until AS_SUBMITTED asks for it.
        limits: what the event may bring.
    """

    __slots__ = (
        "abandoned",
        "bytes_left",
        "effects",
        "effects_left",
        "held_bytes",
        "kind",
        "notices",
        "partial",
        "payload",
        "stream_id",
    )

    def __init__(self, stream_id: int, kind: int, payload: bytes | None, limits: EventLimits) -> None:
        self.stream_id = stream_id
        self.kind = kind
        self.payload = payload
        self.effects: list[Effect] = []
        self.notices: list[Effect] = []
        self.partial: dict[int, tuple[int, int, int, list[bytes]]] | None = None
        """Per stream the fragments of an effect that is not whole: kind, flags, arg, pieces."""
        self.effects_left = limits.max_effects
        self.bytes_left = limits.max_bytes
        self.held_bytes = 0
        """What is kept until the verdict, as it was charged."""
        self.abandoned = False

    def charge(self, charged_bytes: int) -> None:
        """Count one record against what the event may bring."""
        self.effects_left -= 1
        self.bytes_left -= charged_bytes
        if self.effects_left < 0 or self.bytes_left < 0:
            raise ChannelBroken("event with more or larger effects than its limits allow")

    def abandon(self) -> None:
        """Nobody waits any more: keep nothing of what comes, but what it does to other streams."""
        self.abandoned = True
        self.payload = None
        self.effects = [effect for effect in self.effects if self.wanted(effect.kind, effect.stream_id)]
        self.notices.clear()
        if self.partial:
            self.partial = {number: known for number, known in self.partial.items() if self.wanted(known[0], number)}
        pieces = [piece for known in (self.partial or {}).values() for piece in known[3]]
        pieces += [effect.payload for effect in self.effects]
        self.held_bytes = sum(map(len, pieces)) + EFFECT_OVERHEAD_BYTES * len(pieces)

    def wanted(self, kind: int, stream_id: int) -> bool:
        """Return whether somebody is to be told of an effect."""
        return not self.abandoned or (stream_id != self.stream_id and kind not in NOTICE_KINDS)

    def join(self, record: Record) -> bytes | None:
        """Add a fragment, or what is none. Returns the whole payload after the last one."""
        kind, flags, stream_id, _, arg, payload = record
        if self.partial is None:
            self.partial = {}
        known = self.partial.get(stream_id)
        if known is None:
            if not flags & FLAG_MORE:
                return payload
            self.partial[stream_id] = (kind, flags & ~FLAG_MORE, arg, [payload])
            return None
        if known[0] != kind or known[2] != arg:
            raise ChannelBroken("fragments of one effect interleaved with another effect of the same stream")
        known[3].append(payload)
        if flags & FLAG_MORE:
            return None
        del self.partial[stream_id]
        return b"".join(known[3])
