"""
Completions on their way in: which event each record belongs to, and whether it may come now. Without I/O.

The rules that a VM has to keep, and that are checked here, are those of ``docs/channel.md``; of a single effect see
`completions`. Records are copies already: nothing that is checked here can change afterwards.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace

from sandboxd.channel import layout
from sandboxd.channel.completions import Completion, Effect, EventLimits, Verdict, VmRestarted, check_effect
from sandboxd.channel.errors import ChannelBroken
from sandboxd.channel.layout import (
    COUNTER_MASK,
    FLAG_AS_SUBMITTED,
    FLAG_MORE,
    FLAGS_ALL,
    HTTP_KINDS,
    NOTICE_KINDS,
    TCP_DATA_KINDS,
    VERDICT,
    VM_STARTED,
)
from sandboxd.channel.pending import EFFECT_OVERHEAD_BYTES, Pending
from sandboxd.channel.ring import Record

_HALF_RANGE = 1 << 31
_EVENTS_HELD = 2
"""All events without a verdict may hold as much as so many may bring: an honest VM works on one at a time."""
_LOOSE_WINDOW_NS = 100_000_000
"""What arises outside events is bounded per so much time. hostcore bounds itself as well."""


class Intake:
    """
    The events that have no verdict yet, and what has come for them.

    Args:
        limits: what one event may bring.
    """

    def __init__(self, limits: EventLimits) -> None:
        self._limits = limits
        self._unfree = limits.max_effects - limits.free_effects
        self._pending: dict[int, Pending] = {}
        self._held_bytes = 0
        """Of all of them together."""
        self._max_held_bytes = _EVENTS_HELD * limits.max_bytes
        self._connections: set[int] = set()
        """Streams that are TCP connections, until the VM has met their end."""
        self._loose_limits = replace(limits, max_effects=limits.max_loose)
        self._loose = Pending(0, 0, None, self._loose_limits)
        """Stands for what arises outside events, or in large ones: bounds it per window of time."""
        self._loose_since_ns = 0
        self._restart_seq = 0
        self.next_stream_id = 1
        self.next_seq = 1
        self.generation = 0
        self.dropped = 0

    @property
    def outstanding(self) -> int:
        """Events without a verdict."""
        return len(self._pending)

    def is_outstanding(self, event_seq: int) -> bool:
        """Return whether the event still waits for its verdict."""
        return event_seq in self._pending

    def take_stream_id(self) -> int:
        """Return the number of a new stream."""
        stream_id = self.next_stream_id
        self.next_stream_id += 1
        return stream_id

    def take_seq(self) -> int:
        """Return the number of a new event."""
        seq = self.next_seq
        self.next_seq = seq + 1 if seq < COUNTER_MASK else 1
        return seq

    def expect(self, seq: int, stream_id: int, kind: int, body: bytes | None) -> None:
        """The event was submitted: a verdict has to come."""
        if kind == layout.NEW_CONNECTION:
            self._connections.add(stream_id)
        self._pending[seq] = Pending(stream_id, kind, body, self._limits)

    def abandon(self, event_seq: int) -> None:
        """See `Pending.abandon`."""
        pending = self._pending.get(event_seq)
        if pending is not None:
            before = pending.held_bytes
            pending.abandon()
            self._held_bytes -= before - pending.held_bytes

    def take(self, records: Iterable[Record]) -> list[Completion]:
        """
        Return what these records complete, in order.

        Raises:
            ChannelBroken: a record breaks a rule.
        """
        completions: list[Completion] = []
        waiting = self._pending
        for record in records:
            kind = record[0]
            if kind not in layout.COMPLETION_NAMES or record[1] > FLAGS_ALL:
                raise ChannelBroken(f"completion of unknown kind {kind} or flags {record[1]:#x}")
            pending = waiting.get(record[3])
            if pending is None:
                self._take_loose(record, completions)
            elif kind == VERDICT:
                completions.append(self._verdict(pending, record))
            elif kind == VM_STARTED:
                raise ChannelBroken("VM_STARTED within an event")
            else:
                charged_bytes = len(record[5]) + EFFECT_OVERHEAD_BYTES
                pending.charge(charged_bytes)
                if pending.effects_left < self._unfree:
                    self._charge_loose(0)
                if not pending.abandoned or pending.wanted(kind, record[2]):
                    pending.held_bytes += charged_bytes
                    self._held_bytes += charged_bytes
                    if self._held_bytes > self._max_held_bytes:
                        raise ChannelBroken(f"events without a verdict hold more than {self._max_held_bytes} bytes")
                    effect = self._effect(pending, record)
                    if effect is not None:
                        (pending.notices if kind in NOTICE_KINDS else pending.effects).append(effect)
        return completions

    def _verdict(self, pending: Pending, record: Record) -> Verdict:
        _, _, stream_id, seq, arg, payload = record
        code = arg & COUNTER_MASK
        state = arg >> 32
        if payload or code > layout.CODE_STREAM_OVER or state > layout.STATES_ALL:
            raise ChannelBroken(f"verdict with code {code}, state {state}, {len(payload)} bytes")
        if stream_id != pending.stream_id:
            raise ChannelBroken(f"verdict for stream {stream_id}, the event was of stream {pending.stream_id}")
        if pending.partial:
            raise ChannelBroken("verdict before the last fragment of an effect")
        del self._pending[seq]
        self._held_bytes -= pending.held_bytes
        if pending.kind == layout.STREAM_CLOSE:
            self._connections.discard(stream_id)
        return Verdict(stream_id, seq, code, state, pending.effects, pending.notices)

    def _effect(self, pending: Pending, record: Record) -> Effect | None:
        """Return the effect that this record completes, None while fragments are missing."""
        kind, flags, stream_id, _, arg, payload = record
        if kind not in NOTICE_KINDS:
            if not 0 < stream_id < self.next_stream_id:
                raise ChannelBroken(f"effect on stream {stream_id}, which was never opened")
            if kind in (HTTP_KINDS if stream_id in self._connections else TCP_DATA_KINDS):
                raise ChannelBroken(
                    f"{layout.COMPLETION_NAMES[kind]} on stream {stream_id}, which is of the other kind"
                )
        if flags & FLAG_MORE or pending.partial:
            joined = pending.join(record)
            if joined is None:
                return None
            payload = joined
            record = (*record[:5], payload)
        check_effect(kind, flags, arg, payload)
        if flags & FLAG_AS_SUBMITTED and kind in layout.BODY_KINDS:
            if pending.payload is None or kind != pending.kind or stream_id != pending.stream_id:
                raise ChannelBroken("AS_SUBMITTED without a body that was submitted")
            record = (*record[:5], pending.payload)
            pending.payload = None
        return Effect._make(record)

    def _take_loose(self, record: Record, completions: list[Completion]) -> None:
        """Deal with a record whose event is not outstanding."""
        kind, _, _, seq, arg, payload = record
        self._charge_loose(len(payload))
        if kind == VM_STARTED:
            if seq or payload:
                raise ChannelBroken("VM_STARTED within an event or with a payload")
            completions.append(self._restarted(arg))
            return
        if seq and self._is_stale(seq):
            self.dropped += 1
            return
        if seq and not self._was_issued(seq):
            raise ChannelBroken(f"{layout.COMPLETION_NAMES[kind]} for event {seq}, which was never submitted")
        if kind == VERDICT or (seq and kind not in NOTICE_KINDS):
            raise ChannelBroken(f"{layout.COMPLETION_NAMES[kind]} outside any outstanding event")
        effect = self._effect(self._loose, record)
        if effect is not None:
            completions.append(effect)

    def take_padding(self) -> None:
        """Padding alone came: worth nothing, and counted, or a VM could keep the client at work with it for ever."""
        self._charge_loose(0)

    def _charge_loose(self, payload_bytes: int) -> None:
        now_ns = time.monotonic_ns()
        windows = (now_ns - self._loose_since_ns) // _LOOSE_WINDOW_NS
        if windows and not self._loose.partial:
            self._loose_since_ns += windows * _LOOSE_WINDOW_NS
            left = self._loose.effects_left + windows * self._loose_limits.loose_per_window
            self._loose.effects_left = min(left, self._loose_limits.max_effects)
            self._loose.bytes_left = self._loose_limits.max_bytes
        self._loose.charge(payload_bytes + EFFECT_OVERHEAD_BYTES)

    def _restarted(self, generation: int) -> VmRestarted:
        if not self.generation < generation <= COUNTER_MASK:
            raise ChannelBroken(f"VM_STARTED of generation {generation} after {self.generation}")
        first = self.generation == 0
        self.generation = generation
        self._loose.partial = None
        if first:
            # What was submitted while the first VM started is still in the ring and belongs to that VM.
            return VmRestarted(generation, [])
        lost = [(seq, pending.stream_id) for seq, pending in self._pending.items()]
        self._pending.clear()
        self._held_bytes = 0
        self._connections.clear()
        self._restart_seq = self.next_seq - 1
        return VmRestarted(generation, lost)

    def _is_stale(self, seq: int) -> bool:
        """Whether the event was submitted before the last restart; the new VM may still meet it in the ring."""
        return self._restart_seq != 0 and (self._restart_seq - seq) & COUNTER_MASK < _HALF_RANGE

    def _was_issued(self, seq: int) -> bool:
        return 0 < (self.next_seq - seq) & COUNTER_MASK < _HALF_RANGE
