"""
One direction of an exchange: what the program gave, what the VM let go, what is still held. Pure.

The program's own bytes are kept until they are let go. So a plugin that may not write a body, or cannot read it, never
decides about its bytes, and a plugin that fails open loses none.
"""

from __future__ import annotations

from collections.abc import Collection

from sandboxd.channel import layout
from sandboxd.channel.completions import Effect, decode_map
from sandboxd.channel.errors import ChannelBroken
from sandboxd.channel.pairs import Pair, encode
from sandboxd.client.compiled import Compiled
from sandboxd.client.outcome import Part
from sandboxd.errors import PeerError
from sandboxd.exchange.effects import take_true
from sandboxd.exchange.side import Ask, HeldMap, Names
from sandboxd.policy.model import Section
from sandboxd.policy.redact import NO_CHANGE, HeaderDiff, apply
from sandboxd.policy.write_rules import Reason, Refusal


class TooMuchHeldError(Exception):
    """More is held back than the policy lets a plugin hold."""


class Direction:
    """
    Args:
        names: which direction.
        policy: the plugin's.
        refusals: what the plugin may not do is added to it.
    """

    def __init__(self, names: Names, policy: Compiled, refusals: list[Refusal]) -> None:
        self.names = names
        self.out = Part()
        self._policy = policy
        self._refusals = refusals
        needs = policy.needs
        self._told = names.body_callback in needs.callbacks
        self._readable: bool = getattr(needs, f"{names.word}_body")
        self._writable = self._told and self._readable and policy.write.body
        self._headers: HeldMap | None = None
        self._trailers: HeldMap | None = None
        self._headers_gone = self._trailers_gone = self._trailers_told = False
        self._held = bytearray()
        """The program's own bytes that did not go on yet."""
        self._mixed = False
        """The VM let bytes go and holds others: which ones, only it knows."""
        self._unseen_bytes = 0
        """Of `_held`: those of a message that is with the VM, at the end."""
        self._late_bytes = 0
        """Let go outside the exchange's own events, and not fetched by the program yet."""
        self._out = bytearray()
        """The body that goes on with `out`."""
        self._over = False
        """The VM let the end go."""
        self._body_told = self._ended_in_headers = self._input_over = False
        self._holding = self._headers_held = self._all_stopped = False
        self._behind = 0
        """Kind of the last event that the VM was told of while it stopped all: shown to the plugin behind headers."""

    # --- input ---

    def take_headers(self, pairs: list[Pair], end_of_stream: bool) -> Ask:
        """Headers came. Raises PeerError: not now."""
        if self._headers is not None:
            raise PeerError(f"second {self.names.word} headers")
        self._headers = self._map(pairs, self.names.headers_section)
        self._input_over = self._ended_in_headers = end_of_stream
        return Ask(self.names.headers, encode(self._headers.view), end_of_stream)

    def take_body(self, data: bytes, end_of_stream: bool) -> Ask | None:
        """A piece of the body came; None: the VM is not told. Raises PeerError: not now."""
        self._check_more("body")
        self._held += data
        self._input_over = end_of_stream
        if self._told:
            self._body_told = True
            self._unseen_bytes = len(data)
            self._note_behind(self.names.body)
            # Bytes that it cannot read do not go to the worker: the callback sees a size, and zeros have that as well.
            return Ask(self.names.body, data if self._readable else bytes(len(data)), end_of_stream)
        if self._headers_held and not self._all_stopped:
            self._body_told = True
            return Ask(self.names.body, b"", end_of_stream)  # lets the VM release the headers
        return None

    def take_trailers(self, pairs: list[Pair]) -> Ask | None:
        """Trailers came; None: the VM is not told. Raises PeerError: not now."""
        self._check_more("trailers")
        self._trailers = self._map(pairs, self.names.trailers_section)
        self._input_over = True
        needs, word = self._policy.needs, self.names.word
        callback = self.names.trailers_callback in needs.callbacks
        self._trailers_told = callback or self._holding or self._readable or getattr(needs, f"{word}_trailers")
        if not self._trailers_told:
            return None
        self._note_behind(self.names.trailers)
        return Ask(self.names.trailers, encode(self._trailers.view), False)

    def _note_behind(self, kind: int) -> None:
        if self._all_stopped:
            self._behind = kind

    def _check_more(self, what: str) -> None:
        if self._headers is None:
            raise PeerError(f"{self.names.word} {what} before {self.names.word} headers")
        if self._input_over:
            raise PeerError(f"{self.names.word} {what} after the end of the {self.names.word}")

    def _map(self, pairs: list[Pair], section: Section) -> HeldMap:
        needed = getattr(self._policy.needs, section.value)
        return HeldMap(pairs, self._policy.redactor.view(pairs, section) if needed else [], section)

    # --- what the plugin did ---

    def apply(self, effect: Effect) -> None:
        """
        Note one effect.

        Raises:
            ChannelBroken: its map is malformed, or no honest VM says this now.
            TooMuchHeldError: a changed body is longer than the plugin may make one.
        """
        if effect.kind == self.names.body:
            self._release_body(effect)
            return
        if effect.kind == self.names.headers:
            if self._headers is None or self._headers_gone:
                return
            if effect.flags & layout.FLAG_END_OF_STREAM and not self._ended_in_headers:
                raise ChannelBroken(f"{self.names.word} headers end a message that has a body")
            self.out.headers = apply(self._headers.original, self._changes(self._headers, effect))
            self._headers_gone = True
        elif not self._trailers_gone:
            if self._over or self._unseen_bytes or not (self._headers_gone and self._input_over):
                raise ChannelBroken(f"{self.names.word} trailers before the headers, or before the end")
            trailers = self._trailers or HeldMap([], [], self.names.trailers_section)
            self._release_held()
            self.out.trailers = apply(trailers.original, self._changes(trailers, effect))
            self._trailers_gone = self._over = self.out.ended = True
        if effect.flags & layout.FLAG_END_OF_STREAM:
            self._over = self.out.ended = True

    def _changes(self, held: HeldMap, effect: Effect) -> HeaderDiff:
        if not effect.flags & layout.FLAG_MODIFIED:
            return NO_CHANGE
        wanted = self._policy.redactor.changes(held.original, held.view, decode_map(effect.payload), held.section)
        changes, refusals = self._policy.rules.headers(wanted, held.section)
        self._refusals += refusals
        return changes

    def _release_body(self, effect: Effect) -> None:
        ended = bool(effect.flags & layout.FLAG_END_OF_STREAM)
        if not (self._headers_gone and self._body_told):
            raise ChannelBroken(f"{self.names.word} body before the headers went on, or before there was one")
        if self._over or (ended and (self._unseen_bytes or self._trailers is not None or not self._input_over)):
            raise ChannelBroken(f"{self.names.word} body after its end, or an end that never came")
        self._over = ended
        if not self._told:
            return  # an answer to the empty body; `settle` lets the true one go
        if self._writable:
            refusal = self._policy.rules.body(len(effect.payload))
            if refusal is not None and not effect.flags & layout.FLAG_AS_SUBMITTED:
                self._refusals.append(refusal)
                raise TooMuchHeldError
            self._out += effect.payload
            self._mixed = True
        else:
            true = self._take_seen()
            if self._readable and true != effect.payload:
                self._refusals.append(Refusal(Reason.DENIED, "body"))
            self._out += true
        self.out.ended |= ended

    def _release_held(self) -> None:
        """Let go what the VM has seen of a body that it may not write."""
        if not self._writable:
            self._out += self._take_seen()

    def _take_seen(self) -> bytes:
        """Take what the VM has answered for: a plugin that may not write says when it goes on, and not what."""
        return take_true(self._held, len(self._held) - self._unseen_bytes)

    def set_state(self, state: int) -> None:
        """Note a verdict's state."""
        self._unseen_bytes = 0
        self._headers_held = bool(state & self.names.headers_held)
        self._all_stopped = bool(state & self.names.all_stopped)
        self._holding = self._headers_held or self._all_stopped or bool(state & self.names.paused)

    def late(self, effects: Collection[Effect]) -> None:
        """
        Effects came outside an event of this exchange: what was held has been let go, unless the plugin has paused
        again behind a stop of all iteration (`Names.pauses_again`).

        Raises:
            TooMuchHeldError: the program has not fetched more than a plugin may hold.
        """
        names = self.names
        kinds = {effect.kind for effect in effects}
        if any(kind in kinds for kind in (names.headers, names.body, names.trailers)):
            self._holding = self._all_stopped and names.pauses_again(self._behind, kinds)
            self._headers_held = self._all_stopped = False
        if self._writable:
            self._late_bytes += sum(len(effect.payload) for effect in effects if effect.kind == names.body)
            if self._late_bytes > self._policy.limits.body_buffer_bytes:
                self._refusals.append(Refusal(Reason.TOO_LARGE, "body"))
                raise TooMuchHeldError

    def settle(self) -> None:
        """
        Let go what nothing holds back, after the effects of an event.

        Raises:
            TooMuchHeldError: what is held is more than the policy allows.
        """
        if not self._told and self._headers_gone:
            self._release_held()
            self.out.ended |= self._input_over and self._trailers is None
        elif not self._holding and self._headers_gone:
            self._release_held()
            self._take_seen()
            self._mixed = False
        if self._trailers is not None and self._headers_gone and not (self._trailers_gone or self._trailers_told):
            self._pass_trailers()
        if len(self._held) - self._unseen_bytes > self._policy.limits.body_buffer_bytes:
            raise TooMuchHeldError

    def _pass_trailers(self) -> None:
        assert self._trailers is not None
        self._trailers_gone = True
        self.out.trailers = self._trailers.original
        self.out.ended = True

    # --- without the plugin ---

    @property
    def can_pass_on(self) -> bool:
        """Whether every byte that would have to go on is known."""
        return not (self._mixed and self._held)

    def pass_on(self) -> None:
        """Let all go as it came."""
        self._holding = self._headers_held = self._all_stopped = False
        if self._headers is not None and not self._headers_gone:
            self._headers_gone = True
            self.out.headers = self._headers.original
        self._out += take_true(self._held, None)
        if self._trailers is not None and not self._trailers_gone:
            self._pass_trailers()
        self.out.ended |= self._input_over

    # --- state ---

    def take(self) -> Part:
        """Return what goes on, once."""
        part, self.out = self.out, Part()
        if self._out:
            part.body = bytes(self._out)
            self._out.clear()
        self._late_bytes = 0
        return part

    @property
    def started(self) -> bool:
        """Whether the program was told to send the headers."""
        return self._headers_gone and self.out.headers is None

    @property
    def held(self) -> bool:
        """Whether something is held back."""
        return self._holding or (self._headers is not None and not self._headers_gone)

    @property
    def waiting(self) -> bool:
        """Whether something is held that no further input of this direction can free."""
        return self.held and (self._input_over or self._all_stopped)
