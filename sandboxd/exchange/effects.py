"""Whose an effect is, and which bytes it lets go. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from sandboxd.channel.completions import Effect
from sandboxd.policy.failure import Cause


class Stream(Protocol):
    """What a channel tells the streams that use it."""

    def late(self, effects: list[Effect]) -> None:
        """Effects on this stream arose outside its own events."""

    def lost(self, cause: Cause) -> None:
        """The VM that had this stream is gone."""


class LateEffects:
    """
    Effects that arose outside their stream's own events, on their way to it, in the order of the VM.

    A stream is told in the loop's next turn, since it may be in the middle of its own now. A verdict that it waits for
    comes then too, behind them, or at once; then what came before that verdict comes at once as well.

    Args:
        call_soon: the loop's.
        streams: those of the channel, by number.
    """

    def __init__(self, call_soon: Callable[..., Any], streams: Mapping[int, Stream]) -> None:
        self._call_soon = call_soon
        self._streams = streams
        self._batches: dict[int, list[Effect]] = {}

    def add(self, effect: Effect) -> None:
        """Take the next one."""
        batch = self._batches.get(effect.stream_id)
        if batch is None:
            batch = self._batches[effect.stream_id] = []
            self._call_soon(self._deliver, effect.stream_id, batch)
        batch.append(effect)

    def verdict(self, stream_id: int, at_once: bool) -> None:
        """A verdict of the stream is handed out; what comes from here on is later than that."""
        batch = self._batches.pop(stream_id, None)
        if batch and at_once:
            self._deliver(stream_id, batch)

    def _deliver(self, stream_id: int, batch: list[Effect]) -> None:
        if self._batches.get(stream_id) is batch:
            del self._batches[stream_id]
        effects, stream = batch[:], self._streams.get(stream_id)
        batch.clear()
        if effects and stream is not None:
            stream.late(effects)


def take_true(kept: bytearray, length: int | None) -> bytes:
    """
    Take the true bytes in the place of those of a plugin that may not write, or cannot read, them.

    Args:
        kept: what came and was not let go yet; what is returned is removed from it.
        length: how many of them go on; None: all.
    """
    true = bytes(kept[:length])
    del kept[:length]
    return true
