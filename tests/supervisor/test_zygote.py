"""A machine that does not let the zygote fork, at times: it says so, goes on, and is asked again."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from sandboxd.protos import control_pb2 as control
from sandboxd.supervisor import frames
from sandboxd.supervisor.callouts import Rules
from sandboxd.supervisor.egress import EGRESS_INDEX, Egress
from sandboxd.supervisor.fronts import FrontListener, Fronts
from sandboxd.supervisor.prepare import Blob
from sandboxd.supervisor.zygote import Report, Zygote
from tests.support.fake_zygote import FrontsListener


def child(index: int, sock: socket.socket) -> None:
    """Say, as a front and as a broker, that it serves; stay until the socket ends."""
    front = control.FromFront(ready=control.FrontReady(addresses=[f"unix:{index}"]))
    broker = control.FromEgress(ready=control.EgressReady())
    sock.send((broker if index == EGRESS_INDEX else front).SerializeToString())
    while sock.recv(frames.MAX_FRAME_BYTES):
        pass


class Machine:
    """Its limit on processes, as the zygote meets it."""

    def __init__(self, flag: Path) -> None:
        self._flag = flag

    def full(self) -> None:
        self._flag.touch()

    def free(self) -> None:
        self._flag.unlink()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Make forks of other processes than this one fail as at the limit of ``pids.max``."""
    flag, here, fork = tmp_path / "full", os.getpid(), os.fork

    def limited() -> int:
        if os.getpid() != here and flag.exists():
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return fork()

    monkeypatch.setattr(os, "fork", limited)
    return Machine(flag)


@pytest.fixture
def zygote(machine: Machine) -> Iterator[Zygote]:
    forked = Zygote(child)
    yield forked
    forked.close()


def ask(zygote: Zygote, index: int) -> tuple[socket.socket, tuple[Report, int, int, int] | None]:
    with frames.Pair() as pair:
        zygote.ask(index, pair.theirs)
    pair.ours.settimeout(5)
    zygote.socket.settimeout(5)
    return pair.ours, zygote.report()


def descriptors(zygote: Zygote) -> int:
    return len(list(Path(f"/proc/{zygote.pid}/fd").iterdir()))


def test_a_fork_that_fails_is_told_and_costs_nothing(machine: Machine, zygote: Zygote) -> None:
    """However often: a descriptor left behind each time would end the zygote in the end."""
    first, told = ask(zygote, 0)
    assert told is not None
    assert told[:2] == (Report.FORKED, 0)
    machine.full()
    before = descriptors(zygote)
    for _ in range(20):
        ours, told = ask(zygote, 1)
        assert told == (Report.NOT_FORKED, 1, 0, errno.EAGAIN)
        assert ours.recv(100) == b""  # the end of the one that never came
        ours.close()
    assert descriptors(zygote) == before
    machine.free()
    second, told = ask(zygote, 1)
    assert told is not None
    assert told[:2] == (Report.FORKED, 1)
    assert control.FromFront.FromString(second.recv(1000)).ready.addresses == ["unix:1"]
    first.close()
    second.close()


async def test_fronts_and_the_broker_come_once_the_machine_lets_them(
    machine: Machine, zygote: Zygote, caplog: pytest.LogCaptureFixture
) -> None:
    """With the supervisor's usual pauses; and a broker that came later is not taken for the one that did not."""
    machine.full()
    listener = FrontsListener()
    fronts = Fronts(zygote, 1, cast(FrontListener, listener))
    egress = Egress(zygote)
    fronts.siblings[EGRESS_INDEX] = egress
    fronts.start()
    rules = Rules("a", "a.yaml", Blob("text", b""), Blob("material", b""), bytes(32))
    egress.open(rules, lambda _frame: None, lambda: 0)
    deadline_s = time.monotonic() + 10
    while (fronts.restarts < 2 or egress.restarts < 2) and time.monotonic() < deadline_s:
        await asyncio.sleep(0.01)
    assert not fronts.ready
    assert egress.pid == 0
    machine.free()

    assert await fronts.wait_ready(10)
    while egress.pid == 0 and time.monotonic() < deadline_s + 10:
        await asyncio.sleep(0.01)
    pid = egress.pid
    await asyncio.sleep(0.3)
    assert egress.pid == pid != 0
    assert Path(f"/proc/{pid}").exists()
    assert "front_ready" in listener.told
    assert "zygote_gone" not in listener.told
    assert "front 0 cannot be forked: Resource temporarily unavailable" in caplog.text
    assert "the egress broker cannot be forked: Resource temporarily unavailable" in caplog.text
    egress.close()
    await fronts.drain(0.1)
