"""
The memory that the VMs of one tenant share: shared data and queues.

The trusted side makes it and reads its counters, nothing else. Any VM of the tenant may write anything there, so the
counters are the tenant's own word: each is read once, bounded, and used for nothing but to be shown.
"""

from __future__ import annotations

import os
import struct
import weakref
from dataclasses import dataclass, fields
from typing import Final

from sandboxd import limits
from sandboxd.channel.memfd import create_shared_region

_HEAP_AND_ENTRIES: Final = struct.Struct("<II")
_HEAP_AND_ENTRIES_AT: Final = 132
_COUNTERS: Final = struct.Struct("<7I")
_COUNTERS_AT: Final = 256
"""Offsets of ``docs/hostcore.md``."""
_ENTRY_SHARE: Final = 512
"""hostcore makes at most one entry for so many bytes."""
_U32: Final = (1 << 32) - 1


@dataclass(frozen=True, slots=True)
class SharedCounts:
    """What has happened in a region since it was made; in hostcore's order."""

    sets: int = 0
    cas_mismatches: int = 0
    full: int = 0
    """Values that there was no room for."""
    repairs: int = 0
    lock_waits: int = 0
    enqueued: int = 0
    queue_full: int = 0


@dataclass(frozen=True, slots=True)
class SharedUse:
    """How a region is used, as its VMs say."""

    size_bytes: int
    used_bytes: int
    """Of the heap, the most that was ever in use, with what lies before it; at most the size."""
    entries: int
    counts: SharedCounts


class SharedRegion:
    """
    One tenant's region. It outlives workers and reloads, and closes itself when nobody holds it any more.

    Args:
        size: bytes; a multiple of 4096 within `limits`.
    """

    def __init__(self, size: int = limits.DEFAULT_SHARED_BYTES) -> None:
        self.size = size
        self.fd = create_shared_region(size)
        self._words = (0,) * len(fields(SharedCounts))
        self._totals = SharedCounts()
        weakref.finalize(self, os.close, self.fd)

    def use(self) -> SharedUse:
        """Read how the region is used. Counters go on where their 32 bits end, if they are read often enough."""
        words = _COUNTERS.unpack(os.pread(self.fd, _COUNTERS.size, _COUNTERS_AT))
        totals = tuple(getattr(self._totals, field.name) for field in fields(SharedCounts))
        grown = (total + (now - old & _U32) for total, now, old in zip(totals, words, self._words, strict=True))
        self._words, self._totals = words, SharedCounts(*grown)
        heap, entries = _HEAP_AND_ENTRIES.unpack(os.pread(self.fd, _HEAP_AND_ENTRIES.size, _HEAP_AND_ENTRIES_AT))
        return SharedUse(self.size, min(heap, self.size), min(entries, self.size // _ENTRY_SHARE), self._totals)
