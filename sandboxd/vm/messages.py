"""
What passes between hostcore and the worker beside the channel; layout in ``docs/hostcore.md``. Pure.

*Deliveries* go in: ticks, queue notices, answers to callouts. *Requests* come out: callouts, and notices for other VMs.
A request comes out of hostcore, which shares its store with hostile code: it is checked like everything else.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import Final

from sandboxd.errors import WorkerError

_DELIVERY: Final = struct.Struct("<IIQIIII")
_REQUEST: Final = struct.Struct("<8I")
_PARTS: Final = 5
_METRIC: Final = struct.Struct("<IIIQ")
_HISTOGRAM: Final = 2
_MOST_BUCKETS: Final = 65


class DeliveryKind(enum.IntEnum):
    """``enum inbox_kind`` of hostcore."""

    TICK = 1
    QUEUES = 2
    HTTP_RESPONSE = 3
    GRPC_INITIAL_METADATA = 4
    GRPC_MESSAGE = 5
    GRPC_TRAILING_METADATA = 6
    GRPC_CLOSE = 7
    METRICS = 8
    """Have the VM send its metrics."""


class RequestKind(enum.IntEnum):
    """``enum outbox_kind`` of hostcore."""

    HTTP_CALL = 1
    GRPC_CALL = 2
    GRPC_STREAM = 3
    GRPC_SEND = 4
    GRPC_CANCEL = 5
    GRPC_CLOSE = 6
    QUEUE_NOTIFY = 7
    METRICS = 8
    FILE_CHANGE = 9
    """In a preopened folder; see `sandboxd.vm.folder_blob`."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """
    One message for the VM.

    ``status``: why an HTTP call failed (0: it did not), or a gRPC status. ``headers`` and ``trailers`` are pairs.
    """

    kind: DeliveryKind
    call_id: int = 0
    status: int = 0
    headers: bytes = b""
    body: bytes = b""
    trailers: bytes = b""

    @property
    def size(self) -> int:
        """Bytes that it holds."""
        return len(self.headers) + len(self.body) + len(self.trailers)

    def encode(self, now_ns: int) -> bytes:
        """Return it as hostcore reads it; ``now_ns``: wall clock."""
        lengths = (len(self.headers), len(self.body), len(self.trailers))
        head = _DELIVERY.pack(self.kind, self.call_id, now_ns, self.status, *lengths)
        return b"".join((head, self.headers, self.body, self.trailers))


@dataclass(frozen=True, slots=True)
class Request:
    """
    One message from the VM.

    ``argument``: time-out in milliseconds of a call, 1 for the end of the stream with a send. ``parts``: HTTP call:
    upstream, headers, body, trailers; gRPC call: upstream, service, method, metadata, message; gRPC stream: upstream,
    service, method, metadata; send: message. ``call_id`` of a notice is the number of the VM to be told; that
    of a change in a folder is the folder's, and the parts are path, bytes or another path, and a u64 offset or size.
    """

    kind: RequestKind
    call_id: int
    argument: int
    parts: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric of a VM; ``buckets`` as in ``Metric`` of control.proto."""

    type: int
    name: bytes
    value: int
    buckets: tuple[int, ...] = ()


def decode_metrics(data: bytes) -> tuple[Metric, ...]:
    """
    Read the first part of a `RequestKind.METRICS`.

    Raises:
        WorkerError: it is malformed.
    """
    found: list[Metric] = []
    position = 0
    try:
        while position < len(data):
            kind, name_bytes, buckets, value = _METRIC.unpack_from(data, position)
            position += _METRIC.size
            name = data[position : position + name_bytes]
            position += name_bytes
            if len(name) != name_bytes or kind > _HISTOGRAM or buckets > _MOST_BUCKETS:
                raise WorkerError(f"a malformed metric of type {kind}")
            found.append(Metric(kind, name, value, struct.unpack_from(f"<{buckets}Q", data, position)))
            position += 8 * buckets
    except struct.error as error:
        raise WorkerError(f"malformed metrics: {error}") from None
    return tuple(found)


def decode_request(data: bytes) -> Request:
    """
    Read a request.

    Raises:
        WorkerError: it is malformed.
    """
    if len(data) < _REQUEST.size:
        raise WorkerError(f"a request of {len(data)} bytes")
    kind, call_id, argument, *lengths = _REQUEST.unpack_from(data)
    if kind not in list(RequestKind) or _REQUEST.size + sum(lengths) != len(data):
        raise WorkerError(f"a malformed request of kind {kind}")
    parts: list[bytes] = []
    position = _REQUEST.size
    for length in lengths:
        parts.append(data[position : position + length])
        position += length
    assert len(parts) == _PARTS
    return Request(RequestKind(kind), call_id, argument, tuple(parts))
