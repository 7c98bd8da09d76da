"""
The body of one direction on its way through a plugin: what the VM was told, what it let go, what is still to be sent.
Pure.
"""

from __future__ import annotations

from sandboxd.channel import layout
from sandboxd.channel.completions import Effect
from sandboxd.exchange.effects import take_true


class Body:
    """
    Most exchanges have no body; what is not touched is a class attribute.

    A plugin that may not write bodies, or cannot read them, says how much of a body goes on and not what: then the
    true bytes are kept here (`keep_true`) until it lets them go.
    """

    last: tuple[bytes, bool] | None = None
    """The message that came last: bytes and end of stream."""
    ended = False
    """The plugin let the end of the body go."""
    unchanged = False
    """`out` is exactly the last message."""
    _true: bytearray | None = None

    def __init__(self) -> None:
        self.out: list[bytes] = []
        """Bytes let go and not sent yet."""

    def came(self, data: bytes, end_of_stream: bool, keep_true: bool) -> None:
        """Note a message from the proxy."""
        self.last = (data, end_of_stream)
        if keep_true:
            if self._true is None:
                self._true = bytearray()
            self._true += data

    def go(self, effect: Effect) -> bool:
        """Let the bytes of an effect go; False if they are not what came and had to be replaced by that."""
        as_submitted = bool(effect.flags & layout.FLAG_AS_SUBMITTED)
        self.unchanged = as_submitted and not self.out
        self.ended |= bool(effect.flags & layout.FLAG_END_OF_STREAM)
        if self._true is None:
            self.out.append(effect.payload)
            return True
        true = take_true(self._true, None if self.ended else len(effect.payload))
        self.out.append(true)
        return true == effect.payload

    def go_before_trailers(self) -> None:
        """Let go what was kept and the plugin left behind."""
        if self._true:
            self.out.append(take_true(self._true, None))

    def go_as_it_came(self) -> None:
        """Let the last message go."""
        assert self.last is not None
        self.out.append(self.last[0])
        self.ended = self.last[1]
        self.unchanged = True

    @property
    def as_it_came(self) -> bool:
        """Whether what is to be sent is the last message and nothing else."""
        return self.unchanged and len(self.out) == 1

    def take(self) -> bytes:
        """Return what is to be sent, once."""
        out = b"".join(self.out)
        self.out.clear()
        return out
