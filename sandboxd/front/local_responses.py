"""Responses in the upstream's place: the plugin's own, as far as its policy lets it, and those made for it. Pure."""

from __future__ import annotations

from sandboxd.channel.completions import parse_local_response
from sandboxd.front.plugin import Plugin
from sandboxd.front.side import Report
from sandboxd.policy.write_rules import LocalResponse

STREAM_CLOSED = LocalResponse(500, "wasm_close_stream", (), b"", None)
"""The plugin closed the stream, which ext_proc cannot carry."""
_DENIED = LocalResponse(500, "sandboxd_local_response_denied", (), b"", None)


def permitted(payload: bytes, plugin: Plugin, report: Report) -> LocalResponse:
    """
    Return the response that a plugin gives, without what its policy refuses, which is reported.

    A response that is refused as a whole becomes an error: the plugin meant to stop the request.

    Raises:
        ChannelBroken: the payload is malformed.
    """
    given = parse_local_response(payload)
    response, refusals = plugin.rules.local_response(
        given.status, given.details, given.headers, given.body, given.grpc_status
    )
    for refusal in refusals:
        report(f"refused.{refusal.reason}", refusal.name)
    return response or _DENIED


def cannot_carry(what: str) -> LocalResponse:
    """Return the response in place of what the proxy cannot be told, and must not miss."""
    return LocalResponse(500, f"sandboxd_cannot_carry_{what}", (), b"", None)
