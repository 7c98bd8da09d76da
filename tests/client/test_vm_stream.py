"""A stream whose VM fails, without a daemon."""

from __future__ import annotations

import asyncio

from sandboxd.channel import memfd
from sandboxd.client import compiled
from sandboxd.client.channel import Channel
from sandboxd.client.stream import AsyncStream
from sandboxd.policy.capabilities import needs
from sandboxd.policy.capability_names import CALLBACKS
from sandboxd.policy.compile import compile_policy
from sandboxd.policy.failure import Cause
from tests.support.fake_vm import FakeVm
from tests.support.front_rig import policy

CPU_LIMIT = 2
"""As ``vm_failure`` says it."""


async def test_a_vm_that_fails_and_is_taken_away_at_once_is_named_as_it_failed() -> None:
    """Both can happen in one turn of the loop, before the exchange that waits runs."""
    asked = policy()
    rules = compiled.parse(compile_policy("acme", asked, needs(asked.capabilities, CALLBACKS), bytes(32)))
    fds = memfd.create_channel(65536)
    channel = Channel(fds, rules, 0, lambda _: None, lambda _level, _text: None)
    fake = FakeVm(fds)
    fake.begin()
    stream = AsyncStream(rules, channel, b"")
    asking = asyncio.ensure_future(stream.request_headers([(b":method", b"GET"), (b":path", b"/")], True))
    while not channel.vm.client.outstanding:
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    fake.fail(CPU_LIMIT)
    channel.vm.flush()
    channel.close()
    outcome = await asyncio.wait_for(asking, 5)
    fake.stop()

    assert outcome.failure is Cause.CPU_LIMIT
    assert outcome.local_response is not None
