"""What a client that waits in a loop tells its owner."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field

from sandboxd.channel.completions import Effect, Verdict


class Lost(enum.Enum):
    """Why an event has no verdict."""

    DOWN = "vm down"
    """The VM failed, or is not there."""
    TIMEOUT = "timeout"
    """No verdict within the time for an event."""
    BROKEN = "channel broken"
    """The VM broke the channel's rules, or the channel was taken away."""


@dataclass(slots=True)
class Hooks:
    """What the owner of an `AsyncVm` is told. None of them may raise or block."""

    unclaimed: Callable[[Verdict], None]
    """A verdict nobody waits for: closed streams, events that timed out."""
    loose: Callable[[Effect], None]
    """A notice outside any event, or an effect on a stream outside that stream's own events."""
    restarted: Callable[[int], None]
    """A new generation serves; all streams of the older ones are lost."""
    broken: Callable[[str], None]
    """The channel is dead; told once."""
    verdict: Callable[[int, bool], None] = field(default=lambda _stream_id, _at_once: None)
    """
    A verdict of this stream is handed out, after what ``loose`` was told before: to who waits for it, who is woken in
    the loop's next turn, or at once.
    """
