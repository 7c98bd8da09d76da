"""
The client of a VM, without waiting: events go in, verdicts come out.

`VmClient` never blocks and has no thread, clock or loop; `AsyncVm` and `SyncVm` wait for it. The rules that a VM has to
keep, and that are checked here, are those of ``docs/channel.md``. Not thread-safe: a channel has one client thread.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque

from sandboxd.channel import layout, memfd
from sandboxd.channel.completions import Completion, Effect, EventLimits, Verdict, VmRestarted, check_effect
from sandboxd.channel.errors import ChannelBroken, ChannelFull
from sandboxd.channel.layout import COUNTER_MASK, FLAG_AS_SUBMITTED, FLAG_MORE
from sandboxd.channel.ring import Consumer, Producer, Record, fence

# Indices into the header page seen as u32.
_VM_NEED_WAKE = layout.OFFSET_VM_NEED_WAKE // 4
_VM_WANTS_SPACE = layout.OFFSET_VM_WANTS_SPACE // 4
_CLIENT_NEED_WAKE = layout.OFFSET_CLIENT_NEED_WAKE // 4
_CLIENT_WANTS_SPACE = layout.OFFSET_CLIENT_WANTS_SPACE // 4
_VM_STATE = layout.OFFSET_VM_STATE // 4
_VM_GENERATION = layout.OFFSET_VM_GENERATION // 4

_EFFECT_OVERHEAD_BYTES = 64
_HALF_RANGE = 1 << 31
_DEFAULT_BACKLOG_BYTES = 64 * 1024 * 1024


class _Pending:
    """One event that waits for its verdict."""

    __slots__ = (
        "abandoned",
        "bytes_left",
        "effects",
        "effects_left",
        "kind",
        "notices",
        "partial",
        "payload",
        "stream_id",
    )

    def __init__(self, stream_id: int, kind: int, payload: bytes | None, limits: EventLimits) -> None:
        self.stream_id = stream_id
        self.kind = kind
        self.payload = payload
        """A body as submitted, until AS_SUBMITTED asks for it."""
        self.effects: list[Effect] = []
        self.notices: list[Effect] = []
        self.partial: dict[int, tuple[int, int, int, list[bytes]]] | None = None
        """Per stream the fragments of an effect that is not whole: kind, flags, arg, pieces."""
        self.effects_left = limits.max_effects
        self.bytes_left = limits.max_bytes
        self.abandoned = False


class VmClient:
    """
    One channel, seen from the client.

    The file descriptors stay the caller's until `close`, which closes them.

    Args:
        fds: the channel.
        limits: what one event may bring.
        max_backlog_bytes: what may wait for room in the submission ring.
    """

    def __init__(
        self,
        fds: memfd.ChannelFds,
        limits: EventLimits | None = None,
        max_backlog_bytes: int = _DEFAULT_BACKLOG_BYTES,
    ) -> None:
        self.fds = fds
        self._limits = limits or EventLimits()
        self._max_backlog_bytes = max_backlog_bytes
        self._shared = memfd.map_channel(fds.memfd, fds.ring_bytes)
        whole = memoryview(self._shared)
        self._words = whole[: layout.HEADER_BYTES].cast("I")
        middle = layout.HEADER_BYTES + fds.ring_bytes
        self._views = [whole, self._words, whole[layout.HEADER_BYTES : middle], whole[middle:]]
        words = self._words
        self._producer = Producer(words, self._views[2], layout.OFFSET_SQ_TAIL // 4, layout.OFFSET_SQ_HEAD // 4)
        self._consumer = Consumer(words, self._views[3], layout.OFFSET_CQ_TAIL // 4, layout.OFFSET_CQ_HEAD // 4)
        self._backlog: deque[Record] = deque()
        self._backlog_bytes = 0
        self._pending: dict[int, _Pending] = {}
        self._loose = _Pending(0, 0, None, self._limits)
        """Stands for what arises outside events: bounds it from one verdict to the next."""
        self._next_stream_id = 1
        self._next_seq = 1
        self._restart_seq = 0
        self._broken = ""
        self._unwoken = False
        """Something was published behind a VM that may sleep."""
        self.generation = 0
        """The VM's generation as last announced by VM_STARTED; 0 before the first."""
        self.dropped = 0
        """Records that were ignored: late answers to events of an older generation."""

    # --- state ---

    @property
    def vm_state(self) -> int:
        """The worker's word on its VM: `layout.VM_STARTING`, `VM_READY`, `VM_FAILED` or `VM_GONE`."""
        return self._words[_VM_STATE]

    @property
    def restart_unseen(self) -> bool:
        """Whether the VM says that it was restarted and `drain` has not met its VM_STARTED yet."""
        return bool(self._words[_VM_GENERATION] != self.generation)

    @property
    def outstanding(self) -> int:
        """Events without a verdict."""
        return len(self._pending)

    def is_outstanding(self, event_seq: int) -> bool:
        """Return whether the event still waits for its verdict."""
        return event_seq in self._pending

    def has_completions(self) -> bool:
        """Return whether `drain` would find something; one load."""
        return self._consumer.has_records()

    # --- submitting ---

    def open_stream(self, attributes: bytes, time_ns: int) -> int:
        """
        Open a stream and return its id; ``attributes`` are encoded pairs. Seen by the VM after `flush`.

        Raises:
            ChannelFull: too much is waiting already.
            ChannelBroken: the channel is dead.
        """
        stream_id = self._next_stream_id
        self._next_stream_id += 1
        self._send(layout.STREAM_OPEN, 0, stream_id, self._take_seq(), time_ns, attributes)
        return stream_id

    def add_attributes(self, stream_id: int, attributes: bytes, time_ns: int) -> None:
        """Add to what is known of a stream, or replace it."""
        self._send(layout.ATTRIBUTES, 0, stream_id, self._take_seq(), time_ns, attributes)

    def submit(self, stream_id: int, kind: int, payload: bytes, end_of_stream: bool, time_ns: int) -> int:
        """
        Submit an event that gets a verdict and return its ``event_seq``. Seen by the VM after `flush`.

        Raises:
            ChannelFull: too much is waiting already.
            ChannelBroken: the channel is dead.
        """
        seq = self._take_seq()
        self._send(kind, layout.FLAG_END_OF_STREAM if end_of_stream else 0, stream_id, seq, time_ns, payload)
        body = payload if kind in layout.BODY_KINDS else None
        self._pending[seq] = _Pending(stream_id, kind, body, self._limits)
        return seq

    def close_stream(self, stream_id: int, reset: bool, time_ns: int) -> int:
        """End a stream; never refused for want of room, since the VM would keep the stream for ever."""
        seq = self._take_seq()
        flags = layout.FLAG_RESET if reset else 0
        self._send(layout.STREAM_CLOSE, flags, stream_id, seq, time_ns, b"", always=True)
        self._pending[seq] = _Pending(stream_id, layout.STREAM_CLOSE, None, self._limits)
        return seq

    def shutdown(self, time_ns: int) -> int:
        """Ask the VM to close every stream and its root context."""
        return self.submit(0, layout.SHUTDOWN, b"", False, time_ns)

    def abandon(self, event_seq: int) -> None:
        """Nobody waits for this event any more: keep nothing of what it brings, its verdict comes out empty."""
        pending = self._pending.get(event_seq)
        if pending is not None:
            pending.abandoned = True
            pending.payload = None
            pending.effects.clear()
            pending.notices.clear()

    def _take_seq(self) -> int:
        seq = self._next_seq
        self._next_seq = seq + 1 if seq < COUNTER_MASK else 1
        return seq

    def _send(  # noqa: PLR0917  (a record's fields, in its order)
        self,
        kind: int,
        flags: int,
        stream_id: int,
        seq: int,
        time_ns: int,
        payload: bytes,
        always: bool = False,
    ) -> None:
        if self._broken:
            raise ChannelBroken(self._broken)
        if not self._backlog and len(payload) <= self._producer.max_payload:
            if self._put(kind, flags, stream_id, seq, time_ns, payload):
                return
        elif not always and self._backlog_bytes + len(payload) > self._max_backlog_bytes:
            raise ChannelFull(f"{self._backlog_bytes} bytes wait for the VM, at most {self._max_backlog_bytes}")
        self._queue(kind, flags, stream_id, seq, time_ns, payload)

    def _put(self, kind: int, flags: int, stream_id: int, seq: int, time_ns: int, payload: bytes) -> bool:  # noqa: PLR0917  (a record's fields, in its order)
        try:
            return self._producer.put(kind, flags, stream_id, seq, time_ns, payload)
        except ChannelBroken as error:
            raise self._mark_broken(str(error)) from error

    def _queue(self, kind: int, flags: int, stream_id: int, seq: int, time_ns: int, payload: bytes) -> None:  # noqa: PLR0917  (a record's fields, in its order)
        """Cut into records and let them wait their turn."""
        step = self._producer.max_payload
        for start in range(0, len(payload) or 1, step):
            piece = payload[start : start + step]
            more = FLAG_MORE if start + step < len(payload) else 0
            self._backlog.append((kind, flags | more, stream_id, seq, time_ns, piece))
            self._backlog_bytes += len(piece) + layout.RECORD_BYTES
        self._pump()

    def _pump(self) -> None:
        backlog = self._backlog
        while backlog and self._put(*backlog[0]):
            self._backlog_bytes -= len(backlog.popleft()[5]) + layout.RECORD_BYTES
        self._words[_CLIENT_WANTS_SPACE] = 1 if backlog else 0

    def flush(self) -> None:
        """Show the VM what was submitted, and wake it if it sleeps."""
        if self._producer.publish():
            self._unwoken = False
            fence()
            if self._words[_VM_NEED_WAKE]:
                self._wake()

    def publish(self) -> None:
        """Show the VM what was submitted without waking it; `wake_if_asleep` or a later `flush` has to follow."""
        if self._producer.publish():
            self._unwoken = True

    def wake_if_asleep(self) -> None:
        """Wake the VM if it has not been since `publish`."""
        if self._unwoken:
            self._unwoken = False
            fence()
            if self._words[_VM_NEED_WAKE]:
                self._wake()

    def _wake(self) -> None:
        # Read and store are not one step, as they would be in C. Nothing is lost: each time 1 was seen an eventfd write
        # follows, so a VM that set the flag again in between finds the eventfd raised and does not sleep.
        self._words[_VM_NEED_WAKE] = 0
        with contextlib.suppress(BlockingIOError):  # its count is full: it is awake already
            os.eventfd_write(self.fds.vm_event_fd, 1)

    # --- sleeping ---

    def prepare_sleep(self) -> bool:
        """
        Ask to be woken through the client's eventfd.

        Returns:
            False if there is work already: call `drain`, do not sleep.
        """
        self._words[_CLIENT_NEED_WAKE] = 1
        fence()
        if self._consumer.has_records() or (self._backlog and self._has_room()):
            self._words[_CLIENT_NEED_WAKE] = 0
            return False
        return True

    def cancel_sleep(self) -> None:
        """The client is awake: the VM need not write the eventfd."""
        self._words[_CLIENT_NEED_WAKE] = 0

    def clear_event(self) -> None:
        """Lower the client's eventfd."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.fds.client_event_fd)

    def _has_room(self) -> bool:
        try:
            return self._producer.has_room(len(self._backlog[0][5]))
        except ChannelBroken as error:
            raise self._mark_broken(str(error)) from error

    # --- completions ---

    def drain(self) -> list[Completion]:
        """
        Return everything that is complete, in order.

        Raises:
            ChannelBroken: the VM broke a rule; the channel is dead from now on.
        """
        if self._broken:
            raise ChannelBroken(self._broken)
        try:
            records = self._consumer.take()
            if records:
                fence()
                if self._words[_VM_WANTS_SPACE] and self._words[_VM_NEED_WAKE]:
                    self._wake()
            if self._backlog:
                self._pump()
                self.flush()
            completions: list[Completion] = []
            for record in records:
                self._take(record, completions)
        except ChannelBroken as error:
            raise self._mark_broken(str(error)) from error
        return completions

    def _take(self, record: Record, completions: list[Completion]) -> None:
        kind, flags, stream_id, seq, arg, payload = record
        if kind not in layout.COMPLETION_NAMES or flags > layout.FLAGS_ALL:
            raise ChannelBroken(f"completion of unknown kind {kind} or flags {flags:#x}")
        pending = self._pending.get(seq)
        if pending is None:
            self._take_loose(record, completions)
            return
        if kind == layout.VERDICT:
            completions.append(self._verdict(seq, pending, stream_id, arg, payload))
            return
        if kind == layout.VM_STARTED:
            raise ChannelBroken("VM_STARTED within an event")
        self._charge(pending, len(payload))
        if pending.abandoned:
            return
        effect = self._effect(pending, record)
        if effect is not None:
            (pending.notices if kind >= layout.LOG else pending.effects).append(effect)

    def _charge(self, pending: _Pending, payload_bytes: int) -> None:
        pending.effects_left -= 1
        pending.bytes_left -= payload_bytes + _EFFECT_OVERHEAD_BYTES
        if pending.effects_left < 0 or pending.bytes_left < 0:
            raise ChannelBroken("event with more or larger effects than its limits allow")

    def _verdict(self, seq: int, pending: _Pending, stream_id: int, arg: int, payload: bytes) -> Verdict:
        code = arg & COUNTER_MASK
        state = arg >> 32
        if payload or code > layout.CODE_STREAM_OVER or state > layout.STATES_ALL:
            raise ChannelBroken(f"verdict with code {code}, state {state}, {len(payload)} bytes")
        if stream_id != pending.stream_id:
            raise ChannelBroken(f"verdict for stream {stream_id}, the event was of stream {pending.stream_id}")
        if pending.partial:
            raise ChannelBroken("verdict before the last fragment of an effect")
        del self._pending[seq]
        if self._loose.effects_left != self._limits.max_effects:
            self._loose = _Pending(0, 0, None, self._limits)
        return Verdict(stream_id, seq, code, state, pending.effects, pending.notices)

    def _effect(self, pending: _Pending, record: Record) -> Effect | None:
        """Return the effect that this record completes, None while fragments are missing."""
        kind, flags, stream_id, seq, arg, payload = record
        if not (0 < stream_id < self._next_stream_id) and kind < layout.LOG:
            raise ChannelBroken(f"effect on stream {stream_id}, which was never opened")
        if flags & FLAG_MORE or pending.partial:
            joined = _join(pending, kind, flags, stream_id, arg, payload)
            if joined is None:
                return None
            payload = joined
        check_effect(kind, flags, arg, payload)
        if flags & FLAG_AS_SUBMITTED and kind in layout.BODY_KINDS:
            if pending.payload is None or kind != pending.kind or stream_id != pending.stream_id:
                raise ChannelBroken("AS_SUBMITTED without a body that was submitted")
            payload, pending.payload = pending.payload, None
        return Effect(kind, flags, stream_id, seq, arg, payload)

    def _take_loose(self, record: Record, completions: list[Completion]) -> None:
        """Deal with a record whose event is not outstanding."""
        kind, _, _, seq, arg, payload = record
        self._charge(self._loose, len(payload))
        if kind == layout.VM_STARTED:
            if seq or payload:
                raise ChannelBroken("VM_STARTED within an event or with a payload")
            completions.append(self._restarted(arg))
            return
        if seq and self._is_stale(seq):
            self.dropped += 1
            return
        if seq and not self._was_issued(seq):
            raise ChannelBroken(f"{layout.COMPLETION_NAMES[kind]} for event {seq}, which was never submitted")
        if kind < layout.LOG:
            raise ChannelBroken(f"{layout.COMPLETION_NAMES[kind]} outside any outstanding event")
        effect = self._effect(self._loose, record)
        if effect is not None:
            completions.append(effect)

    def _restarted(self, generation: int) -> VmRestarted:
        if not self.generation < generation <= COUNTER_MASK:
            raise ChannelBroken(f"VM_STARTED of generation {generation} after {self.generation}")
        first = self.generation == 0
        self.generation = generation
        self._loose = _Pending(0, 0, None, self._limits)
        if first:
            # What was submitted while the first VM started is still in the ring and belongs to that VM.
            return VmRestarted(generation, [])
        lost = [(seq, pending.stream_id) for seq, pending in self._pending.items()]
        self._pending.clear()
        self._restart_seq = self._next_seq - 1
        return VmRestarted(generation, lost)

    def _is_stale(self, seq: int) -> bool:
        """Whether the event was submitted before the last restart; the new VM may still meet it in the ring."""
        return self._restart_seq != 0 and (self._restart_seq - seq) & COUNTER_MASK < _HALF_RANGE

    def _was_issued(self, seq: int) -> bool:
        return 0 < (self._next_seq - seq) & COUNTER_MASK < _HALF_RANGE

    # --- end ---

    def _mark_broken(self, reason: str) -> ChannelBroken:
        self._broken = reason
        return ChannelBroken(reason)

    def close(self) -> None:
        """Unmap and close the channel; the object is of no use afterwards."""
        self._broken = self._broken or "the channel was closed"
        for view in reversed(self._views):
            view.release()
        self._shared.close()
        self.fds.close()


def _join(pending: _Pending, kind: int, flags: int, stream_id: int, arg: int, payload: bytes) -> bytes | None:  # noqa: PLR0917  (a record's fields, in its order)
    """Add a fragment. Returns the whole payload after the last one."""
    if pending.partial is None:
        pending.partial = {}
    known = pending.partial.get(stream_id)
    if known is None:
        if not flags & FLAG_MORE:
            return payload
        pending.partial[stream_id] = (kind, flags & ~FLAG_MORE, arg, [payload])
        return None
    if known[0] != kind or known[2] != arg:
        raise ChannelBroken("fragments of one effect interleaved with another effect of the same stream")
    known[3].append(payload)
    if flags & FLAG_MORE:
        return None
    del pending.partial[stream_id]
    return b"".join(known[3])
