"""What can go wrong on a channel, by whose fault it is."""

from __future__ import annotations

from sandboxd.errors import SandboxdError, WorkerError


class ChannelBroken(WorkerError):  # noqa: N818  (states a fact, as the other errors do)
    """The VM's side broke a rule of the channel. The channel is dead and its worker has to be killed."""


class ChannelFull(SandboxdError):  # noqa: N818  (states a fact, as the other errors do)
    """The VM does not keep up: more is waiting to be submitted than the client may hold."""


class PairsError(ValueError):
    """Bytes that are no header map, or one past the bounds."""
