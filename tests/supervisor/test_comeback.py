"""When what failed is started again: one plan at a time, under the tenant's lock."""

from __future__ import annotations

import asyncio

from sandboxd.supervisor.comeback import Comeback


async def test_a_newer_plan_replaces_the_older_one() -> None:
    """Two starts of one tenant must not follow each other."""
    comeback = Comeback(asyncio.Lock())
    made: list[str] = []
    done = asyncio.Event()

    async def older() -> None:
        made.append("older")

    async def newer() -> None:
        made.append("newer")
        done.set()

    comeback.plan(older, 0.0)
    comeback.plan(newer, 0.01)
    await asyncio.wait_for(done.wait(), 5)

    assert made == ["newer"]


async def test_waits_for_who_holds_the_lock() -> None:
    """The operator's command is finished first, and may call the start off."""
    lock = asyncio.Lock()
    comeback = Comeback(lock)
    made: list[str] = []

    async def start() -> None:
        made.append("start")

    async with lock:
        comeback.plan(start, 0.0)
        await asyncio.sleep(0.05)
        assert made == []
        comeback.cancel()
    await asyncio.sleep(0.05)

    assert made == []


async def test_a_start_may_plan_the_next_one() -> None:
    """It fails again: its own task must not be cancelled by that."""
    lock = asyncio.Lock()
    comeback = Comeback(lock)
    made: list[bool] = []
    done = asyncio.Event()

    async def start() -> None:
        if made:
            done.set()
        else:
            comeback.plan(start, 0.0)
            await asyncio.sleep(0)
        made.append(lock.locked())

    comeback.plan(start, 0.0)
    await asyncio.wait_for(done.wait(), 5)

    assert made == [True, True]


async def test_failures_make_it_later_until_the_operator_asks() -> None:
    """At once the first time, then later and later."""
    comeback = Comeback(asyncio.Lock())

    first, second, third = comeback.delay_s(), comeback.delay_s(), comeback.delay_s()
    assert first == 0.0
    assert 0.0 < second < third
    comeback.start_afresh()
    assert comeback.delay_s() == 0.0
