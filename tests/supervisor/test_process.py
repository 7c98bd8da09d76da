"""A worker process under the supervisor's hand, with programs in the worker's place that misbehave."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import subprocess
import sys
import textwrap
import time
import weakref
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from sandboxd.protos import control_pb2 as control
from sandboxd.supervisor import frames, launch, process, reading_pace
from sandboxd.supervisor.exits import Exit
from sandboxd.supervisor.folders import FileChanges
from sandboxd.supervisor.launch import WorkerSpec
from sandboxd.supervisor.process import WorkerProcess
from sandboxd.supervisor.worker_events import Event, Ready, SharedAsk
from sandboxd.supervisor.worker_protocol import VmView, WorkerView

READY = "say(ready=control.WorkerReady(layers=layers))\n"
HEAD = """
import os, socket, sys, time
from sandboxd.protos import control_pb2 as control
sock = socket.socket(fileno=int(sys.argv[1]))
def say(**frame): sock.send(control.FromWorker(**frame).SerializeToString())
from sandboxd.jail.full_plan import decode
layers = decode(control.ToWorker.FromString(sock.recv(65536)).setup.jail_plan).layers()
"""
LAYERS = tuple(layer.value for layer in WorkerSpec("t").plan(3, 1).layers())


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return a function that sets the program that runs in the worker's place."""

    def set_program(text: str) -> None:
        def start(control_socket: socket.socket) -> subprocess.Popen[bytes]:
            fd = control_socket.fileno()
            return subprocess.Popen(
                [sys.executable, "-c", HEAD + textwrap.dedent(text), str(fd)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=(fd,),
            )

        monkeypatch.setattr(launch, "start", start)

    return set_program


async def until_gone(events: list[Event] | None = None, timeout_s: float = 20) -> str:
    """Start a worker, wait until it is gone, and return the operator's sentence."""
    gone: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
    worker = WorkerProcess(WorkerSpec("t"), (events if events is not None else []).append, gone.set_result)
    worker.view.vms[1] = VmView(1, starts=1 << 30)
    return (await asyncio.wait_for(gone, timeout_s)).sentence


async def test_exit_status_and_last_words(play: Callable[[str], None]) -> None:
    """What it wrote to stderr at the end is in the sentence, made harmless."""
    play(READY + "sys.stderr.write('out of \\x1b[31mluck'); sys.exit(3)")
    events: list[Event] = []

    assert await until_gone(events) == r"ended by itself with status 3; its last words: out of \x1b[31mluck"
    assert events == [Ready(LAYERS)]


class Listener:
    """Holds its worker, as a deployment does."""

    def __init__(self) -> None:
        self.gone: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self.worker = WorkerProcess(WorkerSpec("t"), self.heard, self.ended)

    def heard(self, _: Event) -> None:
        """What the worker says is of no interest."""

    def ended(self, end: Exit) -> None:
        """Take note of the end."""
        self.gone.set_result(end)


async def test_who_listens_is_free_once_the_worker_is_gone(play: Callable[[str], None]) -> None:
    """Memory files of old versions go at once, not when the garbage collector happens to run."""
    play(READY + "sys.exit(0)")
    gc.disable()
    try:
        listener = Listener()
        left = weakref.ref(listener)
        gone = listener.gone
        del listener
        assert left() is not None  # the worker's way back holds it
        await asyncio.wait_for(gone, 20)
        await asyncio.sleep(0.05)
        assert left() is None
    finally:
        gc.enable()


async def test_killed_from_outside(play: Callable[[str], None]) -> None:
    """SIGKILL hints at memory."""
    play("os.kill(os.getpid(), 9)")

    assert "want of memory" in await until_gone()


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("sock.send(b'\\xff' * 10); time.sleep(60)", "not protobuf"),
        ("sock.send(b''); time.sleep(60)", "closed its control socket"),
        ("say(pong=control.Pong(number=1)); time.sleep(60)", "before it was ready"),
        (READY + "say(vm_started=control.VmStarted(vm_id=9, generation=1)); time.sleep(60)", "was not given"),
        (READY + "sock.close(); time.sleep(60)", "closed its control socket"),
        ("say(ready=control.WorkerReady(layers=layers[1:])); time.sleep(60)", "was told to put on fds, "),
        (
            "sock.setsockopt(1, 7, 1 << 20); sock.send(b'x' * 70000); time.sleep(60)",
            "more than 65536 bytes",
        ),
    ],
    ids=["garbage", "empty", "early", "ids", "closed", "layers", "long"],
)
async def test_lies_are_fatal(play: Callable[[str], None], program: str, reason: str) -> None:
    """Whatever no honest worker says costs it its life, at once."""
    play(program)

    sentence = await until_gone(timeout_s=10)

    assert sentence.startswith("was killed by sandboxd: ")
    assert reason in sentence


async def test_a_flood_is_fatal(play: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Valid frames without end must not keep the supervisor busy."""
    monkeypatch.setattr(reading_pace, "FRAMES_BURST", 500)
    play(READY + "\nfor n in range(1, 1 << 30): say(vm_failed=control.VmFailed(vm_id=1, generation=n))")

    assert "floods" in await until_gone()


async def test_giving_up_is_final(play: Callable[[str], None]) -> None:
    """Each time is a line of the log, so there is no second one."""
    play(READY + "\nwhile True: say(error=control.WorkerError(message='x'))")
    events: list[Event] = []

    assert "gave up twice" in await until_gone(events)
    assert len(events) == 2


async def test_silence_is_fatal(play: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """No pong in time."""
    monkeypatch.setattr(process, "PING_PERIOD_S", 0.05)
    monkeypatch.setattr(process, "PONG_TIMEOUT_S", 0.3)
    play(READY + "time.sleep(60)")

    assert "did not answer" in await until_gone()


async def test_never_ready_is_fatal(play: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that says nothing at all."""
    monkeypatch.setattr(process, "READY_TIMEOUT_S", 0.3)
    play("time.sleep(60)")

    assert "not ready in time" in await until_gone()


async def test_descriptors_from_a_worker_are_never_taken(play: Callable[[str], None]) -> None:
    """It may send as many as it likes: our table does not grow."""
    program = """
    import array
    fds = array.array('i', [os.open('/dev/null', 0) for _ in range(100)])
    def frame(n): return control.FromWorker(vm_failed=control.VmFailed(vm_id=1, generation=n)).SerializeToString()
    for n in range(1, 21): sock.sendmsg([frame(n)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
    """
    play(READY + textwrap.dedent(program))
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    events: list[Event] = []

    await until_gone(events)

    assert len(events) == 21
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


async def test_a_worker_that_does_not_read_is_killed(
    play: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frames to it are queued up to a bound."""
    monkeypatch.setattr("sandboxd.supervisor.outbox.MAX_QUEUED_FRAMES", 50)
    play(READY + "time.sleep(60)")
    gone: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
    worker = WorkerProcess(WorkerSpec("t"), lambda _: None, gone.set_result)
    while not gone.done():
        worker.send(control.ToWorker(setup=control.WorkerSetup(tenant="t" * 1000)))
        await asyncio.sleep(0)

    assert "does not read" in gone.result().sentence


@pytest.mark.parametrize(("program", "end"), [("sock.recv(1)", "status 0"), ("time.sleep(60)", "SIGKILL")])
async def test_stops_in_peace_or_not(
    play: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, program: str, end: str
) -> None:
    """The end of the socket is the request; SIGKILL follows a grace."""
    monkeypatch.setattr(process, "STOP_GRACE_S", 0.5)
    play(READY + program)
    gone: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
    ready = asyncio.Event()
    worker = WorkerProcess(WorkerSpec("t"), lambda _: ready.set(), gone.set_result)
    await asyncio.wait_for(ready.wait(), 10)
    worker.stop()

    assert end in (await asyncio.wait_for(gone, 5)).sentence


class Chatter:
    """A worker whose words the test puts into its mouth; the time that each costs the supervisor is the test's too."""

    def __init__(self, cost_s: float) -> None:
        self.cost_s = cost_s
        self.heard: list[float] = []
        self.gone: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self.process = WorkerProcess(WorkerSpec("t", launch=self._launch), self._event, self.gone.set_result)
        self.process.view.vms[1] = VmView(1, starts=1 << 30)
        self.say(ready=control.WorkerReady(layers=LAYERS))

    def _launch(self) -> launch.Launched:
        with frames.Pair() as pair:
            self.mouth = pair.theirs.dup()
            silent = subprocess.Popen(["sleep", "60"], stderr=subprocess.PIPE)
            return launch.Launched(silent, pair.ours, pair.theirs.fileno())

    def _event(self, event: Event) -> None:
        if not isinstance(event, Ready):
            self.heard.append(time.monotonic())
            time.sleep(self.cost_s)

    def say(self, **frame: Any) -> None:
        """Have it said."""
        self.mouth.send(control.FromWorker(**frame).SerializeToString())

    async def hears(self, count: int) -> None:
        """Wait until so many frames have been heard."""
        async with asyncio.timeout(20):
            while len(self.heard) < count:
                await asyncio.sleep(0)

    async def end(self) -> None:
        """Kill it."""
        self.mouth.close()
        self.process.kill("has shown it")
        await asyncio.wait_for(self.gone, 10)


async def test_the_others_have_a_turn_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many words of a worker wait, and whatever kind they are."""
    monkeypatch.setattr(reading_pace, "CALLOUTS_BURST", 1 << 30)
    worker = Chatter(2 * process.TURN_S)
    for _ in range(20):
        worker.say(callout=control.Callout(vm_id=1, call_id=1))
    heard_each_turn = []
    for _ in range(10):
        before = len(worker.heard)
        await asyncio.sleep(0)
        heard_each_turn.append(len(worker.heard) - before)
    await worker.end()

    assert max(heard_each_turn) == 1, heard_each_turn


async def test_reading_counts_as_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame that is dear to check costs its worker as much as one that is dear to handle."""
    feed = WorkerView.feed

    def slow(view: WorkerView, data: bytes) -> Event:
        time.sleep(0.02)
        return feed(view, data)

    worker = Chatter(0.0)
    while not worker.process.layers:
        await asyncio.sleep(0)
    monkeypatch.setattr(WorkerView, "feed", slow)
    for number in range(1, 4):
        worker.say(vm_failed=control.VmFailed(vm_id=1, generation=number))
    await worker.hears(3)
    await worker.end()

    pauses = [after - before for before, after in pairwise(worker.heard)]
    assert min(pauses) > 0.02 * reading_pace.WORK_SHARE * 0.9, pauses


async def test_who_is_not_read_is_not_taken_for_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot answer while the supervisor lets it wait."""
    monkeypatch.setattr(process, "PING_PERIOD_S", 0.05)
    monkeypatch.setattr(process, "PONG_TIMEOUT_S", 0.3)
    worker = Chatter(0.06)
    worker.say(vm_failed=control.VmFailed(vm_id=1, generation=1))
    worker.say(vm_failed=control.VmFailed(vm_id=1, generation=2))
    await worker.hears(2)
    killed_for = worker.process.killed_for
    await worker.end()

    assert worker.heard[1] - worker.heard[0] > 0.3
    assert killed_for == ""


async def test_changes_of_folders_get_a_share_of_the_time(play: Callable[[str], None]) -> None:
    """However much the supervisor has to do for each: the others of its loop have the rest."""
    play(READY + "\nfor _ in range(20): say(file_changes=control.FileChanges(vm_id=1))\ntime.sleep(60)")
    handled: list[float] = []

    def on_event(event: Event) -> None:
        if isinstance(event, FileChanges):
            handled.append(time.monotonic())
            time.sleep(0.02)

    gone: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
    worker = WorkerProcess(WorkerSpec("t"), on_event, gone.set_result)
    worker.view.vms[1] = VmView(1)
    async with asyncio.timeout(20):
        while len(handled) < 4:
            await asyncio.sleep(0.01)
    worker.kill("has shown it")
    await gone

    pauses = [after - before for before, after in pairwise(handled)]
    assert min(pauses) > 0.02 * reading_pace.WORK_SHARE * 0.9, pauses


async def test_questions_for_shared_data_are_slowed_down_as_callouts_are(
    play: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that is away answers at once, so a worker could ask as fast as the supervisor's core lets it."""
    monkeypatch.setattr(reading_pace, "CALLOUTS_PER_SECOND", 100)
    monkeypatch.setattr(reading_pace, "CALLOUTS_BURST", 5)
    program = """
    import struct
    data = struct.pack("<III", 1, 0, 1) + b"k"
    for n in range(1, 26): say(shared_ask=control.SharedAsk(vm_id=1, number=n, data=data))
    time.sleep(60)
    """
    play(READY + textwrap.dedent(program))
    handled: list[float] = []

    def on_event(event: Event) -> None:
        if isinstance(event, SharedAsk):
            handled.append(time.monotonic())
            worker.view.vms[1].asking -= 1  # answered

    gone: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
    worker = WorkerProcess(WorkerSpec("t"), on_event, gone.set_result)
    worker.view.vms[1] = VmView(1)
    async with asyncio.timeout(20):
        while len(handled) < 25:
            await asyncio.sleep(0.01)
    worker.kill("has shown it")
    await gone

    assert handled[-1] - handled[0] > 0.18
