"""
What a VM gets and asks for beside its channel: ticks, notices of queues, callouts.

hostcore's ``poll`` comes back for it; the VM's thread then delivers what waits and sends on what the guest asked for.
Other threads only put things into the inbox.
"""

from __future__ import annotations

import time
from collections import deque
from functools import partial
from typing import Final, Protocol

from sandboxd.limits import MS_NS
from sandboxd.protos import control_pb2 as control
from sandboxd.vm.hostcore_answers import Delivered, VmStatus
from sandboxd.vm.instance import Vm
from sandboxd.vm.messages import Delivery, DeliveryKind, Request, RequestKind, decode_request
from sandboxd.worker.file_journal import FileJournal

QUEUE_LOOK_MS: Final = 100
"""
How often a VM that is to be told of queues looks at them unasked: a VM in another process cannot wake it.
"""
MOST_AT_ONCE: Final = 16
"""Deliveries before the client's events have their turn again."""
LATER_MS: Final = 20
"""Pause after ``Delivered.LATER``."""

_TICK: Final = Delivery(DeliveryKind.TICK)
_QUEUES: Final = Delivery(DeliveryKind.QUEUES)
_METRICS: Final = Delivery(DeliveryKind.METRICS)


class Bell(Protocol):
    """Tells the VM's thread that there is something for it: flag and eventfd."""

    def ring(self) -> None:
        """Any thread may call it."""

    def clear(self) -> None:
        """The VM's thread is about to look."""


class Exchange(Protocol):
    """Where requests go: other VMs of this worker, and the supervisor. Called on the VM's thread."""

    def notify(self, number: int) -> None:
        """Tell the VM of that number to look at its queues."""

    def call(self, errands: Errands, request: Request) -> None:
        """Send a callout on."""

    def metrics(self, errands: Errands, data: bytes) -> None:
        """Report the VM's metrics."""

    def changes(self, vm_id: int, changes: list[control.FileChange]) -> None:
        """Report what the guest has changed in its folders."""

    def forget(self, errands: Errands) -> None:
        """The VM is over: cancel its callouts, and deliver nothing more for them."""


class Errands:
    """
    Inbox and outbox of one VM, all generations of it.

    Args:
        number: the VM's, the same as in `Exchange.notify`.
        bell: see `Bell`.
        exchange: see `Exchange`.
    """

    def __init__(self, number: int, bell: Bell, exchange: Exchange) -> None:
        self.number = number
        self.generation = 0
        self._bell = bell
        self._exchange = exchange
        self._inbox: deque[Delivery] = deque()
        self._put_bytes = 0
        self._taken_bytes = 0
        """Two counters, each with one writer: the main thread puts, the VM's thread takes."""
        self._queues_ready = False
        self._metrics_wanted = False
        self._next_look_ns = 0
        self._not_before_ns = 0
        # Not `self`: a circle would keep the channel's mapping until the garbage collector comes by.
        self._files = FileJournal(partial(exchange.changes, number))

    # --- any thread ---

    def put(self, delivery: Delivery) -> None:
        """Have this delivered. What is in the inbox is bounded by the callouts in flight."""
        self._inbox.append(delivery)
        self._put_bytes += delivery.size
        self._bell.ring()

    @property
    def waiting_bytes(self) -> int:
        """Size of what waits in the inbox."""
        return self._put_bytes - self._taken_bytes

    def poke(self) -> None:
        """Have the VM look at its queues."""
        self._queues_ready = True
        self._bell.ring()

    def want_metrics(self) -> None:
        """Have the VM report its metrics."""
        self._metrics_wanted = True
        self._bell.ring()

    # --- the VM's thread ---

    def reset(self, generation: int) -> None:
        """A VM begins or has ended: what was for the one before is dropped."""
        self._files.flush()
        self.generation = generation
        self._exchange.forget(self)  # nothing more is put for the VM before
        while self._inbox:
            self._taken_bytes += self._inbox.popleft().size
        self._queues_ready = False
        self._bell.clear()

    def sleep_ms(self, status: VmStatus) -> float | None:
        """Return how long the VM may sleep; None: until it is woken."""
        waits: list[float] = []
        if status.next_tick_ns:
            waits.append((status.next_tick_ns - time.time_ns()) / MS_NS)
        if status.queues_watched:
            waits.append(QUEUE_LOOK_MS)
        if self._inbox or self._queues_ready or self._metrics_wanted:
            waits.append((self._not_before_ns - time.monotonic_ns()) / MS_NS)
        if (wait_ms := self._files.wait_ms()) is not None:
            waits.append(wait_ms)
        return max(0.0, min(waits)) if waits else None

    def deliver(self, vm: Vm) -> None:
        """
        Deliver all that waits or is due.

        Raises:
            GuestFailure: the VM is over.
        """
        self._bell.clear()
        self._files.flush_if_due()
        if time.monotonic_ns() < self._not_before_ns:
            return
        for _ in range(min(len(self._inbox), MOST_AT_ONCE)):
            if not self._one(vm, self._inbox[0]):
                return
            self._taken_bytes += self._inbox.popleft().size
        if self._inbox:
            self._bell.ring()
        self._look_at_queues(vm)
        if self._metrics_wanted:
            self._metrics_wanted = False
            vm.deliver(_METRICS.encode(time.time_ns()))
        if vm.status().next_tick_ns:
            vm.deliver(_TICK.encode(time.time_ns()))  # hostcore knows whether it is due

    def _look_at_queues(self, vm: Vm) -> None:
        now_ns = time.monotonic_ns()
        if not (self._queues_ready or now_ns >= self._next_look_ns):
            return
        self._queues_ready = False
        self._next_look_ns = now_ns + QUEUE_LOOK_MS * MS_NS
        if not vm.status().queues_watched:
            return
        match vm.deliver(_QUEUES.encode(time.time_ns())):
            case Delivered.AGAIN:
                self.poke()
            case Delivered.LATER:
                self._queues_ready = True
                self._wait()

    def _one(self, vm: Vm, delivery: Delivery) -> bool:
        result = vm.deliver(delivery.encode(time.time_ns()))
        if result is Delivered.NO_ROOM:
            # It never fits while the heap is this full: the guest gets a failure, which needs no room.
            result = vm.deliver(_failed(delivery).encode(time.time_ns()))
        if result is Delivered.LATER:
            self._wait()
            return False
        return True

    def _wait(self) -> None:
        self._not_before_ns = time.monotonic_ns() + LATER_MS * MS_NS

    def send(self, vm: Vm) -> None:
        """Send on all that the guest has asked for."""
        while (message := vm.take_request()) is not None:
            request = decode_request(message)
            if request.kind is RequestKind.QUEUE_NOTIFY:
                self._exchange.notify(request.call_id)
            elif request.kind is RequestKind.METRICS:
                self._exchange.metrics(self, request.parts[0])
            elif request.kind is RequestKind.FILE_CHANGE:
                self._files.add(request)
            else:
                self._exchange.call(self, request)
        self._files.flush_if_due()


_UNAVAILABLE: Final = 14
"""gRPC status."""


def _failed(delivery: Delivery) -> Delivery:
    if delivery.kind is DeliveryKind.HTTP_RESPONSE:
        return Delivery(DeliveryKind.HTTP_RESPONSE, delivery.call_id, status=1)
    return Delivery(DeliveryKind.GRPC_CLOSE, delivery.call_id, status=_UNAVAILABLE)
