"""
The callouts of one worker on their way through the supervisor: which are open, and how much of their answers waits.

Nothing that a callout carries is looked at here: the broker reads it, a process that holds no privilege. What is
checked here is who calls, how much is open, and that no answer reaches anybody else.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from sandboxd.limits import KIB
from sandboxd.protos import control_pb2 as control
from sandboxd.supervisor.prepare import Blob

SPARE_CALLS = 64
"""Beyond the policy's callouts in flight: those that the guest has cancelled and the broker has not."""
ENOUGH_QUEUED_BYTES = 256 * KIB
"""When a worker has so much to read, the broker gets no leave to send more."""
ACK_BYTES = 128 * KIB
"""A quarter of what the broker may have under way; smaller answers are reported together."""
LOOK_AGAIN_S = 0.005

_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class CalloutPiece:
    """A worker's event: a piece of a request."""

    vm_id: int
    call_id: int
    data: bytes
    more: bool


@dataclass(frozen=True, slots=True)
class Rules:
    """What the broker is told of one version of a tenant."""

    tenant: str
    policy_path: str
    text: Blob
    material: Blob
    redaction_key: bytes

    def frame(self, worker_id: int) -> control.ToEgress:
        """Return the frame; the two blobs go with it."""
        return control.ToEgress(
            rules=control.EgressRules(
                worker_id=worker_id,
                tenant=self.tenant,
                policy_path=self.policy_path,
                redaction_key=self.redaction_key,
            )
        )


def lost_answer(call_id: int, reason: str) -> control.ToWorker:
    """Return what ends a worker's callout that nothing else will answer."""
    reply = control.CalloutReply(lost=control.CalloutLost(reason=reason))
    return control.ToWorker(callout_answer=control.CalloutAnswer(call_id=call_id, data=reply.SerializeToString()))


class Broker(Protocol):
    """Where requests go."""

    @property
    def ready(self) -> bool:
        """Whether it takes any."""

    def send(self, frame: control.ToEgress, fds: tuple[int, ...] = ()) -> None:
        """Send a frame; never raises."""

    def forget(self, route: CalloutRoute) -> None:
        """The worker is gone."""


class CalloutRoute:
    """
    Args:
        broker: see `Broker`.
        rules: of the worker's version.
        to_worker: sends it a frame.
        queued_bytes: how much waits to be read by it.
    """

    def __init__(
        self,
        broker: Broker,
        rules: Rules,
        to_worker: Callable[[control.ToWorker], None],
        queued_bytes: Callable[[], int],
    ) -> None:
        self.worker_id = next(_numbers)
        self.rules = rules
        self._broker = broker
        self._to_worker = to_worker
        self._queued_bytes = queued_bytes
        self._open: set[tuple[int, int]] = set()
        self._of_vm: Counter[int] = Counter()
        self._last_id: dict[int, int] = {}
        self._unreported = 0
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def announce(self) -> None:
        """Tell the broker of the rules."""
        self._broker.send(self.rules.frame(self.worker_id), (self.rules.text.fd, self.rules.material.fd))

    # --- from the worker, hostile ---

    def take(self, piece: CalloutPiece, plugin: str, most: int) -> None:
        """
        Pass a piece on, or drop it if its call is over.

        Args:
            piece: of a VM that may call.
            plugin: the VM's.
            most: how many callouts the plugin may have in flight.
        """
        key = (piece.vm_id, piece.call_id)
        first = piece.call_id > self._last_id.get(piece.vm_id, 0)
        if first:
            self._last_id[piece.vm_id] = piece.call_id
            if not self._broker.ready:
                self._lose(key, "the egress broker is not running")
                return
            if self._of_vm[piece.vm_id] >= most + SPARE_CALLS:
                self._lose(key, "too many callouts are in flight")
                return
            self._open.add(key)
            self._of_vm[piece.vm_id] += 1
        if key in self._open:
            callout = control.EgressCallout(
                worker_id=self.worker_id,
                vm_id=piece.vm_id,
                plugin=plugin,
                call_id=piece.call_id,
                data=piece.data,
                more=piece.more,
                first=first,
            )
            self._broker.send(control.ToEgress(callout=callout))

    def vm_gone(self, vm_id: int) -> None:
        """A VM failed or was closed: its callouts are nobody's any more."""
        if self._of_vm.pop(vm_id, 0):
            self._open = {key for key in self._open if key[0] != vm_id}
            gone = control.EgressVmGone(worker_id=self.worker_id, vm_id=vm_id)
            self._broker.send(control.ToEgress(vm_gone=gone))

    def close(self) -> None:
        """The worker is gone."""
        self._closed = True
        self._open.clear()
        if self._timer is not None:
            self._timer.cancel()
        self._broker.forget(self)

    # --- from the broker ---

    def answer(self, answer: control.EgressAnswer) -> None:
        """Pass an answer on to the worker, if anybody there waits for it."""
        key = (answer.vm_id, answer.call_id)
        if key in self._open:
            if answer.data or not answer.last:
                piece = control.CalloutAnswer(call_id=answer.call_id, data=answer.data, more=answer.more)
                self._to_worker(control.ToWorker(callout_answer=piece))
            if answer.last:
                self._over(key)
        self._unreported += len(answer.data)
        self._report()

    def broker_lost(self) -> None:
        """The broker died: what was under way has no answer any more."""
        self._unreported = 0
        for key in list(self._open):
            self._over(key)
            self._lose(key, "the egress broker is gone")

    def _over(self, key: tuple[int, int]) -> None:
        self._open.discard(key)
        self._of_vm[key[0]] -= 1

    def _lose(self, key: tuple[int, int], reason: str) -> None:
        self._to_worker(lost_answer(key[1], reason))

    def _report(self) -> None:
        if self._unreported < ACK_BYTES or self._timer is not None or self._closed:
            return
        if self._queued_bytes() > ENOUGH_QUEUED_BYTES:
            self._timer = asyncio.get_running_loop().call_later(LOOK_AGAIN_S, self._look_again)
            return
        taken = control.EgressTaken(worker_id=self.worker_id, bytes=self._unreported)
        self._unreported = 0
        self._broker.send(control.ToEgress(taken=taken))

    def _look_again(self) -> None:
        self._timer = None
        self._report()
