"""
One direction of an exchange: what the program gave, what the VM let go, what is still held. Pure.

The program's own bytes are kept until they are let go. So a plugin that may not write a body, or cannot read it, never
decides about its bytes, and a plugin that fails open loses none.
"""

from __future__ import annotations

from sandboxd.channel import layout
from sandboxd.channel.completions import Effect, decode_map
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
        self._input_over = False
        self._holding = self._headers_held = self._all_stopped = False

    # --- input ---

    def take_headers(self, pairs: list[Pair], end_of_stream: bool) -> Ask:
        """Headers came. Raises PeerError: not now."""
        if self._headers is not None:
            raise PeerError(f"second {self.names.word} headers")
        self._headers = self._map(pairs, self.names.headers_section)
        self._input_over = end_of_stream
        return Ask(self.names.headers, encode(self._headers.view), end_of_stream)

    def take_body(self, data: bytes, end_of_stream: bool) -> Ask | None:
        """A piece of the body came; None: the VM is not told. Raises PeerError: not now."""
        self._check_more("body")
        self._held += data
        self._input_over = end_of_stream
        if self._told:
            # Bytes that it cannot read do not go to the worker: the callback sees a size, and zeros have that as well.
            return Ask(self.names.body, data if self._readable else bytes(len(data)), end_of_stream)
        if self._headers_held and not self._all_stopped:
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
        return Ask(self.names.trailers, encode(self._trailers.view), False) if self._trailers_told else None

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
            ChannelBroken: its map is malformed.
            TooMuchHeldError: a changed body is longer than the plugin may make one.
        """
        if effect.kind == self.names.body:
            self._release_body(effect)
            return
        if effect.kind == self.names.headers:
            if self._headers is None or self._headers_gone:
                return
            self.out.headers = apply(self._headers.original, self._changes(self._headers, effect))
            self._headers_gone = True
        elif not self._trailers_gone:
            trailers = self._trailers or HeldMap([], [], self.names.trailers_section)
            self._release_held()
            self.out.trailers = apply(trailers.original, self._changes(trailers, effect))
            self._trailers_gone = self.out.ended = True
        if effect.flags & layout.FLAG_END_OF_STREAM:
            self.out.ended = True

    def _changes(self, held: HeldMap, effect: Effect) -> HeaderDiff:
        if not effect.flags & layout.FLAG_MODIFIED:
            return NO_CHANGE
        wanted = self._policy.redactor.changes(held.original, held.view, decode_map(effect.payload), held.section)
        changes, refusals = self._policy.rules.headers(wanted, held.section)
        self._refusals += refusals
        return changes

    def _release_body(self, effect: Effect) -> None:
        if not self._told:
            return  # an answer to the empty body; `settle` lets the true one go
        ended = bool(effect.flags & layout.FLAG_END_OF_STREAM)
        if self._writable:
            refusal = self._policy.rules.body(len(effect.payload))
            if refusal is not None and not effect.flags & layout.FLAG_AS_SUBMITTED:
                self._refusals.append(refusal)
                raise TooMuchHeldError
            self.out.body += effect.payload
            self._mixed = True
        else:
            true = take_true(self._held, None if ended else len(effect.payload))
            if self._readable and true != effect.payload:
                self._refusals.append(Refusal(Reason.DENIED, "body"))
            self.out.body += true
        self.out.ended |= ended

    def _release_held(self) -> None:
        if not self._writable:
            self.out.body += bytes(self._held)
            self._held.clear()

    def set_state(self, state: int) -> None:
        """Note a verdict's state."""
        self._headers_held = bool(state & self.names.headers_held)
        self._all_stopped = bool(state & self.names.all_stopped)
        self._holding = self._headers_held or self._all_stopped or bool(state & self.names.paused)

    def resumed(self) -> None:
        """Effects came outside an event of this stream: whatever was held has been let go."""
        self._holding = self._headers_held = self._all_stopped = False

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
            self._held.clear()
            self._mixed = False
        if self._trailers is not None and not self._trailers_gone and not self._trailers_told:
            self._pass_trailers()
        if len(self._held) > self._policy.limits.body_buffer_bytes:
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
        self.resumed()
        if self._headers is not None and not self._headers_gone:
            self._headers_gone = True
            self.out.headers = self._headers.original
        self.out.body += bytes(self._held)
        self._held.clear()
        if self._trailers is not None and not self._trailers_gone:
            self._pass_trailers()
        self.out.ended |= self._input_over

    # --- state ---

    def take(self) -> Part:
        """Return what goes on, once."""
        part, self.out = self.out, Part()
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
