"""What can go wrong between a program and the daemon, by whose fault it is."""

from __future__ import annotations

from sandboxd.errors import PeerError, WorkerError


class AttachRefused(PeerError):  # noqa: N818  (states a fact, as the other errors do)
    """
    The daemon will not give a channel.

    Args:
        code: of ``REFUSED`` in ``docs/attach.md``.
        reason: the daemon's words.
    """

    def __init__(self, code: int, reason: str) -> None:
        self.code = code
        self.reason = reason
        super().__init__(f"the daemon refuses the channel: {reason} (code {code})")

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.code, self.reason))


class DaemonAway(WorkerError):  # noqa: N818
    """Nobody serves the attach socket, or the connection ended."""


class PluginDown(WorkerError):  # noqa: N818
    """The daemon is there, but no VM of the plugin runs now."""


class ExchangeReset(PeerError):  # noqa: N818
    """The exchange has to be broken off: its response has begun and cannot be replaced."""
