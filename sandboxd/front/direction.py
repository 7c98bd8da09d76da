"""
One direction (request or response) of an HTTP exchange over ext_proc: what Envoy waits for, what the plugin let go,
and which reply carries it. Pure.

The body mode decides. Source for every rule: Envoy's ``processing_mode.proto``, ``external_processor.proto`` and
``source/extensions/filters/http/ext_proc/processor_state.cc``:

* NONE: Envoy holds everything until the headers are answered, and no body comes. A pause is a late answer.
* BUFFERED, BUFFERED_PARTIAL: after the headers are answered Envoy still holds them until the body is answered; the
  body's answer may change them. A pause from headers is an answer without changes.
* STREAMED: the headers leave when they are answered, and the first chunk comes only then. Headers cannot be held until
  the body is seen, and cannot be changed later. A chunk that the plugin keeps is answered with an empty one, its bytes
  go out with a later chunk.
* FULL_DUPLEX_STREAMED: input and output are two independent streams; everything can be held.

``content-length``: Envoy itself takes it away in STREAMED, BUFFERED_PARTIAL and FULL_DUPLEX_STREAMED. In BUFFERED it
rejects a changed body whose length differs from a ``content-length`` that is still there (the client gets a 500), so
the body's answer sets it.
"""

from __future__ import annotations

from sandboxd.channel import layout
from sandboxd.channel.completions import Effect, decode_map
from sandboxd.exchange.side import REQUEST, HeldMap, Names
from sandboxd.front import replies
from sandboxd.front.body import Body
from sandboxd.front.plugin import Plugin
from sandboxd.front.side import (
    BUFFERED,
    BUFFERED_PARTIAL,
    EMPTY_MAP,
    FULL_DUPLEX_STREAMED,
    NONE,
    STREAMED,
    UNKNOWN,
    CannotCarryError,
    Report,
)
from sandboxd.policy.redact import NO_CHANGE, HeaderDiff


class Direction:
    """
    See the module.

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
    body_answered = False
    early_body = False
    """Envoy may send the body before the headers are answered."""
    blind = False
    """The event being answered told the VM of an empty body in place of one that the plugin has no callback for."""
    unread = False
    """The VM is told the size of the body alone: the plugin cannot read the bytes."""
    taken = False
    """The plugin keeps body bytes that the proxy does not have any more."""
    waiting = False
    """Something is held and no further input of this direction can free it."""
    headers = EMPTY_MAP
    trailers = EMPTY_MAP
    clear_route_cache = False
    _header_changes = NO_CHANGE
    _headers_released = False
    _trailer_changes = NO_CHANGE
    _trailers_released = False
    _trailers_answered = False
    _content_length = False
    _kept_bytes = 0

    def __init__(self, names: Names, plugin: Plugin, out: list[bytes], report: Report) -> None:
        self.names = names
        self.plugin = plugin
        self.out = out
        self.report = report
        self.body = Body()
        self._kept: list[tuple[bytes, bool]] = []
        """Bodies that the plugin cannot read, behind headers that it holds (FULL_DUPLEX_STREAMED)."""

    # --- input ---

    def take_headers(self, held: HeldMap, end_of_stream: bool) -> None:
        """Headers came."""
        self.headers = held
        self.headers_seen = True
        self.input_over = self.ended_in_headers = end_of_stream
        self.unanswered = self.names.headers
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
        self.body.came(body, end_of_stream, told and not (readable and self.plugin.policy.write.body))

    def take_trailers(self, held: HeldMap) -> None:
        """Trailers came."""
        self.trailers = held
        self.trailers_seen = True
        self.input_over = True
        self.unanswered = self.names.trailers

    # --- what the plugin did ---

    def apply(self, effect: Effect) -> None:
        """
        Note one effect; `settle` makes the replies.

        Raises:
            ChannelBroken: its map is malformed.
        """
        kind = effect.kind
        if kind == self.names.headers:
            self._release_headers(effect)
        elif kind == self.names.body:
            self._release_body(effect)
        else:
            self._release_trailers(effect)

    def _changes(self, held: HeldMap, effect: Effect) -> HeaderDiff:
        if not effect.flags & layout.FLAG_MODIFIED:
            return NO_CHANGE
        after = decode_map(effect.payload)
        wanted = self.plugin.redactor.changes(held.original, held.view, after, held.section)
        changes, refusals = self.plugin.checked(wanted, held.section)
        for refusal in refusals:
            self.report(f"refused.{refusal.reason}", refusal.name)
        for name in replies.ignored_writes(changes):
            self.report("ext_proc.ignored_write", name.decode("ascii", "replace"))
        return changes

    def _release_headers(self, effect: Effect) -> None:
        changes = self._changes(self.headers, effect)
        self._headers_released = True
        if changes and self.headers_skipped:
            self.report(f"ext_proc.cannot_carry.{self.names.word}_headers_not_sent", "changed")
            return
        self._header_changes = changes
        if not changes:
            return
        named = {name for name, _ in changes.set} | {name for name, _ in changes.added}
        self._content_length = b"content-length" in named or (
            self._content_length and b"content-length" not in changes.removed
        )

    def _release_body(self, effect: Effect) -> None:
        if self.blind:
            return
        if not self.body.go(effect) and not self.unread:
            self.report("refused.denied_by_policy", "body")
        if self.plugin.policy.write.body and not effect.flags & layout.FLAG_AS_SUBMITTED and not self.unread:
            refusal = self.plugin.rules.body(len(effect.payload))
            if refusal is not None:
                self.report(f"refused.{refusal.reason}", refusal.name)
                raise CannotCarryError("body_too_large")

    def _release_trailers(self, effect: Effect) -> None:
        self.body.go_before_trailers()
        if not self.trailers_seen:
            # Envoy's field for new trailers is not implemented, and it refuses an answer to trailers it has not sent.
            self.report(f"ext_proc.cannot_carry.added_{self.names.word}_trailers", "")
            self.body.ended = True
            return
        self._trailer_changes = self._changes(self.trailers, effect)
        self._trailers_released = True

    def set_state(self, state: int) -> None:
        """Note the state of the stream after an event of its own."""
        names = self.names
        self.paused = bool(state & names.paused)
        self.all_stopped = bool(state & names.all_stopped)
        self.headers_held = bool(state & names.headers_held)

    def resumed(self) -> None:
        """Effects came in another stream's event: whatever was held has been let go."""
        self.paused = self.all_stopped = self.headers_held = False

    # --- replies ---

    def settle(self) -> None:
        """
        Make the replies that can be made now.

        Raises:
            CannotCarryError: the mode cannot carry what the plugin did, and the message would be damaged.
        """
        if self.blind:
            self._see_again()
        if self.mode == FULL_DUPLEX_STREAMED:
            self._settle_duplex()
        elif self.unanswered == self.names.headers:
            self._settle_headers()
        elif self.unanswered == self.names.body:
            self._settle_body()
        elif self.unanswered == self.names.trailers:
            self._settle_trailers()

    def _see_again(self) -> None:
        """Put the true bytes in the place of the empty body that the VM was told of."""
        self.blind = False
        if self.paused:
            raise CannotCarryError("unread_body_held")
        self.body.go_as_it_came()

    def _settle_headers(self) -> None:
        if not self._headers_released:
            if self.all_stopped or self.input_over or self.mode == NONE:
                self.waiting = True
                return
            if self.mode in (STREAMED, UNKNOWN):
                self.report(f"ext_proc.cannot_carry.{self.names.word}_headers_held", "")
        self._answer_headers()

    def _answer_headers(self) -> None:
        changes, self._header_changes = self._header_changes, NO_CHANGE
        self.waiting = False
        self.headers_answered = True
        self.unanswered = 0
        clear = self._take_clear(changes)
        if changes or clear:
            kind = self.names.headers
            self.out.append(replies.common(kind, changes=changes or None, clear_route_cache=clear))
        else:
            self.out.append(replies.UNCHANGED[self.names.headers])
        for body, end in self._kept:
            self.out.extend(replies.streamed_body(self.names.body, body, end))
        self._kept.clear()

    def _take_clear(self, changes: HeaderDiff) -> bool:
        """Whether the route is chosen anew: the plugin asked for it, or changed what it was chosen by, as in Envoy."""
        asked, self.clear_route_cache = self.clear_route_cache, False
        return asked or (bool(changes) and self.names is REQUEST)

    def answer_headers_early(self) -> None:
        """The body came before the headers were answered, so they have to go now."""
        self.report(f"ext_proc.cannot_carry.{self.names.word}_headers_held", "")
        self._answer_headers()

    def _settle_body(self) -> None:
        if self.paused and self.input_over:
            self.waiting = True  # Envoy has nothing more to send, so only an event elsewhere can free it
            return
        if self.paused and self.mode in (BUFFERED, BUFFERED_PARTIAL):
            # The plugin waits for more, but Envoy has no second body message, and an answer to trailers cannot carry
            # what it holds.
            raise CannotCarryError("body_held")
        self.waiting = False
        self.unanswered = 0
        self.body_answered = True
        changes = self._late_header_changes()
        clear = self._take_clear(changes)
        unchanged = self.body.as_it_came
        taken = self.body.take()
        body = None if unchanged else taken
        self.taken = self.paused
        if body is not None and self._content_length and self.mode in (BUFFERED, UNKNOWN):
            changes = _with_content_length(changes, len(body))
        if body is None and not changes and not clear:
            self.out.append(replies.UNCHANGED[self.names.body])
        else:
            kind = self.names.body
            self.out.append(replies.common(kind, changes=changes or None, body=body, clear_route_cache=clear))

    def _late_header_changes(self) -> HeaderDiff:
        changes, self._header_changes = self._header_changes, NO_CHANGE
        if changes and self.mode in (STREAMED, UNKNOWN):
            self.report(f"ext_proc.cannot_carry.late_{self.names.word}_headers", _first_name(changes))
            return changes if self.mode == UNKNOWN else NO_CHANGE
        return changes

    def _settle_trailers(self) -> None:
        if any(self.body.out):
            raise CannotCarryError("body_at_trailers")
        if self.paused and not self._trailers_released:
            self.waiting = True
            return
        if self._late_header_changes():
            self.report(f"ext_proc.cannot_carry.late_{self.names.word}_headers", "")
        if self.clear_route_cache:
            self.report("ext_proc.cannot_carry.clear_route_cache", "")
        self.waiting = False
        self.unanswered = 0
        self.body.out.clear()
        self.taken = False
        self.out.append(replies.trailers(self.names.trailers, self._trailer_changes))

    def _settle_duplex(self) -> None:
        self.unanswered = 0
        if self._headers_released and not self.headers_answered:
            self._answer_headers()
        if self.body.out and self.headers_answered:
            ended = self.body.ended and not self.trailers_seen
            self.out.extend(replies.streamed_body(self.names.body, self.body.take(), ended))
        if self._trailers_released and not self._trailers_answered:
            self._trailers_answered = True
            self.out.append(replies.trailers(self.names.trailers, self._trailer_changes))
        self.taken = self.paused and self.body.last is not None
        self.waiting = self.paused and (self.input_over or self.all_stopped)

    # --- without the plugin ---

    def pass_on(self) -> None:
        """Answer what is unanswered as if the plugin were not there. Nothing may be `taken`."""
        self.waiting = self.paused = self.all_stopped = self.headers_held = False
        if self.mode != FULL_DUPLEX_STREAMED:
            if self.unanswered:
                self.headers_answered = True
                self.out.append(replies.UNCHANGED[self.unanswered])
                self.unanswered = 0
            return
        unanswered = self.unanswered
        if self.headers_seen and not self.headers_answered:
            self._answer_headers()
        if unanswered == self.names.body and self.body.last is not None:
            self.out.extend(replies.streamed_body(self.names.body, *self.body.last))
        elif self.trailers_seen and not self._trailers_answered:
            self._trailers_answered = True
            self.out.append(replies.UNCHANGED[self.names.trailers])
        self.unanswered = 0

    def pass_body_by(self, max_kept_bytes: int) -> None:
        """
        Hand on a body that the plugin cannot read, behind its headers.

        Raises:
            CannotCarryError: the plugin holds the headers and too much has come behind them.
        """
        if self.mode != FULL_DUPLEX_STREAMED or self.headers_answered:
            self.pass_on()
            return
        assert self.body.last is not None
        self._kept.append(self.body.last)
        self._kept_bytes += len(self.body.last[0])
        self.unanswered = 0
        self.waiting = self.waiting or self.input_over
        if self._kept_bytes > max_kept_bytes:
            raise CannotCarryError("unread_body_held")

    def discard(self) -> None:
        """Nobody reads replies: forget what would go into them."""
        self.body.out.clear()
        self.unanswered = 0
        self.waiting = self.blind = False
        self.headers_answered = True

    @property
    def can_pass_on(self) -> bool:
        """Whether the proxy, or this object, still has every byte that it would have to send."""
        return not self.taken and not self.body.out

    @property
    def started(self) -> bool:
        """Whether this direction's headers have left the proxy."""
        if self.mode in (BUFFERED, BUFFERED_PARTIAL) and not self.ended_in_headers:
            return self.body_answered
        return self.headers_answered


def _with_content_length(changes: HeaderDiff, length: int) -> HeaderDiff:
    name = b"content-length"
    kept = tuple(entry for entry in changes.set if entry[0] != name)
    added = tuple(entry for entry in changes.added if entry[0] != name)
    removed = tuple(other for other in changes.removed if other != name)
    return HeaderDiff(removed, (*kept, (name, (b"%d" % length,))), added)


def _first_name(changes: HeaderDiff) -> str:
    names = [*changes.removed, *(name for name, _ in changes.set), *(name for name, _ in changes.added)]
    return names[0].decode("ascii", "replace")
