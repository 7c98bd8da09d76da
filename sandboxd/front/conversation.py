"""
What `stream.ProcessStream` needs of the pure half of a stream (an HTTP exchange or a TCP connection), and of its kind.

Messages of the proxy become events for the VM (`sandboxd.exchange.side.Ask`), what comes of them becomes replies,
without any I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from sandboxd.channel.completions import Effect
from sandboxd.exchange.side import Ask
from sandboxd.front.plugin import Plugin
from sandboxd.front.side import Report
from sandboxd.policy.failure import Cause


class Conversation(Protocol):
    """`ext_proc_codec.Exchange` and `network_codec.NetworkExchange`."""

    plugin: Plugin
    replies: list[bytes]
    """``ProcessingResponse`` messages to be sent, in order."""
    finished: bool
    """Nothing more is sent after `replies`."""
    attributes: bytes
    """Encoded properties that came with the last message."""

    @property
    def observing(self) -> bool:
        """Whether nobody reads replies."""

    @property
    def bodiless(self) -> bool:
        """Whether the proxy sends no bodies, as far as it has said."""

    @property
    def waiting(self) -> bool:
        """Whether something is held that only time, or another exchange, can free."""

    @property
    def held(self) -> bool:
        """Whether the plugin holds something, which is lost with its VM."""

    @property
    def at_last(self) -> bool:
        """Whether no message can follow if the response headers are the last one."""

    @property
    def pause_s(self) -> float:
        """How long it may wait from now on."""

    def receive(self, message: Any) -> list[Ask]:
        """Take one message and return the events it makes; raises PeerError."""

    def answer(self, ask: Ask, effects: Iterable[Effect], state: int) -> None:
        """Take what came of an event; raises ChannelBroken."""

    def late(self, effects: Iterable[Effect]) -> None:
        """Take effects that arose in an event of another stream, or in none; raises ChannelBroken."""

    def pause_over(self) -> bool:
        """The time of a pause is over; False: that is a failure."""

    def fail(self, cause: Cause) -> None:
        """The plugin failed: do what the policy says."""

    def end(self) -> list[Ask]:
        """It is over; returns what the VM has to be told beside that."""


Make: TypeAlias = Callable[[Plugin, Report], Conversation]
"""Makes one for a plugin, with what it reports to."""


@dataclass(frozen=True, slots=True)
class Options:
    """What kind of stream it is, and what its operator has said of it."""

    parse: Callable[[bytes], Any]
    """Makes a ``ProcessingRequest`` of a message; raises DecodeError."""
    make: Make
    """Makes what the stream is about."""
    ends_early: bool = False
    """The response headers are the last message that the proxy sends: answer them, and the stream is over."""
