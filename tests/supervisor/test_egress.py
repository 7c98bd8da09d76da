"""The supervisor's handle of the broker: forked when it is needed, replaced when it ends, told of all rules."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable

from sandboxd.protos import control_pb2 as control
from sandboxd.supervisor import frames
from sandboxd.supervisor.callouts import CalloutPiece, Rules
from sandboxd.supervisor.egress import EGRESS_INDEX, Egress
from sandboxd.supervisor.prepare import Blob


class FakeZygote:
    """Keeps the brokers' ends of their sockets."""

    def __init__(self) -> None:
        self.asked: list[socket.socket] = []
        self.fails = False

    def ask(self, index: int, theirs: socket.socket) -> None:
        assert index == EGRESS_INDEX
        if self.fails:
            raise BrokenPipeError
        self.asked.append(socket.socket(fileno=os.dup(theirs.fileno())))


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


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.01)


def ignore(_frame: control.ToWorker) -> None:
    pass


async def test_it_is_forked_when_the_first_worker_needs_it() -> None:
    zygote = FakeZygote()
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
    zygote = FakeZygote()
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
    zygote = FakeZygote()
    zygote.fails = True
    egress = Egress(zygote)  # type: ignore[arg-type]
    egress.open(rules("a"), ignore, lambda: 0)
    assert not egress.ready
    zygote.fails = False
    await until(lambda: egress.ready)
    egress.close()
    zygote.asked[0].close()


async def test_rules_that_serve_are_those_of_older_workers_and_of_no_other_tenant() -> None:
    zygote = FakeZygote()
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
    zygote = FakeZygote()
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
