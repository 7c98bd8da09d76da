"""
ext_proc on one side, channel events on the other: one HTTP exchange, without any I/O.

`Exchange.receive` turns a ``ProcessingRequest`` into the events to submit (`Ask`), `Exchange.answer` turns what came of
an event into ``ProcessingResponse`` bytes in `Exchange.replies`. What a mode cannot carry is reported by name, never
left out in silence; what cannot be left out without damage ends the exchange by the failure policy.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, NamedTuple

from envoy.service.ext_proc.v3 import external_processor_pb2 as pb

from sandboxd import limits
from sandboxd.channel import layout, pairs
from sandboxd.channel.completions import Effect, decode_map, parse_local_response
from sandboxd.channel.pairs import Pair
from sandboxd.errors import PeerError
from sandboxd.front import attributes as attribute_codec
from sandboxd.front import replies
from sandboxd.front import side as d
from sandboxd.front.direction import Direction
from sandboxd.front.plugin import Plugin
from sandboxd.front.side import CannotCarryError, HeldMap, Report
from sandboxd.policy.failure import ActionKind, Cause, Phase, decide
from sandboxd.policy.model import OnFailure
from sandboxd.policy.write_rules import LocalResponse

ATTRIBUTES_KEY = "envoy.filters.http.ext_proc"
_GRPC_MODE = 5

_PHASES = {
    layout.REQUEST_HEADERS: Phase.REQUEST_HEADERS,
    layout.REQUEST_BODY: Phase.REQUEST_BODY,
    layout.REQUEST_TRAILERS: Phase.REQUEST_TRAILERS,
    layout.RESPONSE_HEADERS: Phase.RESPONSE_HEADERS,
    layout.RESPONSE_BODY: Phase.RESPONSE_BODY,
    layout.RESPONSE_TRAILERS: Phase.RESPONSE_TRAILERS,
}
_RESPONSE_KINDS = frozenset({layout.RESPONSE_HEADERS, layout.RESPONSE_BODY, layout.RESPONSE_TRAILERS})


class Ask(NamedTuple):
    """One event for the VM."""

    kind: int
    payload: bytes
    end_of_stream: bool


class Exchange:
    """
    One gRPC stream of ext_proc, which is one HTTP exchange.

    Args:
        plugin: whose filter it runs.
        report: told of what deserves a counter and a log line.
        allow_mode_override: ask Envoy not to send bodies that the plugin has no use for.
    """

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
        self.request = Direction(d.REQUEST, plugin, self.replies, report)
        self.response = Direction(d.RESPONSE, plugin, self.replies, report)
        self._report = report
        self._allow_mode_override = allow_mode_override
        self._metadata: dict[str, Any] = {}
        self._mode_override = b""
        self._first = True
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
        self.attributes = self._properties(message) if message.attributes else b""
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
        if not message.HasField("protocol_config"):
            self._report("ext_proc.no_protocol_config", "")
            return
        config = message.protocol_config
        for side, mode in (
            (self.request, config.request_body_mode),
            (self.response, config.response_body_mode),
        ):
            if mode == _GRPC_MODE or not 0 <= mode <= _GRPC_MODE:
                raise PeerError(
                    f"{side.names.word} body mode {mode} is not supported "
                    "(allowed: NONE, STREAMED, BUFFERED, BUFFERED_PARTIAL, FULL_DUPLEX_STREAMED)"
                )
            side.mode = mode
            side.early_body = config.send_body_without_waiting_for_header_response
        if self._allow_mode_override:
            self._mode_override = self._unneeded_bodies()

    def _unneeded_bodies(self) -> bytes:
        """Return the mode override that spares bodies that the plugin has no use for, b"" if there are none."""
        modes = (self.request.mode, self.response.mode)
        if d.FULL_DUPLEX_STREAMED in modes:  # Envoy ignores overrides then
            return b""
        needs = self.plugin.needs
        wanted = (
            modes[0] if needs.request_body or d.REQUEST.body_callback in needs.callbacks else d.NONE,
            modes[1] if needs.response_body or d.RESPONSE.body_callback in needs.callbacks else d.NONE,
        )
        return replies.mode_override(*wanted) if wanted != modes else b""

    def _properties(self, message: pb.ProcessingRequest) -> bytes:
        if not self.plugin.needs.properties:
            return b""
        unknown: list[str] = []
        found: list[Pair] = []
        for struct in message.attributes.values():
            found += attribute_codec.properties(struct.fields, self.plugin.redactor, unknown)
        for name in unknown:
            self._report("ext_proc.unknown_attribute", name)
        return pairs.encode(found)

    def _headers(self, side: Direction, headers: pb.HttpHeaders) -> list[Ask]:
        if side.headers_seen:
            raise PeerError(f"{side.names.word} headers after {side.names.word} headers, body or trailers")
        self._no_longer_waits(side)
        needed = self.plugin.needs.request_headers if side is self.request else self.plugin.needs.response_headers
        held = self._held(headers.headers, side.names.headers_section, needed)
        side.take_headers(held, headers.end_of_stream)
        if self.bypassed:
            side.pass_on()
            return []
        return [Ask(side.names.headers, pairs.encode(held.view), headers.end_of_stream)]

    def _held(self, header_map: Any, section: Any, needed: bool) -> HeldMap:
        # Envoy fills raw_value; value is there for other clients of the protocol.
        original = [(h.key.encode(), h.raw_value or h.value.encode()) for h in header_map.headers]
        return HeldMap(original, self.plugin.redactor.view(original, section) if needed else [], section)

    def _body(self, side: Direction, body: pb.HttpBody) -> list[Ask]:
        asks = self._after_headers(side)
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
            side.blind = True
            return [Ask(side.names.body, b"", end)]
        try:
            side.pass_body_by(self.plugin.policy.limits.body_buffer_bytes)
        except CannotCarryError as error:
            self._cannot_carry(str(error))
        return []

    def _trailers(self, side: Direction, trailers: pb.HttpTrailers) -> list[Ask]:
        asks = self._after_headers(side)
        needs = self.plugin.needs
        is_request = side is self.request
        needed = needs.request_trailers if is_request else needs.response_trailers
        body_needed = needs.request_body if is_request else needs.response_body
        callback = side.names.trailers_callback
        held = self._held(trailers.trailers, side.names.trailers_section, needed)
        side.take_trailers(held)
        if self.bypassed or not (needed or body_needed or side.paused or callback in needs.callbacks):
            side.pass_on()
            return []
        return [*asks, Ask(side.names.trailers, pairs.encode(held.view), False)]

    def _after_headers(self, side: Direction) -> list[Ask]:
        """Check that a body or trailers may come; returns what the VM has to be told first."""
        if side.input_over:
            raise PeerError(f"{side.names.word} body or trailers after the end of the {side.names.word}")
        self._no_longer_waits(side)
        if side.headers_seen:
            return []
        side.skip_headers()
        return [Ask(side.names.headers, b"", False)]

    def _no_longer_waits(self, side: Direction) -> None:
        if side.unanswered == side.names.headers and side.early_body:
            side.answer_headers_early()
        elif side.unanswered:
            raise PeerError(f"{side.names.word} message before the one before it was answered")

    # --- what the plugin did ---

    def answer(self, ask: Ask, effects: Iterable[Effect], state: int) -> None:
        """
        Take what came of an event of this exchange.

        Raises:
            ChannelBroken: a payload is malformed; call `fail` with PROTOCOL.
        """
        self._phase = _PHASES[ask.kind]
        side = self.response if ask.kind in _RESPONSE_KINDS else self.request
        self.request.set_state(state)
        self.response.set_state(state)
        self._apply(effects)
        if self.finished:
            return
        if not self.replies_possible(side, ask):
            return
        self._settle(side)
        # An event of one direction may free the other one (proxy_continue_stream).
        other = self.request if side is self.response else self.response
        if not self.finished and (other.waiting or other.mode == d.FULL_DUPLEX_STREAMED):
            self._settle(other)

    def replies_possible(self, side: Direction, ask: Ask) -> bool:
        """False for the made-up headers before a body: the reply belongs to the body."""
        return not (side.headers_skipped and ask.kind == side.names.headers)

    def late(self, effects: Iterable[Effect]) -> None:
        """Take effects on this exchange that arose in an event of another one; raises as `answer`."""
        if self.finished or self.bypassed:
            return
        effects = list(effects)
        touched = {effect.kind in _RESPONSE_KINDS for effect in effects}
        if True in touched:
            self.response.resumed()
        if False in touched:
            self.request.resumed()
        self._apply(effects)
        for side in (self.request, self.response):
            if not self.finished:
                self._settle(side)

    def _apply(self, effects: Iterable[Effect]) -> None:
        try:
            for effect in effects:
                kind = effect.kind
                if kind <= layout.REQUEST_TRAILERS:
                    self.request.apply(effect)
                elif kind <= layout.RESPONSE_TRAILERS:
                    self.response.apply(effect)
                elif kind == layout.LOCAL_RESPONSE:
                    self._local_response(effect.payload)
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
        if len(self.replies) > before:
            self._decorate(before, side.headers_answered and not headers_before)

    def _observe(self) -> None:
        """Nobody reads replies in observability mode: keep nothing."""
        self.replies.clear()
        self._metadata.clear()
        self.request.discard()
        self.response.discard()

    def _decorate(self, index: int, is_headers: bool) -> None:
        """Append to the first new reply what may go with any, or with one to headers."""
        if self._metadata:
            self.replies[index] += self._take_metadata()
        if self._mode_override and is_headers:
            self.replies[index] += self._mode_override
            self._mode_override = b""

    def _take_metadata(self) -> bytes:
        message = pb.ProcessingResponse()
        message.dynamic_metadata.update({self.plugin.metadata_namespace: self._metadata})
        self._metadata = {}
        return bytes(message.SerializeToString())

    def _set_property(self, payload: bytes) -> None:
        for path, value in decode_map(payload):
            refusal = self.plugin.rules.property(path, value)
            if refusal is not None:
                self._report(f"refused.{refusal.reason}", refusal.name)
                continue
            if len(self._metadata) >= limits.MAX_WRITTEN_PROPERTIES:
                self._report("refused.too_many", "property")
                continue
            key = path.removesuffix(b"\0").replace(b"\0", b".").decode()
            try:
                self._metadata[key] = value.decode()
            except UnicodeDecodeError:
                self._metadata[key] = {"base64": base64.b64encode(value).decode()}

    def _clear_route_cache(self) -> None:
        if self.request.headers_answered and self.request.started:
            self._report("ext_proc.cannot_carry.clear_route_cache", "")
        else:
            self.request.clear_route_cache = True

    def _close_stream(self) -> None:
        # ext_proc has no reset. Closing the gRPC stream would mean "go on" to a filter with failure_mode_allow.
        self._report("ext_proc.cannot_carry.close_stream", "")
        self._respond(LocalResponse(500, "wasm_close_stream", (), b"", None))

    def _local_response(self, payload: bytes) -> None:
        given = parse_local_response(payload)
        response, refusals = self.plugin.rules.local_response(
            given.status, given.details, given.headers, given.body, given.grpc_status
        )
        for refusal in refusals:
            self._report(f"refused.{refusal.reason}", refusal.name)
        self._respond(response or LocalResponse(500, "sandboxd_local_response_denied", (), b"", None))

    def _respond(self, response: LocalResponse) -> None:
        """End the exchange with a response; whatever was to be sent on is not."""
        if self.observing or self.finished:
            return
        self.replies.append(replies.immediate(response))
        if self._metadata:
            self.replies[-1] += self._take_metadata()
        self.finished = True
        self.request.waiting = self.response.waiting = False

    def _cannot_carry(self, what: str) -> None:
        self._report(f"ext_proc.cannot_carry.{what}", "")
        if not self.finished:
            self._respond(LocalResponse(500, f"sandboxd_cannot_carry_{what}", (), b"", None))

    def end(self) -> None:
        """The exchange is over."""
        if self._metadata:
            self._report("ext_proc.cannot_carry.property_after_last_reply", "")

    # --- failure ---

    @property
    def waiting(self) -> bool:
        """Whether something is held that only time, or another exchange, can free."""
        return self.request.waiting or self.response.waiting

    def fail(self, cause: Cause) -> None:
        """The plugin failed: do what the policy says. Afterwards the exchange is `finished` or `bypassed`."""
        if self.finished or self.bypassed:
            return
        self._report(f"failed.{cause.value}", "")
        policy = self.plugin.policy.failure
        sides = (self.request, self.response)
        if self.observing:
            self.bypassed = True
            self._observe()
            return
        if policy.policy is OnFailure.OPEN and not all(side.can_pass_on for side in sides):
            self._report("failure.open_impossible", "the plugin keeps bytes that the proxy does not have")
            policy = replace(policy, policy=OnFailure.CLOSED)
        action = decide(policy, self._failed_phase(), cause, response_started=self.response.started)
        if action.kind is ActionKind.CONTINUE:
            self._report("failure.open", cause.value)
            self.bypassed = True
            for side in sides:
                side.pass_on()
            return
        if action.kind is ActionKind.RESET:
            self._report("failure.reset", cause.value)
        # To Envoy an immediate response after the response has begun means: reset.
        self._respond(LocalResponse(action.status or 500, action.details, (), b"", None))

    def _failed_phase(self) -> Phase:
        for side in (self.response, self.request):
            if side.unanswered:
                return _PHASES[side.unanswered]
        return self._phase
