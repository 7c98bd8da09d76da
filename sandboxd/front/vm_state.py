"""What a stream has to know of its VM: whether there is one yet, and why one gives no verdict."""

from __future__ import annotations

import asyncio

from sandboxd.channel import layout
from sandboxd.channel.hooks import Lost
from sandboxd.front.registry import Channel, Entry
from sandboxd.policy.failure import Cause, cause_of_vm_failure
from sandboxd.policy.model import OnFailure

CODE_CAUSES = {
    layout.CODE_UNKNOWN_STREAM: Cause.VM_DOWN,
    layout.CODE_OUT_OF_ORDER: Cause.PROTOCOL,
    layout.CODE_LIMIT: Cause.LIMIT,
    layout.CODE_STREAM_OVER: Cause.PROTOCOL,
}
"""What each code of a verdict but ``CODE_OK`` means to the failure policy."""


async def wait_for_vm(entry: Entry) -> None:
    """Wait for a VM that is on its way, no longer than for a verdict."""
    clock = asyncio.get_running_loop().time
    deadline = clock() + entry.plugin.policy.limits.time_per_event_ns / 1e9
    await entry.wait_settled(deadline - clock())
    channel = entry.channel
    if channel is None or channel.vm.ready:
        return
    if channel.starting or entry.plugin.policy.failure.policy is OnFailure.RELOAD:
        await channel.wait_ready(deadline - clock())


def cause_of_loss(lost: Lost, channel: Channel) -> Cause:
    """Return why an event on this channel got no verdict, as the failure policy knows it."""
    if lost is Lost.TIMEOUT:
        return Cause.TIMEOUT
    if lost is Lost.DOWN:
        return cause_of_vm_failure(channel.vm.client.vm_failure)
    return channel.dead_cause
