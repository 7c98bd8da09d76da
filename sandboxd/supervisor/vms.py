"""A VM as the supervisor keeps book of it, and its failures in words and data."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from dataclasses import dataclass, field

from sandboxd.channel.memfd import ChannelFds
from sandboxd.supervisor.users import ChannelUser
from sandboxd.supervisor.worker_protocol import VmFailed, VmUsage

KEPT_FAILURES = 5


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
    failures: deque[dict[str, object]] = field(default_factory=lambda: deque(maxlen=KEPT_FAILURES))
    start_ns: int = 0

    def close_fds(self) -> None:
        """Close our copies of the channel."""
        if self.fds is not None:
            self.fds.close()
            self.fds = None


vm_ids = itertools.count(1)
"""VM and channel ids, never used twice by this daemon; one number names both."""


def failure_record(event: VmFailed) -> dict[str, object]:
    """Return a failure as ``status`` shows it."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "cause": event.cause,
        "generation": event.generation,
        "callback": event.callback,
        "while_starting": event.while_starting,
        "message": event.message,
    }


def failure_text(event: VmFailed) -> str:
    """Return a failure in words: ``failed in proxy_on_request_headers (trap): ...``."""
    where = f" in {event.callback}" if event.callback else ""
    when = " while starting" if event.while_starting else ""
    return f"failed{when}{where} ({event.cause.replace('_', ' ')})" + (f": {event.message}" if event.message else "")
