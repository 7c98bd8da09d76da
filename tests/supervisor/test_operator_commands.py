"""What the operator has the daemon do: in the right order, and not before the daemon has started."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from sandboxd.errors import PolicyError
from sandboxd.policy.load import PolicyDirectory
from sandboxd.protos import admin_pb2 as admin
from sandboxd.supervisor.ledger import Ledger
from sandboxd.supervisor.notify import Notifier
from sandboxd.supervisor.operator_commands import Commands
from sandboxd.supervisor.pool import Pool


class FakeStatus:
    """Says little."""

    def summary(self) -> str:
        """One line."""
        return "well"


class Words(Notifier):
    """Keeps what the service manager would have been told."""

    def __init__(self) -> None:
        super().__init__({})
        self.said: list[str] = []

    def _send(self, text: str) -> None:
        self.said.append(text.partition("=")[0])


def a_pool() -> Pool:
    """A pool without tenants; it needs nothing of a daemon."""
    return Pool(cast(Any, None))


def commands_of(policies: Path, pool: Pool, words: Words, started: asyncio.Event) -> Commands:
    """Return the commands of a daemon that has these parts."""
    nothing = cast(Any, None)
    status = cast(Any, FakeStatus())
    return Commands(policies, pool, Ledger(), status=status, metrics=nothing, notifier=words, started=started)


def directory_with(path: str) -> PolicyDirectory:
    """What a policy directory with one bad file holds."""
    return PolicyDirectory({}, {path: PolicyError("is bad", path=path)})


async def settle() -> None:
    """Let every task go on as far as it can."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_nothing_is_reloaded_before_the_daemon_has_started(tmp_path: Path) -> None:
    """Its own tenants come first, and the jail's test before them; the service manager hears of no reload either."""
    (tmp_path / "bad.yaml").write_text("tenant: [")
    pool, words, started = a_pool(), Words(), asyncio.Event()
    commands = commands_of(tmp_path, pool, words, started)
    reload = asyncio.create_task(commands.reload())
    request = admin.AdminRequest(command=admin.ADMIN_COMMAND_RESTART)
    restart = asyncio.create_task(commands.handle(request))
    await settle()

    assert not reload.done()
    assert not restart.done()
    assert pool.file_errors == {}
    assert words.said == []

    started.set()
    async with asyncio.timeout(10):
        await asyncio.gather(reload, restart)
    assert list(pool.file_errors) == [str(tmp_path / "bad.yaml")]
    assert words.said == ["RELOADING", "READY"]


async def test_the_reload_that_applies_last_has_read_last() -> None:
    """Else an older state of the directory could be what runs."""
    pool = a_pool()
    release = asyncio.Event()
    began: list[str] = []

    async def slow() -> PolicyDirectory:
        began.append("slow")
        await release.wait()
        return directory_with("old.yaml")

    async def quick() -> PolicyDirectory:
        began.append("quick")
        return directory_with("new.yaml")

    both = [asyncio.create_task(pool.reload(slow)), asyncio.create_task(pool.reload(quick))]
    await settle()
    assert began == ["slow"]

    release.set()
    async with asyncio.timeout(10):
        await asyncio.gather(*both)
    assert list(pool.file_errors) == ["new.yaml"]


async def test_a_directory_that_cannot_be_read_is_the_reloads_error(tmp_path: Path) -> None:
    """And what runs goes on; the next reload is not blocked."""
    pool, words, started = a_pool(), Words(), asyncio.Event()
    started.set()
    commands = commands_of(tmp_path / "none", pool, words, started)
    for _ in range(2):
        with pytest.raises(PolicyError, match="cannot read the policy directory"):
            await commands.reload()
    assert words.said == ["RELOADING", "READY"] * 2
