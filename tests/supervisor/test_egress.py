"""The supervisor's handle of the broker: forked when it is needed, replaced when it ends, told of all rules."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess

import pytest

from sandboxd.protos import control_pb2 as control
from sandboxd.supervisor import egress as egress_module
from sandboxd.supervisor import frames
from sandboxd.supervisor.callouts import CalloutPiece, Rules
from sandboxd.supervisor.egress import EGRESS_INDEX, Egress
from sandboxd.supervisor.prepare import Blob
from tests.support.eventually import until
from tests.support.fake_zygote import FakeZygote


def heard(end: socket.socket) -> list[control.ToEgress]:
    """Return what a broker was told, without the questions for its state."""
    end.setblocking(False)
    found = []
    while True:
        try:
            packet = frames.receive_with_fds(end)
        except BlockingIOError:
            return found
        packet.close()
        if not packet.data:
            return found
        frame = control.ToEgress.FromString(packet.data)
        if not frame.HasField("status"):
            found.append(frame)


def rules(tenant: str) -> Rules:
    return Rules(tenant, f"{tenant}.yaml", Blob("text", b""), Blob("material", b""), bytes(32))


def ignore(_frame: control.ToWorker) -> None:
    pass


async def test_it_is_forked_when_the_first_worker_needs_it() -> None:
    zygote = FakeZygote(EGRESS_INDEX)
    egress = Egress(zygote)  # type: ignore[arg-type]
    assert not egress.ready
    first = egress.open(rules("a"), ignore, lambda: 0)
    second = egress.open(rules("b"), ignore, lambda: 0)
    assert egress.ready
    (end,) = zygote.asked
    told = [frame.rules for frame in heard(end)]
    assert [(rule.worker_id, rule.tenant) for rule in told] == [(first.worker_id, "a"), (second.worker_id, "b")]
    egress.close()
    end.close()


async def test_one_that_ends_is_replaced_and_told_everything_again() -> None:
    zygote = FakeZygote(EGRESS_INDEX)
    egress = Egress(zygote)  # type: ignore[arg-type]
    answers: list[control.ToWorker] = []
    route = egress.open(rules("a"), answers.append, lambda: 0)
    gone = egress.open(rules("b"), ignore, lambda: 0)
    gone.close()
    route.take(CalloutPiece(1, 1, b"", False), "main", 4)
    zygote.asked[0].close()
    await until(lambda: len(answers) == 1)
    assert b"the egress broker is gone" in answers[0].callout_answer.data
    await until(lambda: len(zygote.asked) == 2)
    assert [frame.rules.worker_id for frame in heard(zygote.asked[1])] == [route.worker_id]
    assert egress.restarts == 1
    egress.close()
    zygote.asked[1].close()


async def test_one_that_cannot_be_forked_is_tried_again() -> None:
    zygote = FakeZygote(EGRESS_INDEX)
    zygote.fails = True
    egress = Egress(zygote)  # type: ignore[arg-type]
    egress.open(rules("a"), ignore, lambda: 0)
    assert not egress.ready
    zygote.fails = False
    await until(lambda: egress.ready)
    egress.close()
    zygote.asked[0].close()


async def test_one_that_dies_again_and_again_is_not_away_for_long(caplog: pytest.LogCaptureFixture) -> None:
    """It may be a tenant that makes it die, and the others' callouts wait."""
    zygote = FakeZygote(EGRESS_INDEX)
    zygote.fails = True
    egress = Egress(zygote)  # type: ignore[arg-type]
    egress.open(rules("a"), ignore, lambda: 0)
    for _ in range(20):
        assert egress._timer is not None
        egress._timer.cancel()
        egress._start()
    delays = [float(found) for found in re.findall(r"another one starts in ([\d.]+) s", caplog.text)]
    assert len(delays) == 21
    assert max(delays) > 1
    assert max(delays) <= 2.5
    egress.close()


async def test_rules_that_serve_are_those_of_older_workers_and_of_no_other_tenant() -> None:
    zygote = FakeZygote(EGRESS_INDEX)
    egress = Egress(zygote)  # type: ignore[arg-type]
    old = egress.open(rules("a"), ignore, lambda: 0)
    other = egress.open(rules("b"), ignore, lambda: 0)
    newer = rules("a")
    new = egress.open(newer, ignore, lambda: 0)
    heard(zygote.asked[0])
    egress.promote(newer)
    assert [frame.rules.worker_id for frame in heard(zygote.asked[0])] == [old.worker_id]
    assert (old.rules, new.rules) == (newer, newer)
    assert other.rules.tenant == "b"
    egress.close()
    zygote.asked[0].close()


async def test_counters_come_in_pieces_and_those_of_plugins_without_upstreams_beside_them() -> None:
    zygote = FakeZygote(EGRESS_INDEX)
    egress = Egress(zygote)  # type: ignore[arg-type]
    egress.open(rules("a"), ignore, lambda: 0)
    (end,) = zygote.asked
    for text, more in (('{"a/p": {"web":', True), (' {"calls": 3}}}', False)):
        status = control.EgressStatus(number=1, counters_json=text, more=more)
        end.send(control.FromEgress(status=status).SerializeToString())
    await until(lambda: bool(egress.counters))
    egress.denied("b", "q")
    assert egress.status()["callouts"] == {
        "a/p": {"web": {"calls": 3}},
        "b/q": {"(unknown)": {"denied.upstreams": 1}},
    }
    egress.close()
    end.close()


BAD_COUNTERS = {
    "no json": "}",
    "deep": "[" * 30_000,
    "long": '{"a": "' + "x" * 40_000,
    "list": "[]",
    "flat": '{"a/p": 1}',
    "shallow": '{"a/p": {"web": 1}}',
    "text": '{"a/p": {"web": {"calls": "1"}}}',
    "truth": '{"a/p": {"web": {"calls": true}}}',
    "fraction": '{"a/p": {"web": {"calls": NaN}}}',
    "negative": '{"a/p": {"web": {"calls": -1}}}',
    "large": '{"a/p": {"web": {"calls": 9223372036854775808}}}',
    "huge": '{"a/p": {"web": {"calls": %s}}}' % ("9" * 5_000),
    "deeper": '{"a/p": {"web": {"calls": {}}}}',
}


@pytest.mark.parametrize("text", BAD_COUNTERS.values(), ids=BAD_COUNTERS)
async def test_one_whose_counters_cannot_be_read_is_replaced(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """The broker reads what strangers send: what has become of it must not become the supervisor's trouble."""
    monkeypatch.setattr(egress_module, "MAX_STATUS_BYTES", 32_000)
    zygote = FakeZygote(EGRESS_INDEX)
    egress = Egress(zygote)  # type: ignore[arg-type]
    egress.open(rules("a"), ignore, lambda: 0)
    status = control.EgressStatus(number=1, counters_json=text, more=text.endswith("x"))
    zygote.asked[0].send(control.FromEgress(status=status).SerializeToString())
    await until(lambda: len(zygote.asked) == 2)
    zygote.asked[1].send(b"\xff")
    await until(lambda: len(zygote.asked) == 3)
    assert egress.restarts == 2
    egress.close()
    for end in zygote.asked:
        end.close()


async def test_a_broker_that_ends_its_socket_is_killed(processes: list[subprocess.Popen[bytes]]) -> None:
    zygote = FakeZygote(EGRESS_INDEX)
    egress = Egress(zygote)  # type: ignore[arg-type]
    egress.open(rules("a"), ignore, lambda: 0)
    egress.forked(processes[0].pid)
    assert egress.pid == processes[0].pid
    zygote.asked[0].close()
    await until(lambda: processes[0].poll() is not None)
    assert processes[0].returncode == -signal.SIGKILL
    egress.close()


async def test_one_that_the_zygote_tells_of_late_is_not_taken_for_the_next(
    processes: list[subprocess.Popen[bytes]],
) -> None:
    """Its socket has ended before: it is killed, and the next one goes on under its own number."""
    zygote = FakeZygote(EGRESS_INDEX)
    egress = Egress(zygote)  # type: ignore[arg-type]
    egress.open(rules("a"), ignore, lambda: 0)
    zygote.asked[0].close()
    await until(lambda: len(zygote.asked) == 2)
    egress.forked(processes[0].pid)
    assert egress.pid == 0
    egress.forked(processes[1].pid)
    assert processes[0].wait(5) == -signal.SIGKILL
    egress.exited(processes[0].pid, -signal.SIGKILL)
    assert egress.pid == processes[1].pid
    assert processes[1].poll() is None
    egress.close()
    zygote.asked[1].close()


async def test_a_process_that_has_ended_is_not_killed_by_its_number(
    processes: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number may be somebody else's by then."""
    zygote = FakeZygote(EGRESS_INDEX)
    egress = Egress(zygote)  # type: ignore[arg-type]
    egress.open(rules("a"), ignore, lambda: 0)
    egress.forked(processes[0].pid)
    egress.exited(processes[1].pid, 0)
    assert egress.pid == processes[0].pid
    processes[0].terminate()
    processes[0].wait()  # as the zygote does, before it tells
    killed: list[object] = []
    monkeypatch.setattr(os, "kill", lambda *who: killed.append(who))
    zygote.asked[0].close()
    await until(lambda: len(zygote.asked) == 2)
    egress.forked(processes[1].pid)
    egress.exited(processes[1].pid, 0)
    assert egress.pid == 0
    zygote.asked[1].close()
    await until(lambda: len(zygote.asked) == 3)
    assert killed == []
    assert processes[1].poll() is None
    monkeypatch.undo()
    egress.close()
    zygote.asked[2].close()
