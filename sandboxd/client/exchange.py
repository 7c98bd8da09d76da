"""One HTTP exchange through a plugin, without any I/O: events in, outcomes out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from sandboxd import limits
from sandboxd.channel import layout
from sandboxd.channel.completions import Effect, decode_map, parse_local_response
from sandboxd.client.compiled import Compiled
from sandboxd.client.direction import Direction, TooMuchHeldError
from sandboxd.client.outcome import Outcome
from sandboxd.errors import PeerError
from sandboxd.exchange.side import PHASES, REQUEST, RESPONSE, Ask
from sandboxd.policy.failure import ActionKind, Cause, Phase, decide
from sandboxd.policy.model import OnFailure
from sandboxd.policy.write_rules import LocalResponse, Reason, Refusal


class Exchange:
    """
    Args:
        policy: the plugin's.
    """

    def __init__(self, policy: Compiled) -> None:
        self.policy = policy
        self.bypassed = False
        """The plugin failed and the policy lets the exchange go on without it."""
        self.failure: Cause | None = None
        self._refusals: list[Refusal] = []
        self._properties: list[tuple[bytes, bytes]] = []
        self._clear_route_cache = False
        self._local_response: LocalResponse | None = None
        self._reset = False
        self._phase = Phase.REQUEST_HEADERS
        self.request = Direction(REQUEST, policy, self._refusals)
        self.response = Direction(RESPONSE, policy, self._refusals)

    def direction(self, kind: int) -> Direction:
        """Return the direction that an event, or an effect, belongs to."""
        return self.request if kind <= layout.REQUEST_TRAILERS else self.response

    @property
    def finished(self) -> bool:
        """Whether the exchange was answered or broken off."""
        return self._local_response is not None or self._reset

    @property
    def waiting(self) -> bool:
        """Whether something is held that no more input can free."""
        return self.request.waiting or self.response.waiting

    # --- events ---

    def receive(self, kind: int, content: list[tuple[bytes, bytes]] | bytes, end_of_stream: bool) -> Ask | None:
        """
        Take an event; None: the VM need not be told of it.

        Raises:
            PeerError: it may not come now.
        """
        if self.finished:
            raise PeerError(f"{layout.SUBMISSION_NAMES[kind]} after the exchange was answered or broken off")
        side = self.direction(kind)
        self._phase = PHASES[kind]
        if isinstance(content, bytes):
            ask = side.take_body(content, end_of_stream)
        elif kind == side.names.headers:
            ask = side.take_headers(content, end_of_stream)
        else:
            ask = side.take_trailers(content)
        if self.bypassed:
            side.pass_on()
            return None
        if ask is None:
            self._settle([side])
        return ask

    def answer(self, effects: Iterable[Effect], state: int) -> None:
        """
        Take what came of an event.

        Raises:
            ChannelBroken: a payload is malformed; call `fail` with PROTOCOL.
        """
        if self.finished or self.bypassed:
            return
        both = [self.request, self.response]
        for side in both:
            side.set_state(state)
        self._apply(effects)
        self._settle(both)

    def late(self, effects: Iterable[Effect]) -> None:
        """Take effects that arose outside the events of this exchange; raises as `answer`."""
        if self.finished or self.bypassed:
            return
        effects = list(effects)
        both = [self.request, self.response]
        try:
            for side in both:
                side.late(effects)
        except TooMuchHeldError:
            self.fail(Cause.LIMIT)
        self._apply(effects)
        self._settle(both)

    def _apply(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            if self.finished or self.bypassed:
                return
            del self._refusals[limits.MAX_WRITTEN_PROPERTIES :]
            if effect.kind <= layout.RESPONSE_TRAILERS:
                try:
                    self.direction(effect.kind).apply(effect)
                except TooMuchHeldError:
                    self.fail(Cause.LIMIT)
            elif effect.kind == layout.LOCAL_RESPONSE:
                self._respond(effect.payload)
            elif effect.kind == layout.PROPERTY_SET:
                self._set_property(effect.payload)
            elif effect.kind == layout.CLEAR_ROUTE_CACHE:
                self._clear_route_cache = True
            else:
                self._end(LocalResponse(500, "wasm_close_stream", (), b"", None))

    def _settle(self, sides: list[Direction]) -> None:
        for side in sides:
            if self.finished or self.bypassed:
                return
            try:
                side.settle()
            except TooMuchHeldError:
                self.fail(Cause.LIMIT)

    def _respond(self, payload: bytes) -> None:
        given = parse_local_response(payload)
        response, refusals = self.policy.rules.local_response(
            given.status, given.details, given.headers, given.body, given.grpc_status
        )
        self._refusals += refusals
        self._end(response or LocalResponse(500, "sandboxd_local_response_denied", (), b"", None))

    def _set_property(self, payload: bytes) -> None:
        for path, value in decode_map(payload):
            refusal = self.policy.rules.property(path, value)
            if refusal is None and len(self._properties) >= limits.MAX_WRITTEN_PROPERTIES:
                refusal = Refusal(Reason.TOO_MANY, "property")
            if refusal is None:
                self._properties.append((path, value))
            else:
                self._refusals.append(refusal)

    def _end(self, response: LocalResponse) -> None:
        """Answer in the place of whoever would; if the response has begun, only breaking it off is left."""
        if self.finished:
            return
        for side in (self.request, self.response):
            side.take()
        if self.response.started:
            self._reset = True
        else:
            self._local_response = response

    # --- failure ---

    def fail(self, cause: Cause) -> None:
        """The plugin failed: do what the policy says. Afterwards the exchange is `finished` or `bypassed`."""
        if self.finished or self.bypassed:
            return
        self.failure = cause
        policy = self.policy.failure
        sides = (self.request, self.response)
        if not all(side.can_pass_on for side in sides):
            policy = replace(policy, policy=OnFailure.CLOSED)
        action = decide(policy, self._phase, cause, response_started=self.response.started)
        if action.kind is ActionKind.CONTINUE:
            self.bypassed = True
            for side in sides:
                side.pass_on()
        else:
            self._end(LocalResponse(action.status or 500, action.details, (), b"", None))

    # --- outcome ---

    def outcome(self, side: Direction) -> Outcome:
        """Return what the program has to do now; what is said once is not said again."""
        other = self.response if side is self.request else self.request
        properties, self._properties = self._properties, []
        refusals = self._refusals[: limits.MAX_WRITTEN_PROPERTIES]
        self._refusals.clear()
        clear, self._clear_route_cache = self._clear_route_cache, False
        return Outcome(
            own=side.take(),
            other=other.take(),
            paused=side.held and not self.finished,
            local_response=self._local_response,
            reset=self._reset,
            failure=self.failure,
            bypassed=self.bypassed,
            clear_route_cache=clear,
            properties=properties,
            refusals=refusals,
        )
