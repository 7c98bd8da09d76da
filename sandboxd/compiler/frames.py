"""
One job and one result, as bytes between the client and the compiler's process.

Pure. The job is made by the trusted side. The result is hostile: the client bounds it by the size of the file
it came in.
"""

from __future__ import annotations

import enum
import json
import struct
from dataclasses import dataclass
from typing import Final

from sandboxd.errors import InternalError

_LENGTHS: Final = struct.Struct("<4I")


class ExitCode(enum.IntEnum):
    """How the compiler's process ends; anything else is a crash."""

    DONE = 0
    """The output is the bundle."""
    REJECTED = 20
    """The output is the reason, in UTF-8: the module's fault."""
    INTERNAL = 21
    """The output is a text in UTF-8: our fault."""
    EXHAUSTED = 22
    """Memory ran out, or the bundle is too large."""


@dataclass(frozen=True, slots=True)
class Job:
    """What the compiler is to do. It opens no file: all it needs is here."""

    module: bytes
    hostcore: bytes
    membrane: bytes
    """As WAT."""
    granted: frozenset[str]
    memory_bytes: int
    engine: str
    """The identity that the client expects."""


def encode(job: Job) -> bytes:
    """Return the job as bytes."""
    settings = json.dumps(
        {"granted": sorted(job.granted), "memory_bytes": job.memory_bytes, "engine": job.engine}
    ).encode()
    parts = (settings, job.module, job.hostcore, job.membrane)
    return _LENGTHS.pack(*(len(part) for part in parts)) + b"".join(parts)


def decode(data: bytes) -> Job:
    """Return the job; `InternalError` if it is not one of `encode`'s."""
    if len(data) < _LENGTHS.size:
        raise InternalError("compiler: the job is too short")
    lengths = _LENGTHS.unpack_from(data)
    if len(data) != _LENGTHS.size + sum(lengths):
        raise InternalError("compiler: the job has the wrong length")
    parts: list[bytes] = []
    position = _LENGTHS.size
    for length in lengths:
        parts.append(data[position : position + length])
        position += length
    settings = json.loads(parts[0])
    return Job(
        module=parts[1],
        hostcore=parts[2],
        membrane=parts[3],
        granted=frozenset(settings["granted"]),
        memory_bytes=settings["memory_bytes"],
        engine=settings["engine"],
    )
