"""
What a failure means for the stream. One function, pure: nobody else decides.

Fail-open never lets an oversized body past its filter (a client could choose to send one), and never stands
in for a plugin that no policy knows.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from sandboxd.policy.model import FailurePolicy, OnFailure


class Phase(enum.Enum):
    """Where in a stream's life the failure happened."""

    REQUEST_HEADERS = "request_headers"
    REQUEST_BODY = "request_body"
    REQUEST_TRAILERS = "request_trailers"
    RESPONSE_HEADERS = "response_headers"
    RESPONSE_BODY = "response_body"
    RESPONSE_TRAILERS = "response_trailers"
    END = "end"
    """After the exchange: log, done, delete."""


class Cause(enum.Enum):
    """What failed."""

    TRAP = "trap"
    """The guest trapped in this stream."""
    CPU_LIMIT = "cpu_limit"
    """The guest was trapped because its call took too much CPU."""
    MEMORY_LIMIT = "memory_limit"
    """The guest gave up with its memory full, or the streams of its VM held back too much."""
    HOST_CALL_LIMIT = "host_call_limit"
    """The guest was trapped because an event made too many host calls."""
    TIMEOUT = "timeout"
    """No verdict in time."""
    WORKER_GONE = "worker_gone"
    """The worker process died."""
    VM_DOWN = "vm_down"
    """The VM failed earlier and is not back."""
    UNKNOWN_PLUGIN = "unknown_plugin"
    """The proxy names a tenant or plugin that no policy knows."""
    LIMIT = "limit"
    """A limit of the policy was reached: body buffer, open streams."""
    PROTOCOL = "protocol"
    """The worker said something that no honest worker says."""


class ActionKind(enum.Enum):
    """What to do with the stream."""

    CONTINUE = "continue"
    """Go on as if the plugin were not there."""
    RESPOND = "respond"
    """Answer in the upstream's place."""
    RESET = "reset"
    """End the stream; its response has begun and cannot be replaced."""


@dataclass(frozen=True, slots=True)
class FailureAction:
    """What to do with the stream; status and details are set for RESPOND and RESET."""

    kind: ActionKind
    status: int = 0
    """HTTP status of the response; 0 unless RESPOND."""
    details: str = ""
    """Response code details, such as ``sandboxd_vm_trap``; without white space."""


CONTINUE = FailureAction(ActionKind.CONTINUE)

_DETAILS = {
    Cause.TRAP: "sandboxd_vm_trap",
    Cause.CPU_LIMIT: "sandboxd_cpu_limit",
    Cause.MEMORY_LIMIT: "sandboxd_memory_limit",
    Cause.HOST_CALL_LIMIT: "sandboxd_host_call_limit",
    Cause.TIMEOUT: "sandboxd_timeout",
    Cause.WORKER_GONE: "sandboxd_worker_gone",
    Cause.VM_DOWN: "sandboxd_vm_down",
    Cause.UNKNOWN_PLUGIN: "sandboxd_unknown_plugin",
    Cause.LIMIT: "sandboxd_limit",
    Cause.PROTOCOL: "sandboxd_worker_protocol",
}
_STATUS = {Cause.TIMEOUT: 504, Cause.UNKNOWN_PLUGIN: 500, Cause.PROTOCOL: 500}
"""Statuses that the policy does not choose; the others are the policy's ``status``."""
_BODY_LIMIT_STATUS = {Phase.REQUEST_BODY: 413, Phase.RESPONSE_BODY: 500}
"""As Envoy answers when its own buffer is full."""


_OF_VM = {2: Cause.CPU_LIMIT, 3: Cause.MEMORY_LIMIT, 9: Cause.HOST_CALL_LIMIT}
"""
By the number of ``vm_failure`` in docs/channel.md. All are answered as a trap is, so that a worker that lies about
its cause changes a word and a counter, and nothing else.
"""


def cause_of_vm_failure(vm_failure: int) -> Cause:
    """Return the cause that a worker names for its VM's end; hostile input: what is no known limit is a trap."""
    return _OF_VM.get(vm_failure, Cause.TRAP)


def decide(policy: FailurePolicy, phase: Phase, cause: Cause, *, response_started: bool) -> FailureAction:
    """
    Return what a failure means for the stream.

    Args:
        policy: the plugin's failure policy; the default one if the plugin is unknown.
        phase: the event that failed.
        cause: why.
        response_started: the client has been sent response headers, so no other response can be given.
    """
    if phase is Phase.END:
        return CONTINUE
    if policy.policy is OnFailure.OPEN and not _never_open(phase, cause):
        return CONTINUE
    details = _DETAILS[cause]
    if response_started:
        return FailureAction(ActionKind.RESET, details=details)
    return FailureAction(ActionKind.RESPOND, _status(policy, phase, cause), details)


def _never_open(phase: Phase, cause: Cause) -> bool:
    return cause is Cause.UNKNOWN_PLUGIN or (cause is Cause.LIMIT and phase in _BODY_LIMIT_STATUS)


def _status(policy: FailurePolicy, phase: Phase, cause: Cause) -> int:
    if cause is Cause.LIMIT:
        return _BODY_LIMIT_STATUS.get(phase, policy.status)
    return _STATUS.get(cause, policy.status)
