"""Workers in reserve: taken, replaced, ended; and what they are before they are taken."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sandboxd.supervisor import spares
from sandboxd.supervisor.spares import Spares
from tests.support.daemon_client import ADD_HEADER, FakeDaemon, alive, fake_daemon, policy_text, wait_for


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refill at once."""
    monkeypatch.setattr(spares, "REFILL_PAUSE_S", 0.01)


@pytest.fixture
async def kept() -> AsyncIterator[Spares]:
    """Two spares."""
    made = Spares(2)
    made.start()
    await full(made)
    yield made
    made.close()


async def full(made: Spares, count: int = 2) -> tuple[int, ...]:
    """Wait until there are so many."""
    async with asyncio.timeout(10):
        while len(made.pids()) < count:
            await asyncio.sleep(0.01)
    return made.pids()


async def test_the_oldest_is_taken_and_replaced(kept: Spares) -> None:
    first, second = kept.pids()
    taken = kept.take()
    assert taken.process.pid == first
    assert (await full(kept))[0] == second
    taken.close()


async def test_a_dead_one_is_never_given(kept: Spares, caplog: pytest.LogCaptureFixture) -> None:
    first, second = kept.pids()
    os.kill(first, signal.SIGKILL)
    await asyncio.sleep(0.1)
    taken = kept.take()
    assert taken.process.pid == second
    assert "ended with status -9 before it was needed" in caplog.text
    taken.close()


async def test_more_than_there_are(kept: Spares) -> None:
    """Who needs a worker gets one."""
    taken = [kept.take() for _ in range(4)]
    assert len({item.process.pid for item in taken}) == 4
    assert all(item.process.poll() is None for item in taken)
    for item in taken:
        item.close()


async def test_none_are_kept_before_the_start_and_after_the_end(kept: Spares) -> None:
    before = Spares(2)
    before.take().close()
    await asyncio.sleep(0.05)
    assert before.pids() == ()

    pids = kept.pids()
    kept.close()
    await asyncio.sleep(0.05)
    assert kept.pids() == ()
    assert not any(alive(pid) for pid in pids)


async def test_a_spare_has_nothing_of_anybody(kept: Spares) -> None:
    """No variable but our two, no descriptor but its socket and the standard three."""
    pid = kept.pids()[0]
    names = {entry.split(b"=")[0] for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") if entry}
    assert names == {b"PYTHONPATH", b"PYTHONUTF8"}
    deadline = time.monotonic() + 5
    while len(fds := set(os.listdir(f"/proc/{pid}/fd"))) > 4:  # noqa: PTH208 (files that it is just reading)
        assert time.monotonic() < deadline, fds
        await asyncio.sleep(0.05)


def test_a_worker_that_dies_is_replaced_by_a_spare(short_path: Path, artefact_cache: Path) -> None:
    """The new waiter is a process that was there before the death; a daemon's end leaves none of them."""
    with fake_daemon(short_path, artefact_cache, {"a": policy_text("alpha", ADD_HEADER)}, fronts=1) as daemon:
        wait_for(lambda: len(idle(daemon)) == 2, 10, "two spares")
        waiting = idle(daemon)
        old = daemon.worker_pid("alpha")
        os.kill(old, signal.SIGKILL)
        wait_for(lambda: runs_another(daemon, old), 10, "running again")
        assert daemon.tenant("alpha")["worker"]["waiter_pid"] in waiting
        wait_for(lambda: len(idle(daemon)) == 2, 10, "two spares again")
        last = idle(daemon)
    wait_for(lambda: not any(alive(pid) for pid in last), 5, "the spares are gone")


def test_none_if_the_operator_wants_none(short_path: Path, artefact_cache: Path) -> None:
    more = "jail: {self_test: false}\nworker: {spares: 0}\n"
    policies = {"a": policy_text("alpha", ADD_HEADER)}
    with fake_daemon(short_path, artefact_cache, policies, fronts=1, more=more) as daemon:
        time.sleep(1)
        assert idle(daemon) == set()
        assert daemon.serves("alpha main")


def runs_another(daemon: FakeDaemon, old: int) -> bool:
    """Return whether the tenant is served by another worker than the old one."""
    alpha = daemon.tenant("alpha")
    return alpha["state"] == "running" and alpha["worker"] is not None and alpha["worker"]["pid"] != old


def idle(daemon: FakeDaemon) -> set[int]:
    """Return the daemon's children that run the worker's program and are nobody's worker."""
    workers = {tenant["worker"]["waiter_pid"] for tenant in daemon.status()["tenants"] if tenant["worker"]}
    children = Path(f"/proc/{daemon.process.pid}/task/{daemon.process.pid}/children").read_text().split()
    found = {int(pid) for pid in children if b"sandboxd.worker" in _command(pid)}
    return found - workers


def _command(pid: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
