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

from sandboxd.exchange.side import REQUEST
from sandboxd.front import replies
from sandboxd.front.changes import first_name, with_content_length
from sandboxd.front.received import Received
from sandboxd.front.side import (
    BUFFERED,
    BUFFERED_PARTIAL,
    FULL_DUPLEX_STREAMED,
    NONE,
    STREAMED,
    UNKNOWN,
    CannotCarryError,
)
from sandboxd.policy.redact import NO_CHANGE, HeaderDiff


class Direction(Received):
    """See the module, and `Received`."""

    early_body = False
    """Envoy may send the body before the headers are answered."""
    taken = False
    """The plugin keeps body bytes that the proxy does not have any more."""
    waiting = False
    """Something is held and no further input of this direction can free it."""
    clear_route_cache = False
    _body_answered = False
    _trailers_answered = False
    _kept: list[tuple[bytes, bool]] | None = None
    """Bodies that the plugin cannot read, behind headers that it holds (FULL_DUPLEX_STREAMED)."""
    _kept_bytes = 0

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
        if self._kept:
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

    def _holds(self) -> bool:
        """
        Whether the plugin holds something. A body that the VM does not let go is held, whatever its state says.

        Raises:
            CannotCarryError: it is more than the plugin may hold.
        """
        if self.body.owed and self.body.kept_bytes > self.plugin.policy.limits.body_buffer_bytes:
            raise CannotCarryError("body_held")
        return self.paused or self.body.owed

    def _settle_body(self) -> None:
        held = self._holds()
        if held and self.input_over:
            self.waiting = True  # Envoy has nothing more to send, so only an event elsewhere can free it
            return
        if held and self.mode in (BUFFERED, BUFFERED_PARTIAL):
            # The plugin waits for more, but Envoy has no second body message, and an answer to trailers cannot carry
            # what it holds.
            raise CannotCarryError("body_held")
        self.waiting = False
        self.unanswered = 0
        self._body_answered = True
        changes = self._late_header_changes()
        clear = self._take_clear(changes)
        unchanged = self.body.as_it_came
        taken = self.body.take()
        body = None if unchanged else taken
        self.taken = held
        if body is not None and self._content_length and self.mode in (BUFFERED, UNKNOWN):
            changes = with_content_length(changes, len(body))
        if body is None and not changes and not clear:
            self.out.append(replies.UNCHANGED[self.names.body])
        else:
            kind = self.names.body
            self.out.append(replies.common(kind, changes=changes or None, body=body, clear_route_cache=clear))

    def _late_header_changes(self) -> HeaderDiff:
        changes, self._header_changes = self._header_changes, NO_CHANGE
        if changes and self.mode in (STREAMED, UNKNOWN):
            self.report(f"ext_proc.cannot_carry.late_{self.names.word}_headers", first_name(changes))
            return changes if self.mode == UNKNOWN else NO_CHANGE
        return changes

    def _settle_trailers(self) -> None:
        if any(self.body.out):
            raise CannotCarryError("body_at_trailers")
        if not self._trailers_released and self._holds():
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
        if self._trailers_released and self.trailers_seen and not self._trailers_answered:
            self._trailers_answered = True
            self.out.append(replies.trailers(self.names.trailers, self._trailer_changes))
        held = self._holds()
        self.taken = held and self.body.last is not None
        self.waiting = (held or self._owes()) and (self.input_over or self.all_stopped)

    def _owes(self) -> bool:
        """Whether the VM has met all, and neither lets all go nor says that it holds something. No honest one does."""
        if self.unseen:
            return False
        if self.trailers_seen:
            return not self._trailers_released
        end_came = self.body.last is not None and self.body.last[1]
        return not self._headers_released or (end_came and not self.body.ended)

    # --- without the plugin ---

    def pass_on(self) -> None:
        """Answer what is unanswered as if the plugin were not there. Nothing may be `taken`."""
        self.waiting = self.paused = self.all_stopped = self.headers_held = self.unseen = False
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
        if self._kept is None:
            self._kept = []
        self._kept.append(self.body.last)
        self._kept_bytes += len(self.body.last[0])
        self.unanswered = 0
        self.waiting = self.waiting or self.input_over
        if self._kept_bytes > max_kept_bytes:
            raise CannotCarryError("unread_body_held")

    def discard(self) -> None:
        """Nobody reads replies: forget what would go into them."""
        self.body.discard(self.plugin.policy.limits.body_buffer_bytes)
        self.unanswered = 0
        self.waiting = self.blind = False
        self.headers_answered = True

    @property
    def can_pass_on(self) -> bool:
        """Whether the proxy, or this object, still has every byte that it would have to send."""
        return not (self.taken or self.body.older or self.body.out)

    @property
    def held(self) -> bool:
        """Whether the plugin holds something, as far as its verdicts tell."""
        return self.waiting or self.paused or self.taken

    @property
    def holds_body(self) -> bool:
        """Whether bytes of the body are still to go: the plugin has them, or no message has carried them yet."""
        return self.body.owed or bool(self.body.out)

    @property
    def started(self) -> bool:
        """Whether this direction's headers have left the proxy."""
        if self.mode in (BUFFERED, BUFFERED_PARTIAL) and not self.ended_in_headers:
            return self._body_answered
        return self.headers_answered
