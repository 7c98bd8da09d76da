"""
One direction of a TCP connection on its way through a plugin. Pure.

Envoy takes the bytes of a message out of its own buffer when it sends them, and counts its messages against the
replies that bring bytes back, also empty ones: as long as one is missing it does not close the connection, and one too
many leaves it open for ever. So each message is owed exactly one reply (`NetworkSide.owed`).
"""

from __future__ import annotations

from dataclasses import dataclass

from sandboxd.channel import layout
from sandboxd.channel.completions import Effect
from sandboxd.channel.errors import ChannelBroken
from sandboxd.front import wire
from sandboxd.front.plugin import Plugin
from sandboxd.front.side import CannotCarryError, Report

_UNMODIFIED = wire.number_field(3, 1)
_MODIFIED = wire.number_field(3, 2)
_END = wire.flag(2)


@dataclass(frozen=True, slots=True)
class NetworkNames:
    """What is different between the two directions."""

    word: str
    field: int
    """Of ``ProcessingResponse``."""
    data: int
    """Kind of its events and effects."""
    callback: str
    paused: int
    all_stopped: int


DOWNSTREAM = NetworkNames(
    "downstream",
    1,
    layout.DOWNSTREAM_DATA,
    "proxy_on_downstream_data",
    layout.STATE_REQUEST_PAUSED,
    layout.STATE_REQUEST_ALL_STOPPED,
)
UPSTREAM = NetworkNames(
    "upstream",
    2,
    layout.UPSTREAM_DATA,
    "proxy_on_upstream_data",
    layout.STATE_RESPONSE_PAUSED,
    layout.STATE_RESPONSE_ALL_STOPPED,
)


class NetworkSide:
    """
    Args:
        names: which direction.
        plugin: whose filter it runs.
        readable: whether the plugin can read these bytes.
        replies: where finished messages go.
        report: told of what deserves a counter and a log line.
    """

    __slots__ = (
        "_ended",
        "_kept",
        "_out",
        "_out_bytes",
        "_plugin",
        "_report",
        "_unchanged",
        "_unseen",
        "_with_vm",
        "_withheld",
        "end_sent",
        "held",
        "input_over",
        "last",
        "names",
        "owed",
        "owed_since",
        "readable",
        "replies",
        "told",
    )

    def __init__(
        self, names: NetworkNames, plugin: Plugin, readable: bool, replies: list[bytes], report: Report
    ) -> None:
        self.names = names
        self.readable = readable
        self.replies = replies
        self.told = names.callback in plugin.needs.callbacks
        self.owed = 0
        """Messages of the proxy without a reply."""
        self.owed_since = 0.0
        """When the last of them came; monotonic seconds."""
        self.held = False
        """The plugin keeps bytes, or has stopped the direction."""
        self.input_over = False
        self.end_sent = False
        self.last: tuple[bytes, bool] = (b"", False)
        """The message that came last: bytes and end of stream."""
        self._plugin = plugin
        self._report = report
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._ended = False
        self._unchanged = False
        self._with_vm = False
        """The VM was shown a message whose bytes it has not let go yet."""
        self._withheld = False
        """So it was when the last message came."""
        self._unseen = False
        """The message that came last has no verdict yet, so its reply is not to be used for anything else."""
        # Who may not read or not write says when bytes go on, not which: the true ones stay here.
        writable = readable and plugin.policy.write.body
        self._kept: bytearray | None = None if writable else bytearray()

    # --- from the proxy ---

    def came(self, data: bytes, end_of_stream: bool, now: float) -> bytes:
        """
        Take a message; returns what the VM may see of it.

        Raises:
            CannotCarryError: the plugin keeps more than it may.
        """
        self._withheld, self._with_vm = self._with_vm, True
        self.input_over = end_of_stream
        self.last = (data, end_of_stream)
        self.owed += 1
        self.owed_since = now
        self._unseen = True
        if self._kept is not None:
            # A worker that says it holds nothing, and yet lets nothing go, must not fill our memory.
            held = self.held or self._kept
            if held and len(self._kept) + len(data) > self._plugin.policy.limits.body_buffer_bytes:
                raise CannotCarryError("data_held")
            self._kept += data
        # Bytes that it cannot read do not go to the worker: the callback sees a size, and zeros have that as well.
        return data if self.readable else bytes(len(data))

    def seen(self) -> None:
        """The event of the message that came last has its verdict."""
        self._unseen = False

    def pass_by(self) -> None:
        """Let go the message that came last, without the plugin."""
        self._unseen = False
        if self._kept is not None:
            self._let_go(bytes(self._kept))
            self._kept.clear()
        else:
            self._let_go(self.last[0])
        self._unchanged = True
        self._ended = self.input_over
        self.held = self._with_vm = False

    @property
    def unconcerned(self) -> bool:
        """Whether the plugin has no business with the bytes of this direction, as it stands."""
        return not (self.told or self.held or self._withheld)

    @property
    def can_pass_by(self) -> bool:
        """Whether all bytes that are not passed on yet are here, and the proxy waits for them."""
        if self._kept is not None:
            return self.owed > 0 or (not self._kept and self._ended == self.input_over)
        return not self._with_vm or (self.owed > 0 and not self._withheld)

    # --- from the VM ---

    def go(self, effect: Effect) -> None:
        """
        Let the bytes of an effect go on.

        Raises:
            ChannelBroken: no honest worker says this.
            CannotCarryError: the policy does not let it.
        """
        end = bool(effect.flags & layout.FLAG_END_OF_STREAM)
        if self._ended or (end and not self.input_over):
            raise ChannelBroken(f"{self.names.word} data after their end, or an end that never came")
        self._ended = end
        # What comes late, before a verdict, is of older bytes alone: the plugin has yet to see the last.
        self._with_vm, self._withheld = self._unseen, False
        self._unchanged = bool(effect.flags & layout.FLAG_AS_SUBMITTED) and not self._out
        if self._kept is None:
            if not effect.flags & layout.FLAG_AS_SUBMITTED:
                self._check_size(len(effect.payload))
            if self._unseen:
                self._check_early(len(effect.payload))
            self._let_go(effect.payload)
            return
        gone = len(self._kept) - (len(self.last[0]) if self._unseen else 0)
        true = bytes(self._kept[:gone])
        del self._kept[:gone]
        if self.readable and effect.payload != true:
            self._report("refused.denied_by_policy", "data")
        self._let_go(true)

    def _check_size(self, size: int) -> None:
        refusal = self._plugin.rules.body(size)
        if refusal is not None:
            self._report(f"refused.{refusal.reason}", refusal.name)
            raise CannotCarryError("data_too_large")

    def _check_early(self, size: int) -> None:
        """Of what goes on with the next verdict only so much is kept as an honest VM can have held."""
        if self._out_bytes + size > self._plugin.policy.limits.body_buffer_bytes:
            raise CannotCarryError("data_held")

    def _let_go(self, data: bytes) -> None:
        if data or not self._out:
            self._out.append(data)
            self._out_bytes += len(data)

    def _take(self) -> bytes:
        data = b"".join(self._out)
        self._out.clear()
        self._out_bytes = 0
        return data

    # --- to the proxy ---

    @property
    def waiting(self) -> bool:
        """Whether the proxy waits for a reply that only a resume, or more data, brings, and no verdict will."""
        return self.owed > 0 and self.held and not self._unseen

    def settle(self) -> None:
        """
        Write the replies that can be written now; the one of a message without a verdict is left for that.

        Raises:
            CannotCarryError: bytes go on, and the proxy waits for none.
        """
        free = self.owed - self._unseen
        if self._out or (self._ended and not self.end_sent):
            if free:
                self._answer_empty(free - 1)
                self._answer(self._take())
            elif not self._unseen:
                self._take()
                raise CannotCarryError("late_data")
        elif not self.held:
            self._with_vm = self._unseen
            self._answer_empty(free)
        elif free > 1:
            self._answer_empty(free - 1)

    def park(self) -> None:
        """The proxy has waited long enough: it gets an empty reply, what is held stays held."""
        self._answer_empty(self.owed)

    def _answer(self, data: bytes) -> None:
        self.owed -= 1
        end = self._ended and not self.end_sent
        self.end_sent |= end
        message = (wire.field(1, data) if data else b"") + (_END if end else b"")
        same = self._unchanged and data == self.last[0]
        self.replies.append(wire.field(self.names.field, message) + (_UNMODIFIED if same else _MODIFIED))
        if not self.owed:
            self.last = (b"", self.input_over)

    def _answer_empty(self, count: int) -> None:
        for _ in range(count):
            self.owed -= 1
            self.replies.append(wire.field(self.names.field, b"") + _MODIFIED)

    def drop(self) -> None:
        """The connection is over."""
        self._take()
        if self._kept is not None:
            self._kept.clear()
        self.owed = 0
        self.held = self._unseen = False
