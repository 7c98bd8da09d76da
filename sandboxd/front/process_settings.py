"""
What a front asks of the kernel and of gRPC's core, before either has a thread.

Speed alone: nothing depends on it. Figures are in ``docs/performance.md``.
"""

from __future__ import annotations

import contextlib
import os

GRPC_EXPERIMENTS = "-event_engine_poller,-event_engine_listener"
"""
gRPC hands sockets to a thread pool of its own ("event engine"), so every message crosses one more thread on its way to
the loop. Its older poller does without. A gRPC that no longer knows a name says so in its log and goes on.
"""


def prepare() -> None:
    """
    To be called in a fresh front, before ``grpc`` is imported and before a filter forbids it.

    SCHED_BATCH (sched(7)): a thread that becomes ready does not push the one that runs off its core. gRPC and
    the loop hand work to each other for every message: so they do it in larger portions, with fewer switches.
    An operator's own ``GRPC_EXPERIMENTS`` is left alone.
    """
    os.environ.setdefault("GRPC_EXPERIMENTS", GRPC_EXPERIMENTS)
    with contextlib.suppress(OSError):  # some containers forbid it
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
