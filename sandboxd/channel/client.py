"""
The client of a VM, without waiting: events go in, verdicts come out.

`VmClient` never blocks and has no thread, clock or loop; `AsyncVm` and `SyncVm` wait for it. What it submits and when
it sleeps is here, what comes back is checked in `intake`. Not thread-safe: a channel has one client thread.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque

from sandboxd.channel import layout, memfd
from sandboxd.channel.completions import Completion, EventLimits
from sandboxd.channel.errors import ChannelBroken, ChannelFull
from sandboxd.channel.intake import Intake
from sandboxd.channel.layout import FLAG_MORE
from sandboxd.channel.ring import Consumer, Producer, Record, fence

# Indices into the header page seen as u32.
_VM_NEED_WAKE = layout.OFFSET_VM_NEED_WAKE // 4
_VM_WANTS_SPACE = layout.OFFSET_VM_WANTS_SPACE // 4
_CLIENT_NEED_WAKE = layout.OFFSET_CLIENT_NEED_WAKE // 4
_CLIENT_WANTS_SPACE = layout.OFFSET_CLIENT_WANTS_SPACE // 4
_VM_STATE = layout.OFFSET_VM_STATE // 4
_VM_GENERATION = layout.OFFSET_VM_GENERATION // 4

_NOTHING_TO_DO = contextlib.suppress(BlockingIOError)
_DEFAULT_BACKLOG_BYTES = 64 * 1024 * 1024


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
        self._max_backlog_bytes = max_backlog_bytes
        self._shared = memfd.map_channel(fds.memfd, fds.ring_bytes)
        whole = memoryview(self._shared)
        self._words = whole[: layout.HEADER_BYTES].cast("I")
        middle = layout.HEADER_BYTES + fds.ring_bytes
        self._views = [whole, self._words, whole[layout.HEADER_BYTES : middle], whole[middle:]]
        words = self._words
        self._producer = Producer(words, self._views[2], layout.OFFSET_SQ_TAIL // 4, layout.OFFSET_SQ_HEAD // 4)
        self._max_payload = self._producer.max_payload
        self._consumer = Consumer(words, self._views[3], layout.OFFSET_CQ_TAIL // 4, layout.OFFSET_CQ_HEAD // 4)
        self._backlog: deque[Record] = deque()
        self._backlog_bytes = 0
        self._intake = Intake(limits or EventLimits())
        self._broken = ""
        self._last_failure: int | None = None
        self._unwoken = False
        """Something was published behind a VM that may sleep."""

    # --- state ---

    @property
    def vm_state(self) -> int:
        """The worker's word on its VM: `layout.VM_STARTING`, `VM_READY`, `VM_FAILED` or `VM_GONE`."""
        return self._words[_VM_STATE]

    @property
    def vm_failure(self) -> int:
        """The worker's word on why its VM last failed: hostile input. Known after `close` too."""
        return self._words[layout.OFFSET_VM_FAILURE // 4] if self._last_failure is None else self._last_failure

    @property
    def generation(self) -> int:
        """The VM's generation as last announced by VM_STARTED; 0 before the first."""
        return self._intake.generation

    @property
    def dropped(self) -> int:
        """Records that were ignored: late answers to events of an older generation."""
        return self._intake.dropped

    @property
    def restart_unseen(self) -> bool:
        """Whether the VM says that it was restarted and `drain` has not met its VM_STARTED yet."""
        return bool(self._words[_VM_GENERATION] != self._intake.generation)

    @property
    def has_backlog(self) -> bool:
        """Whether something waits for room in the submission ring."""
        return bool(self._backlog)

    @property
    def outstanding(self) -> int:
        """Events without a verdict."""
        return self._intake.outstanding

    def is_outstanding(self, event_seq: int) -> bool:
        """Return whether the event still waits for its verdict."""
        return self._intake.is_outstanding(event_seq)

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
        stream_id = self._intake.take_stream_id()
        self._send(layout.STREAM_OPEN, 0, stream_id, self._intake.take_seq(), time_ns, attributes)
        return stream_id

    def add_attributes(self, stream_id: int, attributes: bytes, time_ns: int) -> None:
        """Add to what is known of a stream, or replace it."""
        self._send(layout.ATTRIBUTES, 0, stream_id, self._intake.take_seq(), time_ns, attributes)

    def submit(self, stream_id: int, kind: int, payload: bytes, end_of_stream: bool, time_ns: int) -> int:
        """
        Submit an event that gets a verdict and return its ``event_seq``. Seen by the VM after `flush`.

        Raises:
            ChannelFull: too much is waiting already.
            ChannelBroken: the channel is dead.
        """
        seq = self._intake.take_seq()
        self._send(kind, layout.FLAG_END_OF_STREAM if end_of_stream else 0, stream_id, seq, time_ns, payload)
        self._intake.expect(seq, stream_id, kind, payload if kind in layout.BODY_KINDS else None)
        return seq

    def close_stream(self, stream_id: int, reset: bool, time_ns: int) -> int:
        """End a stream; never refused for want of room, since the VM would keep the stream for ever."""
        seq = self._intake.take_seq()
        flags = layout.FLAG_RESET if reset else 0
        self._send(layout.STREAM_CLOSE, flags, stream_id, seq, time_ns, b"", always=True)
        self._intake.expect(seq, stream_id, layout.STREAM_CLOSE, None)
        return seq

    def shutdown(self, time_ns: int) -> int:
        """Ask the VM to close every stream and its root context."""
        return self.submit(0, layout.SHUTDOWN, b"", False, time_ns)

    def abandon(self, event_seq: int) -> None:
        """Nobody waits for this event any more: keep nothing of what it brings, its verdict comes out empty."""
        self._intake.abandon(event_seq)

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
        if not self._backlog and len(payload) <= self._max_payload:
            try:
                if self._producer.put(kind, flags, stream_id, seq, time_ns, payload):
                    return
            except ChannelBroken as error:
                raise self._mark_broken(str(error)) from error
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
        with _NOTHING_TO_DO:  # its count is full: it is awake already
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
        with _NOTHING_TO_DO:
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
            elif self._consumer.only_padding:
                self._intake.take_padding()
            if self._backlog:
                self._pump()
                self.flush()
            return self._intake.take(records)
        except ChannelBroken as error:
            raise self._mark_broken(str(error)) from error

    # --- end ---

    def _mark_broken(self, reason: str) -> ChannelBroken:
        self._broken = reason
        return ChannelBroken(reason)

    def close(self) -> None:
        """Unmap and close the channel; the object is of no use afterwards."""
        self._last_failure = self.vm_failure
        self._broken = self._broken or "the channel was closed"
        for view in reversed(self._views):
            view.release()
        self._shared.close()
        self.fds.close()
