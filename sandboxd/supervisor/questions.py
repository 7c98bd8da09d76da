"""What VMs ask of shared data that is kept outside, and the answers; layout in ``docs/hostcore.md``. Pure."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from sandboxd.errors import WorkerError

OK, NOT_FOUND, CAS_MISMATCH, INTERNAL_FAILURE = 0, 1, 8, 10
GET, SET = 1, 2
MAX_KEY_BYTES: Final = 1024
MAX_VALUE_BYTES: Final = 48 * 1024
"""With a key, in one control frame."""

_QUESTION: Final = struct.Struct("<III")
_ANSWER: Final = struct.Struct("<II")


@dataclass(frozen=True, slots=True)
class Question:
    """Get or set; ``cas`` 0: whatever is there."""

    kind: int
    cas: int
    key: bytes
    value: bytes


def read_question(data: bytes) -> Question:
    """
    Check what a worker asks.

    Raises:
        WorkerError: no honest worker asks so.
    """
    if len(data) < _QUESTION.size:
        raise WorkerError(f"asked for shared data with {len(data)} bytes")
    kind, cas, key_bytes = _QUESTION.unpack_from(data)
    rest = data[_QUESTION.size :]
    if kind not in {GET, SET} or key_bytes > min(len(rest), MAX_KEY_BYTES):
        raise WorkerError(f"asked for shared data in a form of its own ({kind}, {key_bytes})")
    key, value = rest[:key_bytes], rest[key_bytes:]
    if len(value) > (MAX_VALUE_BYTES if kind == SET else 0):
        raise WorkerError(f"asked for shared data with a value of {len(value)} bytes")
    return Question(kind, cas, key, value)


def answer(status: int, cas: int = 0, value: bytes = b"") -> bytes:
    """Return an answer as hostcore reads it."""
    return _ANSWER.pack(status, cas & 0xFFFFFFFF) + value
