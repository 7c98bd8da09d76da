"""What a plugin is told of a call that did not go well. Pure; docs/callouts.md has the table."""

from __future__ import annotations

from sandboxd.channel.pairs import encode
from sandboxd.protos import control_pb2 as control

DEADLINE_EXCEEDED, PERMISSION_DENIED, UNAVAILABLE = 4, 7, 14
"""gRPC statuses."""

_UNREACHED = "upstream connect error or disconnect/reset before headers. reset reason: "
_OVERDUE = "upstream request timeout"
_RESET = "reset"
_UNANSWERED = {
    "connect": (503, "remote connection failure"),
    "reset": (503, "connection termination"),
    "protocol": (502, "protocol error"),
}
"""Failures before the response's headers: status and reason with which Envoy answers in the upstream's place."""
_BROKEN_OFF = frozenset({"timeout", "cut"})
"""Failures after them."""


def http_failure(reason: str) -> control.CalloutReply:
    """Return a response without headers: Proxy-Wasm's word for "none came"."""
    return control.CalloutReply(http=control.HttpReply(failure=reason))


def http_failed(kind: str, text: str) -> control.CalloutReply:
    """
    Return what Envoy makes of a call without a whole response.

    Args:
        kind: of `CallFailedError`.
        text: what to say of a kind that Envoy does not have.
    """
    if kind in _UNANSWERED:
        status, reason = _UNANSWERED[kind]
        return _local(status, _UNREACHED + reason)
    return http_failure(_RESET if kind in _BROKEN_OFF else text)


def http_overdue() -> control.CalloutReply:
    """Return what Envoy answers in place of an upstream whose headers do not come in time: 504."""
    return _local(504, _OVERDUE)


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
