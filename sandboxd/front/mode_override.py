"""The mode override of ext_proc: asks the proxy not to send bodies that a plugin has no use for. Pure."""

from __future__ import annotations

from sandboxd.exchange.side import REQUEST, RESPONSE
from sandboxd.front import replies
from sandboxd.front.side import FULL_DUPLEX_STREAMED, NONE
from sandboxd.policy.capabilities import DataNeeds


def unneeded_bodies(request_mode: int, response_mode: int, needs: DataNeeds) -> bytes:
    """
    Return the mode override that spares bodies that the plugin has no use for, b"" if there are none.

    Args:
        request_mode: how the proxy sends the request's body now, see `side`.
        response_mode: and the response's.
        needs: what the plugin can see.
    """
    modes = (request_mode, response_mode)
    if FULL_DUPLEX_STREAMED in modes:  # Envoy ignores overrides then
        return b""
    wanted = (
        modes[0] if needs.request_body or REQUEST.body_callback in needs.callbacks else NONE,
        modes[1] if needs.response_body or RESPONSE.body_callback in needs.callbacks else NONE,
    )
    return replies.mode_override(*wanted) if wanted != modes else b""
