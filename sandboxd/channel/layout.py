"""
The numbers of ``docs/channel.md``: offsets, record kinds, flags, codes.

No behaviour. Names are those of the document, with a prefix for the table they come from.
"""

import struct
from typing import Final

from sandboxd import limits

# --- the file ---

MAGIC: Final = 0x43584253
"""The bytes ``SBXC``."""
VERSION: Final = 1
HEADER_BYTES: Final = 4096
MIN_RING_BYTES: Final = 65536
MAX_RING_BYTES: Final = limits.MAX_RING_BYTES
DEFAULT_RING_BYTES: Final = 1048576

# Offsets in the header page; every field is a little-endian u32.
OFFSET_MAGIC: Final = 0
OFFSET_VERSION: Final = 4
OFFSET_RING_BYTES: Final = 8
OFFSET_RESERVED: Final = 12
OFFSET_SQ_TAIL: Final = 64
OFFSET_SQ_HEAD: Final = 128
OFFSET_CQ_TAIL: Final = 192
OFFSET_CQ_HEAD: Final = 256
OFFSET_VM_NEED_WAKE: Final = 320
OFFSET_VM_WANTS_SPACE: Final = 324
OFFSET_CLIENT_NEED_WAKE: Final = 384
OFFSET_CLIENT_WANTS_SPACE: Final = 388
OFFSET_VM_STATE: Final = 448
OFFSET_VM_GENERATION: Final = 452
OFFSET_CALL_STAMP: Final = 456
OFFSET_INBOX: Final = 460
OFFSET_VM_FAILURE: Final = 464

VM_STARTING: Final = 0
VM_READY: Final = 1
VM_FAILED: Final = 2
VM_GONE: Final = 3

COUNTER_MASK: Final = 0xFFFFFFFF


def valid_ring_bytes(ring_bytes: int) -> bool:
    """Return whether a ring may have this size: a power of two within the bounds."""
    return MIN_RING_BYTES <= ring_bytes <= MAX_RING_BYTES and ring_bytes & (ring_bytes - 1) == 0


def file_bytes(ring_bytes: int) -> int:
    """Return the size of a channel's memfd."""
    return HEADER_BYTES + 2 * ring_bytes


# --- records ---

RECORD: Final = struct.Struct("<IHHQIIQ")
"""size, kind, flags, stream_id, event_seq, payload_len, arg"""
RECORD_BYTES: Final = 32
PAD_HEAD: Final = struct.Struct("<IHH")
"""size, kind, flags of a PAD"""

PAD: Final = 0

FLAG_MORE: Final = 1
FLAG_END_OF_STREAM: Final = 2
FLAG_MODIFIED: Final = 4
FLAG_AS_SUBMITTED: Final = 8
FLAG_TRUNCATED: Final = 16
FLAG_RESET: Final = 32
FLAGS_ALL: Final = 63

# Submissions.
STREAM_OPEN: Final = 1
REQUEST_HEADERS: Final = 2
REQUEST_BODY: Final = 3
REQUEST_TRAILERS: Final = 4
RESPONSE_HEADERS: Final = 5
RESPONSE_BODY: Final = 6
RESPONSE_TRAILERS: Final = 7
ATTRIBUTES: Final = 8
STREAM_CLOSE: Final = 9
SHUTDOWN: Final = 10
NEW_CONNECTION: Final = 16
DOWNSTREAM_DATA: Final = 17
UPSTREAM_DATA: Final = 18
DOWNSTREAM_CLOSE: Final = 19
UPSTREAM_CLOSE: Final = 20

SUBMISSION_NAMES: Final = {
    STREAM_OPEN: "STREAM_OPEN",
    REQUEST_HEADERS: "REQUEST_HEADERS",
    REQUEST_BODY: "REQUEST_BODY",
    REQUEST_TRAILERS: "REQUEST_TRAILERS",
    RESPONSE_HEADERS: "RESPONSE_HEADERS",
    RESPONSE_BODY: "RESPONSE_BODY",
    RESPONSE_TRAILERS: "RESPONSE_TRAILERS",
    ATTRIBUTES: "ATTRIBUTES",
    STREAM_CLOSE: "STREAM_CLOSE",
    SHUTDOWN: "SHUTDOWN",
    NEW_CONNECTION: "NEW_CONNECTION",
    DOWNSTREAM_DATA: "DOWNSTREAM_DATA",
    UPSTREAM_DATA: "UPSTREAM_DATA",
    DOWNSTREAM_CLOSE: "DOWNSTREAM_CLOSE",
    UPSTREAM_CLOSE: "UPSTREAM_CLOSE",
}
WITHOUT_VERDICT: Final = frozenset({STREAM_OPEN, ATTRIBUTES})
"""Submissions that the VM does not answer."""

# Completions; 2 to 7, 17 and 18 have the names and numbers of the submissions.
VERDICT: Final = 1
LOCAL_RESPONSE: Final = 8
PROPERTY_SET: Final = 9
CLEAR_ROUTE_CACHE: Final = 10
CLOSE_STREAM: Final = 11
LOG: Final = 12
DENIED: Final = 13
VM_STARTED: Final = 14
LOGS_DROPPED: Final = 15
NOTE: Final = 16

COMPLETION_NAMES: Final = {
    VERDICT: "VERDICT",
    REQUEST_HEADERS: "REQUEST_HEADERS",
    REQUEST_BODY: "REQUEST_BODY",
    REQUEST_TRAILERS: "REQUEST_TRAILERS",
    RESPONSE_HEADERS: "RESPONSE_HEADERS",
    RESPONSE_BODY: "RESPONSE_BODY",
    RESPONSE_TRAILERS: "RESPONSE_TRAILERS",
    LOCAL_RESPONSE: "LOCAL_RESPONSE",
    PROPERTY_SET: "PROPERTY_SET",
    CLEAR_ROUTE_CACHE: "CLEAR_ROUTE_CACHE",
    CLOSE_STREAM: "CLOSE_STREAM",
    LOG: "LOG",
    DENIED: "DENIED",
    VM_STARTED: "VM_STARTED",
    LOGS_DROPPED: "LOGS_DROPPED",
    NOTE: "NOTE",
    DOWNSTREAM_DATA: "DOWNSTREAM_DATA",
    UPSTREAM_DATA: "UPSTREAM_DATA",
}
NOTICE_KINDS: Final = frozenset({LOG, DENIED, VM_STARTED, LOGS_DROPPED, NOTE})
"""Completions that say something of the VM, where the others do something to a stream."""

TCP_DATA_KINDS: Final = frozenset({DOWNSTREAM_DATA, UPSTREAM_DATA})
"""Effects on connections alone."""
BODY_KINDS: Final = frozenset({REQUEST_BODY, RESPONSE_BODY}) | TCP_DATA_KINDS
"""Bytes that may be ``AS_SUBMITTED``."""
MAP_KINDS: Final = frozenset({REQUEST_HEADERS, REQUEST_TRAILERS, RESPONSE_HEADERS, RESPONSE_TRAILERS})
HTTP_KINDS: Final = MAP_KINDS | {REQUEST_BODY, RESPONSE_BODY, LOCAL_RESPONSE, CLEAR_ROUTE_CACHE}
"""Effects that a connection cannot have."""

CODE_OK: Final = 0
CODE_UNKNOWN_STREAM: Final = 1
CODE_OUT_OF_ORDER: Final = 2
CODE_LIMIT: Final = 3
CODE_STREAM_OVER: Final = 4

STATE_REQUEST_PAUSED: Final = 1
STATE_RESPONSE_PAUSED: Final = 2
STATE_REQUEST_HEADERS_HELD: Final = 4
STATE_RESPONSE_HEADERS_HELD: Final = 8
STATE_REQUEST_ALL_STOPPED: Final = 16
STATE_RESPONSE_ALL_STOPPED: Final = 32
STATES_ALL: Final = 63

NOTE_NAMES: Final = {
    1: "second_local_response",
    2: "local_response_after_response",
    3: "map_not_available",
    4: "buffer_not_available",
    5: "body_limit",
    6: "done_never_came",
    7: "continue_without_effect",
    8: "property_missing",
    9: "metrics_limit",
}
NOTE_BODY_LIMIT: Final = 5
NOTE_METRICS_LIMIT: Final = 9
NOTE_PROPERTY_MISSING: Final = 8
"""The one note with a payload: the property's path."""
MAX_MISSED_BYTES: Final = 256
"""A longer path is nothing that a proxy could have."""
