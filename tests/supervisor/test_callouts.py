"""The supervisor's book of one worker's callouts: who may be answered, and how much waits."""

from __future__ import annotations

import asyncio

import pytest

from sandboxd.protos import control_pb2 as control
from sandboxd.supervisor import callouts
from sandboxd.supervisor.callouts import CalloutPiece, CalloutRoute, Rules
from sandboxd.supervisor.prepare import Blob
from sandboxd.supervisor.throttle import Throttle


class Broker:
    """What the route says."""

    def __init__(self) -> None:
        self.ready = True
        self.frames: list[control.ToEgress] = []

    def send(self, frame: control.ToEgress, fds: tuple[int, ...] = ()) -> None:
        assert len(fds) == (2 if frame.HasField("rules") else 0)
        self.frames.append(frame)

    def forget(self, route: CalloutRoute) -> None:
        raise NotImplementedError

    def calls(self) -> list[tuple[int, int, bool]]:
        found = [frame.callout for frame in self.frames if frame.HasField("callout")]
        return [(callout.vm_id, callout.call_id, callout.first) for callout in found]


class Rig:
    """A route between a broker and a worker."""

    def __init__(self) -> None:
        self.broker = Broker()
        self.answers: list[control.CalloutAnswer] = []
        self.queued = 0
        rules = Rules("acme", "p.yaml", Blob("text", b""), Blob("material", b""), bytes(32))
        self.route = CalloutRoute(self.broker, rules, self._to_worker, lambda: self.queued)

    def _to_worker(self, frame: control.ToWorker) -> None:
        self.answers.append(frame.callout_answer)

    def take(self, vm_id: int, call_id: int, *, more: bool = False, most: int = 1) -> None:
        self.route.take(CalloutPiece(vm_id, call_id, b"data", more), "main", most)

    def answer(self, vm_id: int, call_id: int, data: bytes = b"reply", *, last: bool = True) -> None:
        self.route.answer(control.EgressAnswer(vm_id=vm_id, call_id=call_id, data=data, last=last))

    def lost(self) -> list[tuple[int, str]]:
        replies = [(answer.call_id, control.CalloutReply.FromString(answer.data)) for answer in self.answers]
        return [(number, reply.lost.reason) for number, reply in replies if reply.HasField("lost")]


def test_pieces_of_an_open_call_go_on_and_those_of_others_nowhere() -> None:
    rig = Rig()
    rig.take(1, 5, more=True)
    rig.take(1, 5)
    rig.take(1, 4)  # never used, and older than the last
    rig.take(2, 5)  # another VM's
    rig.answer(1, 5)
    rig.take(1, 5)  # over
    assert rig.broker.calls() == [(1, 5, True), (1, 5, False), (2, 5, True)]


def test_an_answer_reaches_who_waits_and_nobody_else() -> None:
    rig = Rig()
    rig.take(1, 1)
    rig.answer(1, 2)
    rig.answer(2, 1)
    assert rig.answers == []
    rig.answer(1, 1, last=False)
    rig.answer(1, 1, b"")  # the end without a word
    rig.answer(1, 1)
    assert [answer.data for answer in rig.answers] == [b"reply"]


def test_calls_in_flight_are_bounded() -> None:
    rig = Rig()
    most = 3
    for number in range(1, most + callouts.SPARE_CALLS + 3):
        rig.take(1, number, more=True, most=most)
    refused = [most + callouts.SPARE_CALLS + 1, most + callouts.SPARE_CALLS + 2]
    assert rig.lost() == [(number, "too many callouts are in flight") for number in refused]
    rig.take(2, 1, most=most)
    assert len(rig.broker.calls()) == most + callouts.SPARE_CALLS + 1


def test_a_vm_that_is_gone_has_no_calls_and_its_successor_has_room() -> None:
    rig = Rig()
    rig.take(1, 1)
    rig.take(2, 1)
    rig.route.vm_gone(1)
    assert rig.broker.frames[-1].vm_gone.vm_id == 1
    rig.answer(1, 1)
    assert rig.answers == []
    rig.take(1, 2)
    rig.answer(1, 2)
    rig.answer(2, 1)
    assert [answer.call_id for answer in rig.answers] == [2, 1]


def test_without_a_broker_calls_fail_at_once() -> None:
    rig = Rig()
    rig.take(1, 1)
    rig.take(1, 2)
    rig.route.broker_lost()
    rig.broker.ready = False
    rig.take(1, 3, more=True)
    rig.take(1, 3)
    assert sorted(rig.lost()) == [
        (1, "the egress broker is gone"),
        (2, "the egress broker is gone"),
        (3, "the egress broker is not running"),
    ]
    rig.answer(1, 1)
    assert len(rig.answers) == 3


@pytest.mark.asyncio
async def test_the_broker_gets_no_leave_while_a_worker_does_not_read() -> None:
    rig = Rig()
    rig.take(1, 1)
    rig.queued = callouts.ENOUGH_QUEUED_BYTES + 1
    rig.answer(1, 1, b"x" * callouts.ACK_BYTES, last=False)
    await asyncio.sleep(3 * callouts.LOOK_AGAIN_S)
    assert not any(frame.HasField("taken") for frame in rig.broker.frames)
    rig.queued = 0
    await asyncio.sleep(3 * callouts.LOOK_AGAIN_S)
    assert [frame.taken.bytes for frame in rig.broker.frames if frame.HasField("taken")] == [callouts.ACK_BYTES]


def test_a_pace_is_kept_by_waiting() -> None:
    pace = Throttle(per_second=100, burst=10)
    assert [pace.spend(1, 5.0) for _ in range(10)] == [0.0] * 10
    assert pace.spend(1, 5.0) == pytest.approx(0.01)
    assert pace.spend(99, 5.0) == pytest.approx(1.0)
    assert pace.spend(1, 6.0) == pytest.approx(0.01)
