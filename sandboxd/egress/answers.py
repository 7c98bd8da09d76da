"""What a plugin is told of a call that did not go well. Pure; docs/callouts.md has the table."""

from __future__ import annotations

from sandboxd.channel.pairs import encode
from sandboxd.protos import control_pb2 as control

OK, CANCELLED, DEADLINE_EXCEEDED, PERMISSION_DENIED, RESOURCE_EXHAUSTED, UNAVAILABLE = 0, 1, 4, 7, 8, 14
"""gRPC statuses."""

_UNREACHED = "upstream connect error or disconnect/reset before headers. reset reason: "
_OVERDUE = "upstream request timeout"
_REASONS = {"connect": "remote connection failure", "reset": "connection termination", "protocol": "protocol error"}


def http_failure(reason: str) -> control.CalloutReply:
    """Return a response without headers: Proxy-Wasm's word for "none came"."""
    return control.CalloutReply(http=control.HttpReply(failure=reason))


def http_unreached(kind: str) -> control.CalloutReply:
    """Return what Envoy answers in place of an upstream that cannot be reached: 503."""
    return _local(503, _UNREACHED + _REASONS[kind])


def http_overdue() -> control.CalloutReply:
    """Return what Envoy answers in place of an upstream that is too slow: 504."""
    return _local(504, _OVERDUE)


def speaks_for_upstream(kind: str) -> bool:
    """Return whether a failure is answered as Envoy answers it in the upstream's place."""
    return kind in _REASONS


def _local(status: int, text: str) -> control.CalloutReply:
    body = text.encode()
    headers = [
        (b":status", b"%d" % status),
        (b"content-length", b"%d" % len(body)),
        (b"content-type", b"text/plain"),
    ]
    return control.CalloutReply(http=control.HttpReply(headers=encode(headers), body=body, trailers=encode([])))


def grpc_closed(status: int, message: str = "") -> control.CalloutReply:
    """Return the end of a gRPC call or stream."""
    return control.CalloutReply(closed=control.GrpcClosed(status=status, message=message))


def lost(reason: str) -> control.CalloutReply:
    """Return the end of whatever it was."""
    return control.CalloutReply(lost=control.CalloutLost(reason=reason))
