"""
Where the requests of a worker's VMs go: to other VMs of the worker, and to the supervisor.

Callouts carry a number of this process's own over the control socket, so that an answer that comes late can never
meet a call of a VM that was started anew. Nothing is decided here: the supervisor decides what a callout may do.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from sandboxd.errors import WorkerError
from sandboxd.limits import KIB, METRICS_PER_FRAME, MIB
from sandboxd.protos import control_pb2 as control
from sandboxd.vm.messages import Delivery, DeliveryKind, Request, RequestKind, decode_metrics
from sandboxd.worker.control import ControlSocket
from sandboxd.worker.errands import Errands

PIECE_BYTES: Final = 48 * KIB
"""Of one frame; see ``Callout`` in control.proto."""
MAX_ANSWER_BYTES: Final = 64 * MIB
"""Of one answer in pieces. The supervisor sends less; a bug of its must not eat the worker's memory."""
MAX_INBOX_BYTES: Final = 16 * MIB
"""What may wait for one VM; a gRPC stream that brings more than its VM takes is ended."""

_METRIC_OVERHEAD_BYTES: Final = 8
_RESOURCE_EXHAUSTED: Final = 8
"""gRPC status."""
_UNAVAILABLE: Final = 14
"""gRPC status."""
_FAILED: Final = 1
"""Any status but 0: an HTTP call without a response."""


@dataclass(slots=True)
class _Call:
    errands: Errands
    call_id: int
    """hostcore's."""
    kind: RequestKind
    pieces: list[bytes] = field(default_factory=list)


class WorkerExchange:
    """
    Args:
        socket: to the supervisor.
        find: returns the errands of the VM with a number; None: it is not in this worker. Any thread may call it.
    """

    def __init__(self, socket: ControlSocket, find: Callable[[int], Errands | None]) -> None:
        self._socket = socket
        self._find = find
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._calls: dict[int, _Call] = {}
        self._by_vm: dict[Errands, dict[int, int]] = {}
        """The numbers of a VM's callouts by hostcore's ids."""

    # --- VM threads ---

    def notify(self, number: int) -> None:
        """Tell the VM of that number to look at its queues; one in another worker looks by itself."""
        errands = self._find(number)
        if errands is not None:
            errands.poke()

    def call(self, errands: Errands, request: Request) -> None:
        """Send on what a guest asks for; the answers come to `answer`."""
        number = self._number(errands, request)
        if number is None:  # it has ended meanwhile, and the guest will hear of it
            return
        self._send(errands, number, _encoded(request))
        if request.kind is RequestKind.GRPC_CANCEL:
            with self._lock:
                self._drop(number)

    def metrics(self, errands: Errands, data: bytes) -> None:
        """Report a VM's metrics, in as many frames as it takes."""
        frame = control.VmMetrics(vm_id=errands.number, generation=errands.generation)
        size = 0
        for metric in decode_metrics(data):
            item = control.Metric(type=metric.type, name=metric.name, value=metric.value, buckets=metric.buckets)
            size += item.ByteSize() + _METRIC_OVERHEAD_BYTES
            if size > PIECE_BYTES or len(frame.metrics) == METRICS_PER_FRAME:
                frame.more = True
                self._socket.send(vm_metrics=frame)
                frame = control.VmMetrics(vm_id=errands.number, generation=errands.generation)
                size = item.ByteSize()
            frame.metrics.append(item)
        self._socket.send(vm_metrics=frame)

    def changes(self, vm_id: int, changes: list[control.FileChange]) -> None:
        """Report what a guest has changed in its folders."""
        self._socket.send(file_changes=control.FileChanges(vm_id=vm_id, changes=changes))

    def forget(self, errands: Errands) -> None:
        """The VM is over; the supervisor knows what that means for its callouts."""
        with self._lock:
            for number in self._by_vm.pop(errands, {}).values():
                self._calls.pop(number, None)

    def _number(self, errands: Errands, request: Request) -> int | None:
        with self._lock:
            mine = self._by_vm.setdefault(errands, {})
            if request.kind not in (RequestKind.HTTP_CALL, RequestKind.GRPC_CALL, RequestKind.GRPC_STREAM):
                return mine.get(request.call_id)
            number = mine[request.call_id] = next(self._numbers)
            self._calls[number] = _Call(errands, request.call_id, request.kind)
            return number

    def _send(self, errands: Errands, number: int, message: control.CalloutRequest) -> None:
        for piece, more in _pieces(message.SerializeToString()):
            self._socket.send(
                callout=control.Callout(vm_id=errands.number, call_id=number, data=piece, more=more),
            )

    # --- the main thread ---

    def answer(self, frame: control.CalloutAnswer) -> None:
        """
        Take a piece of an answer; the whole goes to the VM. One for a callout that is over is dropped.

        Raises:
            WorkerError: it makes no sense.
        """
        with self._lock:
            call = self._calls.get(frame.call_id)
        if call is None:
            return
        call.pieces.append(frame.data)
        if sum(map(len, call.pieces)) > MAX_ANSWER_BYTES:
            raise WorkerError(f"an answer to a callout of more than {MAX_ANSWER_BYTES} bytes")
        if frame.more:
            return
        data, call.pieces = b"".join(call.pieces), []
        reply = control.CalloutReply()
        reply.ParseFromString(data)
        self._deliver(frame.call_id, call, reply)

    def _deliver(self, number: int, call: _Call, reply: control.CalloutReply) -> None:
        if reply.HasField("lost"):
            delivery, last = _lost(call.call_id, call.kind, reply.lost.reason.encode())
        else:
            delivery, last = _delivery(call.call_id, call.kind, reply)
        if not last and call.errands.waiting_bytes + len(delivery.body) > MAX_INBOX_BYTES:
            self._send(call.errands, number, control.CalloutRequest(cancel=control.CancelCallout()))
            delivery = Delivery(
                DeliveryKind.GRPC_CLOSE, call.call_id, _RESOURCE_EXHAUSTED, body=b"the VM does not take its messages"
            )
            last = True
        with self._lock:
            if number not in self._calls:  # the VM has ended since
                return
            if last:
                self._drop(number)
            call.errands.put(delivery)

    def _drop(self, number: int) -> None:
        call = self._calls.pop(number, None)
        if call is not None and call.errands in self._by_vm:
            self._by_vm[call.errands].pop(call.call_id, None)


def _pieces(data: bytes) -> Iterator[tuple[bytes, bool]]:
    """Cut a message; at least one piece, with whether another follows."""
    for start in range(0, len(data) or 1, PIECE_BYTES):
        yield data[start : start + PIECE_BYTES], start + PIECE_BYTES < len(data)


def _encoded(request: Request) -> control.CalloutRequest:
    first, second, third, fourth, fifth = request.parts
    match request.kind:
        case RequestKind.HTTP_CALL:
            call = control.HttpCall(
                upstream=first, headers=second, body=third, trailers=fourth, timeout_ms=request.argument
            )
            return control.CalloutRequest(http_call=call)
        case RequestKind.GRPC_CALL | RequestKind.GRPC_STREAM:
            rpc = control.GrpcCall(
                upstream=first,
                service=second,
                method=third,
                metadata=fourth,
                message=fifth,
                timeout_ms=request.argument,
            )
            if request.kind is RequestKind.GRPC_CALL:
                return control.CalloutRequest(grpc_call=rpc)
            return control.CalloutRequest(grpc_stream=rpc)
        case RequestKind.GRPC_SEND:
            send = control.GrpcSend(message=second, end_of_stream=bool(request.argument))
            return control.CalloutRequest(grpc_send=send)
        case RequestKind.GRPC_CLOSE:
            return control.CalloutRequest(grpc_half_close=control.GrpcHalfClose())
        case RequestKind.GRPC_CANCEL:
            return control.CalloutRequest(cancel=control.CancelCallout())
    raise WorkerError(f"request {request.kind.name} is no callout")


def _delivery(call_id: int, kind: RequestKind, reply: control.CalloutReply) -> tuple[Delivery, bool]:
    """Return what the VM gets, and whether it is the last for this callout."""
    which = reply.WhichOneof("reply")
    if (which == "http") != (kind is RequestKind.HTTP_CALL) or which is None:
        raise WorkerError(f"answer {which} to a {kind.name}")
    match which:
        case "http" if reply.http.failure:
            failure = reply.http.failure.encode()
            return Delivery(DeliveryKind.HTTP_RESPONSE, call_id, status=_FAILED, body=failure), True
        case "http":
            found = reply.http
            delivery = Delivery(
                DeliveryKind.HTTP_RESPONSE, call_id, headers=found.headers, body=found.body, trailers=found.trailers
            )
            return delivery, True
        case "initial_metadata":
            return Delivery(DeliveryKind.GRPC_INITIAL_METADATA, call_id, headers=reply.initial_metadata.metadata), False
        case "message":
            last = kind is RequestKind.GRPC_CALL
            return Delivery(DeliveryKind.GRPC_MESSAGE, call_id, body=reply.message.message), last
        case "trailing_metadata":
            return Delivery(
                DeliveryKind.GRPC_TRAILING_METADATA, call_id, trailers=reply.trailing_metadata.metadata
            ), False
        case _:
            message = reply.closed.message.encode()
            return Delivery(DeliveryKind.GRPC_CLOSE, call_id, reply.closed.status, body=message), True


def _lost(call_id: int, kind: RequestKind, reason: bytes) -> tuple[Delivery, bool]:
    if kind is RequestKind.HTTP_CALL:
        return Delivery(DeliveryKind.HTTP_RESPONSE, call_id, status=_FAILED, body=reason), True
    return Delivery(DeliveryKind.GRPC_CLOSE, call_id, _UNAVAILABLE, body=reason), True
