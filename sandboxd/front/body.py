"""
The body of one direction on its way through a plugin: what the VM was told, what it let go, what is still to be sent.
Pure.
"""

from __future__ import annotations

from sandboxd.channel import layout
from sandboxd.channel.completions import Effect
from sandboxd.channel.errors import ChannelBroken
from sandboxd.exchange.effects import take_true


class Body:
    """
    Most exchanges have no body; what is not touched is a class attribute.

    hostcore lets a body go as a whole, all that it was told of up to then, and then holds nothing until it is told of
    more. So a plugin that may not write bodies, or cannot read them, says when a body goes on and not which: the true
    bytes are kept here until then.

    Args:
        word: the direction, for errors.
    """

    last: tuple[bytes, bool] | None = None
    """The message that came last: bytes and end of stream."""
    ended = False
    """The plugin let the end of the body go."""
    unchanged = False
    """`out` is exactly the last message."""
    owed = False
    """The VM was told of bytes, or of an end, that it has not let go."""
    older = False
    """So it was when the last message came."""
    _true: bytearray | None = None
    """Of the true bytes those that came before the last message; None if none are kept."""
    _last_kept = False
    """The last message is one of them. Nearly always it alone: so it is not copied."""

    def __init__(self, word: str) -> None:
        self.out: list[bytes] = []
        """Bytes let go and not sent yet."""
        self._word = word

    def came(self, data: bytes, end_of_stream: bool, told: bool, keep_true: bool) -> None:
        """Note a message from the proxy."""
        if self._last_kept:
            assert self.last is not None
            assert self._true is not None
            self._true += self.last[0]
            self._last_kept = False
        self.last = (data, end_of_stream)
        self.unchanged = False
        if told:
            self.older, self.owed = self.owed, True
        if keep_true:
            if self._true is None:
                self._true = bytearray()
            self._last_kept = True

    def go(self, effect: Effect, unseen: bool) -> bool:
        """
        Let the bytes of an effect go; False if they are not what came and had to be replaced by that.

        Args:
            effect: of a body.
            unseen: the VM has not met the last message yet: older ones are meant.

        Raises:
            ChannelBroken: the VM was told of no bytes that these could stand for, or of no end.
        """
        if not (self.older if unseen else self.owed):
            if effect.payload:
                raise ChannelBroken(f"{self._word} body without one that was submitted")
            return True  # without bytes it changes nothing
        end = bool(effect.flags & layout.FLAG_END_OF_STREAM)
        if end and (unseen or self.last is None or not self.last[1]):
            raise ChannelBroken(f"end of the {self._word} body before it was submitted")
        self.older, self.owed = False, unseen
        if self._true is not None:
            return self._go_true(effect, unseen)
        self.ended = end
        self.unchanged = bool(effect.flags & layout.FLAG_AS_SUBMITTED) and not self.out
        self.out.append(effect.payload)
        return True

    def _go_true(self, effect: Effect, unseen: bool) -> bool:
        assert self.last is not None
        self.ended = self.last[1] and not unseen
        self.unchanged = self._last_kept and not (unseen or self._true or self.out)
        true = self._take_true(unseen)
        self.out.append(true)
        return true == effect.payload

    def _take_true(self, unseen: bool) -> bytes:
        """Take what is kept, without the last message if that is ``unseen``."""
        assert self._true is not None
        last = b""
        if self._last_kept and not unseen:
            assert self.last is not None
            last, self._last_kept = self.last[0], False
        return take_true(self._true, None) + last if self._true else last

    def go_before_trailers(self) -> None:
        """Let go what was kept and the plugin left behind."""
        self.older = self.owed = False
        if self.kept_bytes:
            self.out.append(self._take_true(False))

    def go_as_it_came(self) -> None:
        """Let the last message go."""
        assert self.last is not None
        self.out.append(self.last[0])
        self.ended = self.last[1]
        self.unchanged = True

    @property
    def kept_bytes(self) -> int:
        """How many true bytes are kept."""
        last = len(self.last[0]) if self._last_kept and self.last is not None else 0
        return len(self._true or b"") + last

    @property
    def as_it_came(self) -> bool:
        """Whether what is to be sent is the last message and nothing else."""
        return self.unchanged and len(self.out) == 1

    def take(self) -> bytes:
        """Return what is to be sent, once."""
        out = b"".join(self.out)
        self.out.clear()
        return out

    def discard(self, max_kept_bytes: int) -> None:
        """Forget what would be sent; nobody misses true bytes then, but that many are kept to compare with."""
        self.out.clear()
        if self._true is not None and self.kept_bytes > max_kept_bytes:
            self._true.clear()
            self._last_kept = False
