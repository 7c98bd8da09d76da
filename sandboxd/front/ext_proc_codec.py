"""
ext_proc on one side, channel events on the other: one HTTP exchange, without any I/O.

`Exchange.receive` turns a ``ProcessingRequest`` into the events to submit (`Ask`), `Exchange.answer` turns what came of
an event into ``ProcessingResponse`` bytes in `Exchange.replies`. What a mode cannot carry is reported by name, never
left out in silence; what cannot be left out without damage ends the exchange by the failure policy.
"""

from __future__ import annotations

from collections.abc import Iterable

from envoy.service.ext_proc.v3 import external_processor_pb2 as pb

from sandboxd.channel import layout, pairs
from sandboxd.channel.completions import Effect
from sandboxd.errors import PeerError
from sandboxd.exchange.side import PHASES, REQUEST, RESPONSE, Ask
from sandboxd.front import local_responses, proxy, replies
from sandboxd.front import side as d
from sandboxd.front.direction import Direction
from sandboxd.front.failure import action_on
from sandboxd.front.metadata import Metadata
from sandboxd.front.mode_override import unneeded_bodies
from sandboxd.front.order import after_headers, no_longer_waits
from sandboxd.front.plugin import Plugin
from sandboxd.front.side import CannotCarryError, Report
from sandboxd.policy.failure import ActionKind, Cause, Phase
from sandboxd.policy.write_rules import LocalResponse

_RESPONSE_KINDS = frozenset({layout.RESPONSE_HEADERS, layout.RESPONSE_BODY, layout.RESPONSE_TRAILERS})


class Exchange:
    """
    One gRPC stream of ext_proc, which is one HTTP exchange.

    Args:
        plugin: whose filter it runs.
        report: told of what deserves a counter and a log line.
        allow_mode_override: ask Envoy not to send bodies that the plugin has no use for.
    """

    _local_response_seen = False

    def __init__(self, plugin: Plugin, report: Report, *, allow_mode_override: bool = False) -> None:
        self.plugin = plugin
        self.replies: list[bytes] = []
        """``ProcessingResponse`` messages to be sent, in order."""
        self.finished = False
        """The exchange was answered in the upstream's place; nothing more is sent after `replies`."""
        self.bypassed = False
        """The plugin failed and the policy lets the exchange go on without it."""
        self.observing = False
        self.attributes: bytes = b""
        """Encoded properties that came with the last message."""
        self.request = Direction(REQUEST, plugin, self.replies, report)
        self.response = Direction(RESPONSE, plugin, self.replies, report)
        self._report = report
        self._allow_mode_override = allow_mode_override
        self._metadata: Metadata | None = None
        self._mode_override = b""
        self._first = True
        self._state = 0
        self._phase = Phase.REQUEST_HEADERS

    # --- messages from the proxy ---

    def receive(self, message: pb.ProcessingRequest) -> list[Ask]:
        """
        Take one message and return the events it makes; none if it is answered already.

        Raises:
            PeerError: the message is not one that may come now.
        """
        if self._first:
            self._begin(message)
        self.attributes = b""
        if message.attributes and self.plugin.needs.properties:
            self.attributes = proxy.properties(message, self.plugin.redactor, self._report)
        which = message.WhichOneof("request")
        if which == "request_headers":
            return self._headers(self.request, message.request_headers)
        if which == "response_headers":
            return self._headers(self.response, message.response_headers)
        if which == "request_body":
            return self._body(self.request, message.request_body)
        if which == "response_body":
            return self._body(self.response, message.response_body)
        if which == "request_trailers":
            return self._trailers(self.request, message.request_trailers)
        if which == "response_trailers":
            return self._trailers(self.response, message.response_trailers)
        raise PeerError("ProcessingRequest without a request")

    def _begin(self, message: pb.ProcessingRequest) -> None:
        self._first = False
        self.observing = message.observability_mode
        modes = proxy.body_modes(message)
        if modes is None:
            self._report("ext_proc.no_protocol_config", "")
            return
        for side, mode in ((self.request, modes.request), (self.response, modes.response)):
            side.mode = mode
            side.early_body = modes.early_body
        if self._allow_mode_override:
            self._mode_override = unneeded_bodies(modes.request, modes.response, self.plugin.needs)

    def _headers(self, side: Direction, headers: pb.HttpHeaders) -> list[Ask]:
        if side.headers_seen:
            raise PeerError(f"{side.names.word} headers after {side.names.word} headers, body or trailers")
        no_longer_waits(side)
        needed = self.plugin.needs.request_headers if side is self.request else self.plugin.needs.response_headers
        held = proxy.held(headers.headers, side.names.headers_section, self.plugin.redactor, needed)
        side.take_headers(held, headers.end_of_stream)
        if self.bypassed:
            side.pass_on()
            return []
        return [Ask(side.names.headers, pairs.encode(held.view), headers.end_of_stream)]

    def _body(self, side: Direction, body: pb.HttpBody) -> list[Ask]:
        asks = after_headers(side)
        data, end = body.body, body.end_of_stream
        needs = self.plugin.needs
        readable = needs.request_body if side is self.request else needs.response_body
        told = not self.bypassed and side.names.body_callback in needs.callbacks
        side.take_body(data, end, told=told, readable=readable)
        if self.bypassed:
            side.pass_on()
            return []
        if not told:
            return self._unread_body(side, asks, end)
        # Bytes that it cannot read do not go to the worker: the callback sees a size, and zeros have that as well.
        return [*asks, Ask(side.names.body, data if readable else bytes(len(data)), end)]

    def _unread_body(self, side: Direction, asks: list[Ask], end: bool) -> list[Ask]:
        """A body that the plugin has no callback for passes by; only a pause from headers may make it wait."""
        if side.headers_held and not side.all_stopped and not asks:
            # Telling of an empty body lets the VM release the headers.
            side.blind = side.unseen = True
            return [Ask(side.names.body, b"", end)]
        try:
            side.pass_body_by(self.plugin.policy.limits.body_buffer_bytes)
        except CannotCarryError as error:
            self._cannot_carry(str(error))
        return []

    def _trailers(self, side: Direction, trailers: pb.HttpTrailers) -> list[Ask]:
        asks = after_headers(side)
        needs = self.plugin.needs
        is_request = side is self.request
        needed = needs.request_trailers if is_request else needs.response_trailers
        body_needed = needs.request_body if is_request else needs.response_body
        callback = side.names.trailers_callback
        held = proxy.held(trailers.trailers, side.names.trailers_section, self.plugin.redactor, needed)
        side.take_trailers(held)
        concerned = needed or body_needed or callback in needs.callbacks or side.paused or side.holds_body
        if self.bypassed or not concerned:
            side.pass_on()
            return []
        return [*asks, Ask(side.names.trailers, pairs.encode(held.view), False)]

    # --- what the plugin did ---

    def answer(self, ask: Ask, effects: Iterable[Effect], state: int) -> None:
        """
        Take what came of an event of this exchange.

        Raises:
            ChannelBroken: a payload is malformed; call `fail` with PROTOCOL.
        """
        self._phase = PHASES[ask.kind]
        side, other = self.request, self.response
        if ask.kind in _RESPONSE_KINDS:
            side, other = other, side
        side.unseen = ask.kind != side.unanswered  # but if the headers before it were made up
        if state or self._state:  # nothing is held, nearly always
            self._state = state
            side.set_state(state)
            other.set_state(state)
        self._apply(effects)
        # The reply to made-up headers before a body belongs to the body.
        if self.finished or (side.headers_skipped and ask.kind == side.names.headers):
            return
        self._settle(side)
        # An event of one direction may free the other one (proxy_continue_stream).
        if not self.finished and (other.waiting or other.mode == d.FULL_DUPLEX_STREAMED):
            self._settle(other)

    def late(self, effects: Iterable[Effect]) -> None:
        """Take effects on this exchange that arose in an event of another one; raises as `answer`."""
        if self.finished or self.bypassed:
            return
        effects = list(effects)
        kinds = {effect.kind for effect in effects}
        self.request.resumed(kinds)
        self.response.resumed(kinds)
        self._apply(effects)
        for side in (self.request, self.response):
            # The reply to a message that is with the plugin is its verdict's; what goes on now goes with that.
            if not self.finished and not side.unseen:
                self._settle(side)

    def _apply(self, effects: Iterable[Effect]) -> None:
        try:
            for effect in effects:
                kind = effect.kind
                if self.finished and kind != layout.PROPERTY_SET:  # those are named at the end of an event
                    continue
                if kind <= layout.REQUEST_TRAILERS:
                    self.request.apply(effect)
                elif kind <= layout.RESPONSE_TRAILERS:
                    self.response.apply(effect)
                elif kind == layout.LOCAL_RESPONSE:
                    if not self._local_response_seen:
                        self._local_response_seen = True
                        self._respond(local_responses.permitted(effect.payload, self.plugin, self._report))
                elif kind == layout.PROPERTY_SET:
                    self._set_property(effect.payload)
                elif kind == layout.CLEAR_ROUTE_CACHE:
                    self._clear_route_cache()
                else:
                    self._close_stream()
        except CannotCarryError as error:
            self._cannot_carry(str(error))

    def _settle(self, side: Direction) -> None:
        if self.observing:
            self._observe()
            return
        before = len(self.replies)
        headers_before = side.headers_answered
        try:
            side.settle()
        except CannotCarryError as error:
            self._cannot_carry(str(error))
        if (self._mode_override or self._metadata) and len(self.replies) > before:
            self._decorate(before, side.headers_answered and not headers_before)

    def _observe(self) -> None:
        """Nobody reads replies in observability mode: keep nothing."""
        self.replies.clear()
        self._metadata = None
        self.request.discard()
        self.response.discard()

    def _decorate(self, index: int, is_headers: bool) -> None:
        """Append to the first new reply what may go with any, or with one to headers."""
        if self._metadata:
            self.replies[index] += self._metadata.take()
        if self._mode_override and is_headers:
            self.replies[index] += self._mode_override
            self._mode_override = b""

    def _set_property(self, payload: bytes) -> None:
        if self._metadata is None:
            self._metadata = Metadata(self.plugin, self._report)
        self._metadata.add(payload)

    def _clear_route_cache(self) -> None:
        if self.request.headers_answered and self.request.started:
            self._report("ext_proc.cannot_carry.clear_route_cache", "")
        else:
            self.request.clear_route_cache = True

    def _close_stream(self) -> None:
        # ext_proc has no reset. Closing the gRPC stream would mean "go on" to a filter with failure_mode_allow.
        self._report("ext_proc.cannot_carry.close_stream", "")
        self._respond(local_responses.STREAM_CLOSED)

    def _respond(self, response: LocalResponse) -> None:
        """End the exchange with a response; whatever was to be sent on is not."""
        if self.observing or self.finished:
            return
        self.replies.append(replies.immediate(response))
        if self._metadata:
            self.replies[-1] += self._metadata.take()
        self.finished = True
        self.request.waiting = self.response.waiting = False

    def _cannot_carry(self, what: str) -> None:
        self._report(f"ext_proc.cannot_carry.{what}", "")
        if not self.finished:
            self._respond(local_responses.cannot_carry(what))

    @property
    def at_last(self) -> bool:
        """Whether no message can follow if the response headers are the last one."""
        return self.response.headers_seen or self.finished

    @property
    def pause_s(self) -> float:
        """How long something may be held that nothing frees."""
        return self.plugin.policy.time_per_pause_ns / 1e9

    def pause_over(self) -> bool:
        """Whether the exchange can do without the end of a pause: never, its message would be lost."""
        return False

    def end(self) -> list[Ask]:
        """The exchange is over; returns what the VM has to be told beside that."""
        if self._metadata:
            self._report("ext_proc.cannot_carry.property_after_last_reply", "")
        return []

    @property
    def bodiless(self) -> bool:
        """Whether the proxy sends no bodies, as far as it has said."""
        return self.request.mode in (d.NONE, d.UNKNOWN) and self.response.mode in (d.NONE, d.UNKNOWN)

    # --- failure ---

    @property
    def waiting(self) -> bool:
        """Whether something is held that only time, or another exchange, can free."""
        return self.request.waiting or self.response.waiting

    @property
    def held(self) -> bool:
        """Whether the plugin holds something, which is lost with its VM."""
        return self.request.held or self.response.held

    def fail(self, cause: Cause) -> None:
        """The plugin failed: do what the policy says. Afterwards the exchange is `finished` or `bypassed`."""
        if self.finished or self.bypassed:
            return
        self._report(f"failed.{cause.value}", "")
        sides = (self.request, self.response)
        if self.observing:
            self.bypassed = True
            self._observe()
            return
        action = action_on(
            self.plugin,
            self._failed_phase(),
            cause,
            self._report,
            can_pass_on=all(side.can_pass_on for side in sides),
            response_started=self.response.started,
        )
        if action.kind is ActionKind.CONTINUE:
            self.bypassed = True
            for side in sides:
                side.pass_on()
            return
        # To Envoy an immediate response after the response has begun means: reset.
        self._respond(LocalResponse(action.status or 500, action.details, (), b"", None))

    def _failed_phase(self) -> Phase:
        for side in (self.response, self.request):
            if side.unanswered:
                return PHASES[side.unanswered]
        return self._phase
