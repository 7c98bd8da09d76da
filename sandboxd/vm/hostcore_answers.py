"""
What hostcore's exports answer with, and its sizes: numbers that hostcore's C sources and this package share.

Pure: no wasmtime.
"""

from __future__ import annotations

import enum
import struct
from typing import Final, NamedTuple

MEMORY_PAGES: Final = 3072
"""hostcore's memory, minimum and maximum: it never moves and never grows."""

POLL_SLEEP: Final = 1
POLL_WAKE_CLIENT: Final = 2
POLL_NO_SPACE: Final = 4
POLL_STOPPED: Final = 8
POLL_PROTOCOL: Final = 16
POLL_INBOX: Final = 32
POLL_OUTBOX: Final = 64
POLL_YIELD: Final = 128

MAX_QUESTION_BYTES: Final = 12 + 49 * 1024
"""For shared data that is kept elsewhere, and of its answer: what hostcore has room for."""


class VmStatus(NamedTuple):
    """``struct vm_status`` of hostcore, field by field."""

    in_callback: int
    context_id: int
    event_seq: int
    stream_id_low: int
    stream_id_high: int
    streams_open: int
    heap_used_bytes: int
    heap_peak_bytes: int
    exited: int
    exit_code: int
    violation: int
    host_calls: int
    metrics: int
    next_tick_low: int
    next_tick_high: int
    queues_watched: int

    @property
    def next_tick_ns(self) -> int:
        """Wall clock of the next tick; 0: none."""
        return self.next_tick_high << 32 | self.next_tick_low


STATUS: Final = struct.Struct(f"<{len(VmStatus._fields)}I")


class Delivered(enum.IntEnum):
    """What came of `sandboxd.vm.instance.Vm.deliver`."""

    DONE = 0
    AGAIN = 1
    """There is more of the same kind to do."""
    LATER = 2
    """Too much has arisen outside events lately: deliver it again in a while."""
    MALFORMED = 3
    NO_ROOM = 4
