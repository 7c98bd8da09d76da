"""
One direction of a channel: a byte ring with one producer and one consumer.

Memory order. Counters are u32 fields at 4-aligned addresses; ``memoryview.cast("I")[i]`` moves one with a 4-byte
``memcpy``, which compilers turn into a single load or store, so a counter is never seen half written. Order between a
counter and the bytes it stands for:

* x86-64 never reorders loads with loads nor stores with stores, and the interpreter's own calls stop the compiler from
  doing so: plain accesses are acquire loads and release stores.
* elsewhere (aarch64) `_order` runs a full fence beside each counter access.
* the sleeping handshake needs store-then-load order, which no machine gives for free: `fence` is used on all of them.

A fence is taken through a lock of our own that nobody else holds. On x86-64 one atomic read-modify-write is a full
barrier. On aarch64 a lock is an acquire operation and its release a release operation: twice in a row, the first
release and the second acquire stand between all that was before and all that comes after, and ARMv8 never reorders a
release with a later acquire.
"""

from __future__ import annotations

import platform
import threading
from collections.abc import Callable

from sandboxd.channel.errors import ChannelBroken
from sandboxd.channel.layout import (
    COUNTER_MASK,
    PAD,
    PAD_HEAD,
    RECORD,
    RECORD_BYTES,
)

Record = tuple[int, int, int, int, int, bytes]
"""kind, flags, stream_id, event_seq, arg, payload"""

_STRONGLY_ORDERED = platform.machine() in ("x86_64", "AMD64")
_fence_lock = threading.Lock()


def _fence_twice() -> None:
    with _fence_lock:
        pass
    with _fence_lock:
        pass


def _fence_once() -> None:
    with _fence_lock:
        pass


def _no_fence() -> None:
    """Nothing: the machine keeps the order by itself."""


fence: Callable[[], None] = _fence_once if _STRONGLY_ORDERED else _fence_twice
_order: Callable[[], None] = _no_fence if _STRONGLY_ORDERED else _fence_twice


class Producer:
    """
    Writes records. Nothing is seen by the consumer before `publish`.

    Args:
        words: the header page as u32.
        ring: the bytes of this ring.
        tail: index in ``words`` of the counter that is ours.
        head: index in ``words`` of the consumer's counter.
    """

    def __init__(self, words: memoryview, ring: memoryview, tail: int, head: int) -> None:
        self._words = words
        self._ring = ring
        self._tail_index = tail
        self._head_index = head
        self._size = len(ring)
        self._mask = len(ring) - 1
        self._tail = words[tail]
        self._published = self._tail
        self._free = 0
        self.max_payload = len(ring) // 4 - RECORD_BYTES
        """Bytes of one record's payload; more has to be cut."""

    def _look(self) -> None:
        """
        Read the consumer's counter.

        Raises:
            ChannelBroken: it claims what cannot be.
        """
        head = self._words[self._head_index]
        _order()
        used = (self._tail - head) & COUNTER_MASK
        if used > self._size or head & 7:
            raise ChannelBroken(f"consumer's position {head} does not fit the producer's {self._tail}")
        self._free = self._size - used

    def put(self, kind: int, flags: int, stream_id: int, event_seq: int, arg: int, payload: bytes) -> bool:  # noqa: PLR0917  (a record's fields, in its order)
        """
        Write one record behind the last, unless there is no room; ``payload`` is at most `max_payload` bytes.

        Returns:
            False if the consumer has to free room first; nothing was written then.
        """
        length = len(payload)
        size = (length + 39) & ~7
        position = self._tail & self._mask
        to_end = self._size - position
        need = size if size <= to_end else to_end + size
        if need > self._free:
            self._look()
            if need > self._free:
                return False
        ring = self._ring
        if size > to_end:
            PAD_HEAD.pack_into(ring, position, to_end, PAD, 0)
            position = 0
        RECORD.pack_into(ring, position, size, kind, flags, stream_id, event_seq, length, arg)
        if length:
            position += RECORD_BYTES
            ring[position : position + length] = payload
        self._free -= need
        self._tail = (self._tail + need) & COUNTER_MASK
        return True

    def publish(self) -> bool:
        """Show the consumer what was put. False if there is nothing new."""
        if self._tail == self._published:
            return False
        _order()
        self._words[self._tail_index] = self._published = self._tail
        return True

    def has_room(self, payload_bytes: int) -> bool:
        """Look again whether a record of this payload would fit."""
        self._look()
        size = (payload_bytes + 39) & ~7
        to_end = self._size - (self._tail & self._mask)
        return (size if size <= to_end else to_end + size) <= self._free


class Consumer:
    """
    Reads what a hostile producer wrote.

    Everything is copied out of the shared memory before the first look at it, so nothing can change between a check
    and its use. Any byte string and any counter give records or `ChannelBroken`, nothing else, and no more memory than
    the ring's own size.
    """

    def __init__(self, words: memoryview, ring: memoryview, tail: int, head: int) -> None:
        self._words = words
        self._ring = ring
        self._tail_index = tail
        self._head_index = head
        self._size = len(ring)
        self._mask = len(ring) - 1
        self._max_record = len(ring) // 4
        self._head = words[head]
        self.only_padding = False
        """The last `take` met a PAD and no record, which nothing else counts."""

    def has_records(self) -> bool:
        """Return whether the producer published something; one load."""
        return bool(self._words[self._tail_index] != self._head)

    def take(self) -> list[Record]:
        """
        Return all records that are published, and free their room.

        Raises:
            ChannelBroken: the producer's counter or a record breaks a rule.
        """
        tail = self._words[self._tail_index]
        head = self._head
        if tail == head:
            self.only_padding = False
            return []
        _order()
        length = (tail - head) & COUNTER_MASK
        if length > self._size or tail & 7:
            raise ChannelBroken(f"producer's position {tail} does not fit the consumer's {head}")
        start = head & self._mask
        first = self._ring[start : start + length].tobytes()
        rest = self._ring[: length - len(first)].tobytes()
        _order()
        self._words[self._head_index] = self._head = tail
        records: list[Record] = []
        self._parse(first, start + len(first) == self._size, records)
        if rest:
            self._parse(rest, False, records)
        self.only_padding = not records
        return records

    def _parse(self, data: bytes, to_end: bool, records: list[Record]) -> None:
        """Cut one stretch of the ring into records; ``to_end``: it reaches the ring's last byte."""
        end = len(data)
        max_record = self._max_record
        unpack = RECORD.unpack_from
        append = records.append
        position = 0
        while position < end:
            left = end - position
            if left < RECORD_BYTES:
                _check_pad(data, position, left, to_end, max_record)
                return
            size, kind, flags, stream_id, event_seq, length, arg = unpack(data, position)
            if kind == PAD:
                _check_pad(data, position, left, to_end, max_record)
                return
            if size > max_record or size > left or size != (length + 39) & ~7:
                raise ChannelBroken(f"record of {size} bytes with {length} of payload, {left} were published")
            start = position + RECORD_BYTES
            append((kind, flags, stream_id, event_seq, arg, data[start : start + length]))
            position += size


def _check_pad(data: bytes, position: int, left: int, to_end: bool, max_record: int) -> None:
    # Positions and lengths are multiples of 8, so a stretch that is not empty has at least 8 bytes left.
    size, kind, _ = PAD_HEAD.unpack_from(data, position)
    # The record that it makes way for did not fit into it.
    if kind != PAD or size != left or not to_end or size >= max_record:
        raise ChannelBroken(f"record of kind {kind} and {size} bytes, {left} were published")
