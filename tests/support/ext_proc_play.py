"""A play of one HTTP exchange over ext_proc: what the proxy says, what the VM answers, what goes back. Without I/O."""

from __future__ import annotations

from collections import Counter
from typing import Any

from envoy.service.ext_proc.v3 import external_processor_pb2 as pb

from sandboxd.channel import layout, pairs
from sandboxd.channel.completions import Effect, LocalResponse, encode_local_response
from sandboxd.exchange.side import Ask
from sandboxd.front.ext_proc_codec import Exchange
from sandboxd.front.plugin import Plugin
from sandboxd.policy.capability_names import CALLBACKS
from sandboxd.policy.failure import Cause
from tests.support import front_rig as rig

NONE, STREAMED, BUFFERED, PARTIAL, DUPLEX = range(5)
PAUSED = layout.STATE_REQUEST_PAUSED
STOPPED = PAUSED | layout.STATE_REQUEST_HEADERS_HELD | layout.STATE_REQUEST_ALL_STOPPED
HELD = PAUSED | layout.STATE_REQUEST_HEADERS_HELD
EOS = layout.FLAG_END_OF_STREAM
AS_SUBMITTED = layout.FLAG_AS_SUBMITTED
READS_HEADERS = ["proxy_get_header_map_pairs"]
NO_BODY_CALLBACKS = CALLBACKS - {"proxy_on_request_body", "proxy_on_response_body"}


def effect(kind: int, payload: bytes = b"", flags: int = 0) -> Effect:
    return Effect(kind, flags, 1, 1, 0, payload)


def changed(kind: int, *headers: tuple[str, str]) -> Effect:
    """The map goes on as these headers."""
    entries = [(key.encode(), value.encode()) for key, value in headers]
    return effect(kind, pairs.encode(entries), layout.FLAG_MODIFIED)


def local(status: int = 403, **fields: Any) -> Effect:
    made = LocalResponse(status, fields.get("grpc", -1), False, b"denied", [], fields.get("body", b"no"))
    return effect(layout.LOCAL_RESPONSE, encode_local_response(made, fields.get("headers", b"")))


class Play:
    """An exchange with its findings; `say` sends a message, `vm` answers its last event."""

    def __init__(self, plugin: Plugin | None = None, request: int = NONE, response: int = NONE, **options: Any) -> None:
        self.findings: Counter[str] = Counter()
        self.exchange = Exchange(plugin or rig.plugin(), lambda name, _: self.findings.update([name]), **options)
        self.config = rig.modes(request, response)
        self.asks: list[Ask] = []
        self._first = True

    def say(self, message: pb.ProcessingRequest) -> list[Ask]:
        if self._first:
            message.protocol_config.CopyFrom(self.config)
            self._first = False
        self.asks = self.exchange.receive(message)
        return self.asks

    def headers(self, headers: Any = rig.REQUEST, eos: bool = False, **rest: Any) -> list[Ask]:
        return self.say(rig.request_headers(headers, eos, **rest))

    def body(self, data: bytes, eos: bool = False) -> list[Ask]:
        return self.say(pb.ProcessingRequest(request_body={"body": data, "end_of_stream": eos}))

    def trailers(self, *trailers: tuple[str, str]) -> list[Ask]:
        return self.say(pb.ProcessingRequest(request_trailers={"trailers": rig.header_map(trailers)}))

    def response_headers(self, headers: Any = rig.RESPONSE, eos: bool = False) -> list[Ask]:
        return self.say(rig.response_headers(headers, eos))

    def response_body(self, data: bytes, eos: bool = False) -> list[Ask]:
        return self.say(pb.ProcessingRequest(response_body={"body": data, "end_of_stream": eos}))

    def vm(self, *effects: Effect, state: int = 0) -> list[pb.ProcessingResponse]:
        """The VM answers the last event."""
        self.exchange.answer(self.asks[-1], effects, state)
        return self.replies()

    def passes(self) -> list[pb.ProcessingResponse]:
        """The VM lets the last event pass unchanged."""
        ask = self.asks[-1]
        flags = (AS_SUBMITTED | (EOS if ask.end_of_stream else 0)) if ask.kind in layout.BODY_KINDS else 0
        payload = ask.payload if ask.kind in layout.BODY_KINDS else b""
        return self.vm(effect(ask.kind, payload, flags))

    def fails(self, cause: Cause) -> list[pb.ProcessingResponse]:
        self.exchange.fail(cause)
        return self.replies()

    def replies(self) -> list[pb.ProcessingResponse]:
        made = [pb.ProcessingResponse.FromString(data) for data in self.exchange.replies]
        self.exchange.replies.clear()
        return made


def sets(mutation: Any) -> list[tuple[str, bytes, int]]:
    return [(o.header.key, o.header.raw_value, o.append_action) for o in mutation.set_headers]


def streamed(*replies: pb.ProcessingResponse) -> list[tuple[bytes, bool]]:
    pieces = [r.request_body.response.body_mutation.streamed_response for r in replies]
    return [(piece.body, piece.end_of_stream) for piece in pieces]


def which(replies: list[pb.ProcessingResponse]) -> list[str]:
    return [reply.WhichOneof("response") for reply in replies]
