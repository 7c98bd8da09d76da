"""
One direction of an HTTP exchange over ext_proc: what came from the proxy, and what the plugin did with it. Pure.
"""

from __future__ import annotations

from collections.abc import Collection

from sandboxd.channel import layout
from sandboxd.channel.completions import Effect
from sandboxd.channel.errors import ChannelBroken
from sandboxd.exchange.side import HeldMap, Names
from sandboxd.front.body import Body
from sandboxd.front.changes import allowed, has_content_length
from sandboxd.front.plugin import Plugin
from sandboxd.front.side import BUFFERED, EMPTY_MAP, UNKNOWN, CannotCarryError, Report
from sandboxd.policy.redact import NO_CHANGE


class Received:
    """
    See the module; the replies are `direction.Direction`.

    What a direction knows are class attributes until something changes them: most exchanges change few, and making
    an object with thirty fields costs more than the rest of an event.

    Args:
        names: which direction it is.
        plugin: whose filter runs.
        out: replies are appended to it; both directions of an exchange share it.
        report: told of what cannot be carried.
    """

    mode = UNKNOWN
    unanswered = 0
    """Kind of the message that Envoy waits on, 0 for none. Only within an event in FULL_DUPLEX_STREAMED."""
    headers_seen = False
    headers_skipped = False
    """Envoy does not send this direction's headers; the VM was told of empty ones."""
    trailers_seen = False
    input_over = False
    """Nothing more of this direction comes from the proxy."""
    paused = False
    all_stopped = False
    headers_held = False
    ended_in_headers = False
    headers_answered = False
    blind = False
    """The event being answered told the VM of an empty body in place of one that the plugin has no callback for."""
    unread = False
    """The VM is told the size of the body alone: the plugin cannot read the bytes."""
    unseen = False
    """The message that came last is with the VM."""
    _behind = 0
    """Kind of the last event that the VM was told of behind the headers."""
    headers = EMPTY_MAP
    trailers = EMPTY_MAP
    _header_changes = NO_CHANGE
    _headers_released = False
    _trailer_changes = NO_CHANGE
    _trailers_released = False
    _content_length = False

    def __init__(self, names: Names, plugin: Plugin, out: list[bytes], report: Report) -> None:
        self.names = names
        self.plugin = plugin
        self.out = out
        self.report = report
        self.body = Body(names.word)

    # --- input ---

    def take_headers(self, held: HeldMap, end_of_stream: bool) -> None:
        """Headers came."""
        self.headers = held
        self.headers_seen = True
        self.input_over = self.ended_in_headers = end_of_stream
        self.unanswered = self.names.headers
        self.unseen = True
        if self.mode in (BUFFERED, UNKNOWN):
            self._content_length = any(name == b"content-length" for name, _ in held.original)

    def skip_headers(self) -> None:
        """A body or trailers came first: the proxy does not send headers."""
        self.headers_seen = self.headers_skipped = self.headers_answered = True
        self.report(f"ext_proc.cannot_carry.{self.names.word}_headers_not_sent", "")

    def take_body(self, body: bytes, end_of_stream: bool, *, told: bool, readable: bool) -> None:
        """A piece of the body came; the VM is ``told`` of its bytes if they are ``readable``, else of its size."""
        self.input_over = end_of_stream
        self.unanswered = self.names.body
        self.unread = not readable
        if told:
            self._behind = self.names.body
            self.unseen = True
        self.body.came(body, end_of_stream, told, told and not (readable and self.plugin.policy.write.body))

    def take_trailers(self, held: HeldMap) -> None:
        """Trailers came."""
        self.trailers = held
        self.trailers_seen = True
        self.input_over = True
        self.unanswered = self._behind = self.names.trailers
        self.unseen = True

    # --- what the plugin did ---

    def apply(self, effect: Effect) -> None:
        """
        Note one effect; `settle` makes the replies.

        Raises:
            ChannelBroken: its map is malformed, or it lets go what the VM was not told of.
            CannotCarryError: the policy does not let it.
        """
        kind = effect.kind
        if kind == self.names.headers:
            self._release_headers(effect)
        elif kind == self.names.body:
            self._release_body(effect)
        else:
            self._release_trailers(effect)

    def _release_headers(self, effect: Effect) -> None:
        if self._headers_released:
            return
        if not self.headers_seen:
            raise ChannelBroken(f"{self.names.word} headers before they were submitted")
        changes = allowed(self.plugin, self.report, self.headers, effect)
        self._headers_released = True
        if changes and self.headers_skipped:
            self.report(f"ext_proc.cannot_carry.{self.names.word}_headers_not_sent", "changed")
            return
        self._header_changes = changes
        if changes:
            self._content_length = has_content_length(self._content_length, changes)

    def _release_body(self, effect: Effect) -> None:
        if self.blind:
            return
        unseen = self.unseen and self.unanswered == self.names.body
        if not self.body.go(effect, unseen) and not self.unread:
            self.report("refused.denied_by_policy", "body")
        if self.plugin.policy.write.body and not effect.flags & layout.FLAG_AS_SUBMITTED and not self.unread:
            refusal = self.plugin.rules.body(len(effect.payload))
            if refusal is not None:
                self.report(f"refused.{refusal.reason}", refusal.name)
                raise CannotCarryError("body_too_large")

    def _release_trailers(self, effect: Effect) -> None:
        if self._trailers_released:
            return
        if self.unseen or not self.input_over:
            raise ChannelBroken(f"{self.names.word} trailers before the end of the {self.names.word} was submitted")
        self._trailers_released = True
        self.body.go_before_trailers()
        if not self.trailers_seen:
            # Envoy's field for new trailers is not implemented, and it refuses an answer to trailers it has not sent.
            self.report(f"ext_proc.cannot_carry.added_{self.names.word}_trailers", "")
            self.body.ended = True
            return
        self._trailer_changes = allowed(self.plugin, self.report, self.trailers, effect)

    def set_state(self, state: int) -> None:
        """Note the state of the stream after an event of its own."""
        names = self.names
        self.paused = bool(state & names.paused)
        self.all_stopped = bool(state & names.all_stopped)
        self.headers_held = bool(state & names.headers_held)

    def resumed(self, kinds: Collection[int]) -> None:
        """
        Effects of these kinds arose outside the exchange's own events.

        What was held has been let go if any are of this direction, unless the plugin has paused again behind a stop of
        all iteration (`Names.pauses_again`).
        """
        names = self.names
        if names.headers in kinds or names.body in kinds or names.trailers in kinds:
            self.paused = self.all_stopped and names.pauses_again(self._behind, kinds)
            self.all_stopped = self.headers_held = False
