"""The supervisor's handle of a front: one that breaks off, is silent, lies or never comes is replaced, and no other."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
from typing import cast

import pytest

from sandboxd.protos import control_pb2 as control
from sandboxd.supervisor import child_link, frames, fronts, zygote
from sandboxd.supervisor.fronts import Front, FrontListener, Fronts
from sandboxd.supervisor.zygote import Report, Zygote
from tests.support.eventually import until
from tests.support.fake_zygote import FakeZygote, FrontsListener


async def end_of(process: subprocess.Popen[bytes]) -> int | None:
    """Return a process's status; the loop goes on meanwhile, which may be what ends it."""
    await until(lambda: process.poll() is not None)
    return process.returncode


class TellingZygote(FakeZygote):
    """Tells what the test wants."""

    report = Zygote.report

    def __init__(self) -> None:
        super().__init__()
        self.socket, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def tell(self, kind: Report, pid: int, status: int = 0) -> None:
        zygote._tell(self._theirs, kind, 0, pid, status)

    def close(self) -> None:
        for end in (self.socket, self._theirs, *self.asked):
            end.close()


class Rig:
    """One front, and who forks it."""

    def __init__(self) -> None:
        self.zygote = TellingZygote()
        self.listener = FrontsListener()
        self.fronts = Fronts(cast(Zygote, self.zygote), 1, cast(FrontListener, self.listener))
        self.fronts.start()

    @property
    def front(self) -> Front:
        return self.fronts.all[0]

    async def serves(self, pid: int) -> Front:
        """Have the front that was asked for last forked and ready."""
        self.zygote.tell(Report.FORKED, pid)
        ready = control.FromFront(ready=control.FrontReady(addresses=["unix:a"]))
        self.zygote.asked[-1].send(ready.SerializeToString())
        await until(lambda: bool(self.fronts.ready))
        assert self.front.pid == pid
        return self.front

    async def replaced(self, times: int = 1) -> None:
        await until(lambda: len(self.zygote.asked) == times + 1)
        assert self.fronts.restarts == self.listener.told.count("front_gone") == times

    async def close(self) -> None:
        await self.fronts.drain(0.01)
        self.zygote.close()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\xff", "sent what cannot be read (DecodeError)"),
        (b"x" * (frames.MAX_FRAME_BYTES + 1), "sent a frame that is too long"),
    ],
    ids=["garbage", "long"],
)
async def test_one_that_lies_is_killed_and_replaced(
    processes: list[subprocess.Popen[bytes]], caplog: pytest.LogCaptureFixture, data: bytes, reason: str
) -> None:
    """Whoever has taken it over does not get the supervisor's time, nor its log."""
    rig = Rig()
    await rig.serves(processes[0].pid)
    rig.zygote.asked[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    for _ in range(3):
        rig.zygote.asked[0].send(data)
    await rig.replaced()
    assert await end_of(processes[0]) == -signal.SIGKILL
    said = [record.getMessage() for record in caplog.records]
    assert [text for text in said if reason in text] == [said[-1]]
    assert f"front 0 (pid {processes[0].pid}) {reason}; a new one starts" in said[-1]
    assert not [record for record in caplog.records if record.exc_info]
    await rig.close()


async def test_one_that_is_silent_is_killed_and_replaced(
    processes: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rig = Rig()
    front = await rig.serves(processes[0].pid)
    monkeypatch.setattr(child_link, "STATUS_TIMEOUT_S", 0)
    front.link._pulse()
    await rig.replaced()
    assert await end_of(processes[0]) == -signal.SIGKILL
    assert "does not answer" in caplog.text
    await rig.close()


async def test_one_that_is_never_forked_is_asked_for_again(
    processes: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the zygote forks it after all, it is ended, and not taken for the next one."""
    monkeypatch.setattr(fronts, "END_GRACE_S", 0.01)
    rig = Rig()
    with monkeypatch.context() as patch:
        patch.setattr(child_link, "STATUS_TIMEOUT_S", 0)
        rig.front.link._pulse()
    await rig.replaced()
    rig.zygote.tell(Report.FORKED, processes[0].pid)
    await rig.serves(processes[1].pid)
    assert await end_of(processes[0]) == -signal.SIGKILL
    rig.zygote.tell(Report.EXITED, processes[0].pid, -signal.SIGKILL)
    await asyncio.sleep(0)
    assert processes[1].poll() is None
    assert rig.fronts.restarts == 1
    await rig.close()


async def test_one_that_could_not_be_forked_is_not_waited_for(processes: list[subprocess.Popen[bytes]]) -> None:
    rig = Rig()
    rig.zygote.tell(Report.NOT_FORKED, 0, 11)
    rig.zygote.asked[0].close()
    await rig.replaced()
    await rig.serves(processes[0].pid)
    await rig.close()


async def test_one_that_ends_its_socket_gets_a_moment_to_say_why(
    processes: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then it is killed; a process that has ended is not, for its number may be somebody else's by then."""
    monkeypatch.setattr(fronts, "END_GRACE_S", 0.05)
    rig = Rig()
    await rig.serves(processes[0].pid)
    rig.zygote.asked[0].close()
    await rig.replaced()
    assert await end_of(processes[0]) == -signal.SIGKILL
    await rig.serves(processes[1].pid)
    rig.zygote.tell(Report.EXITED, processes[1].pid, 0)
    await until(lambda: rig.front.link._process is None)
    rig.zygote.asked[1].close()
    await rig.replaced(2)
    await asyncio.sleep(0.1)
    assert processes[1].poll() is None
    await rig.close()


async def test_a_frame_that_is_too_long_is_not_sent_and_costs_no_front(
    processes: list[subprocess.Popen[bytes]], caplog: pytest.LogCaptureFixture
) -> None:
    rig = Rig()
    front = await rig.serves(processes[0].pid)
    front.send(control.ToFront(plugin_down=control.PluginDown(reason="x" * frames.MAX_FRAME_BYTES)))
    assert "a control frame is not sent" in caplog.text
    assert rig.front is front
    assert processes[0].poll() is None
    await rig.close()
