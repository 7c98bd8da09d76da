"""What is done alike to all deployments that one tenant has at a time: the one that serves, and those that drain."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from sandboxd.channel.async_vm import OVERDUE_TEXT
from sandboxd.supervisor.deployment import Deployment
from sandboxd.supervisor.exits import ExitCause


def channel_drained(deployments: Sequence[Deployment], channel_id: int) -> bool:
    """Take note that no stream uses a channel any more; return whether it is one of theirs."""
    return any(deployment.channel_drained(channel_id) for deployment in deployments)


def channel_broken(deployments: Sequence[Deployment], channel_id: int, reason: str) -> bool:
    """Kill the worker behind a channel; return whether it is one of theirs."""
    for deployment in deployments:
        if channel_id in deployment.vms.by_id:
            cause = ExitCause.WALL_TIME if reason.startswith(OVERDUE_TEXT) else ExitCause.WORKER_PROTOCOL
            deployment.worker.kill(f"broke a channel: {reason}", cause)
            return True
    return False


async def end(deployments: Sequence[Deployment]) -> None:
    """End all workers, without draining, and wait until they are gone."""
    for deployment in deployments:
        deployment.worker.stop()
    while not all(deployment.gone for deployment in deployments):
        await asyncio.sleep(0.01)
