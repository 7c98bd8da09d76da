"""A VM as the supervisor keeps book of it, and its failures in words and data."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass

from sandboxd.channel.memfd import ChannelFds
from sandboxd.policy.model import PluginPolicy
from sandboxd.supervisor import budgets
from sandboxd.supervisor.users import ChannelUser
from sandboxd.supervisor.worker_events import VmFailed, VmUsage


@dataclass(slots=True)
class Vm:
    """A VM and its channel to one user, most often a front."""

    vm_id: int
    plugin: str
    front: ChannelUser
    fds: ChannelFds | None
    """Until both sides have theirs."""
    first_outcome: asyncio.Future[str]
    """Empty: it started; else why not."""
    attached: bool = False
    drained: bool = False
    usage: VmUsage | None = None
    start_ns: int = 0

    def close_fds(self) -> None:
        """Close our copies of the channel."""
        if self.fds is not None:
            self.fds.close()
            self.fds = None


vm_ids = itertools.count(1)
"""VM and channel ids, never used twice by this daemon; one number names both."""


def failure_text(event: VmFailed, policy: PluginPolicy | None = None) -> str:
    """
    Return a failure in words: ``failed in proxy_on_request_headers (trap): ... at f < g``; with the policy, it says
    which limit was hit.
    """
    where = f" in {event.callback}" if event.callback else ""
    when = " while starting" if event.while_starting else ""
    text = f"failed{when}{where} ({event.cause.replace('_', ' ')})" + (f": {event.message}" if event.message else "")
    if policy and (hint := budgets.hint(event.cause, event.message, policy, while_starting=event.while_starting)):
        text += f"; {hint}"
    return f"{text}; at {' < '.join(event.backtrace)}" if event.backtrace else text
