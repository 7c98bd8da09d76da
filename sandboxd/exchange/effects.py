"""Whose an effect is, and which bytes it lets go. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from sandboxd.channel.completions import Effect
from sandboxd.policy.failure import Cause


class Stream(Protocol):
    """What a channel tells the streams that use it."""

    def late(self, effects: list[Effect]) -> None:
        """Effects on this stream arose outside its own events."""

    def lost(self, cause: Cause) -> None:
        """The VM that had this stream is gone."""


def by_stream(effects: Iterable[Effect], own: int) -> tuple[list[Effect], dict[int, list[Effect]]]:
    """Return the effects on the stream ``own``, and those on others by their stream; the order within each stays."""
    others: dict[int, list[Effect]] = {}
    for effect in effects:
        others.setdefault(effect.stream_id, []).append(effect)
    return others.pop(own, []), others


def take_true(kept: bytearray, length: int | None) -> bytes:
    """
    Take the true bytes in the place of those of a plugin that may not write, or cannot read, them.

    Args:
        kept: what came and was not let go yet; what is returned is removed from it.
        length: how many bytes the plugin let go; None: the rest.
    """
    true = bytes(kept[:length])
    del kept[:length]
    return true
