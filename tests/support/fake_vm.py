"""
A VM that needs no WebAssembly: the other side of a channel, with scripted answers.

`FakeVm.poll` works in the caller's thread; `FakeVm.start` serves from a thread of its own, which sleeps on the
eventfd by the document's handshake. An answer is a function from `Event` to records, or the default: all goes on.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from sandboxd.channel import layout, memfd
from sandboxd.channel.ring import Consumer, Producer, Record, fence

_VM_NEED_WAKE = layout.OFFSET_VM_NEED_WAKE // 4
_VM_WANTS_SPACE = layout.OFFSET_VM_WANTS_SPACE // 4
_CLIENT_NEED_WAKE = layout.OFFSET_CLIENT_NEED_WAKE // 4
_CLIENT_WANTS_SPACE = layout.OFFSET_CLIENT_WANTS_SPACE // 4


@dataclass
class Event:
    """One submission, its fragments joined."""

    kind: int
    flags: int
    stream_id: int
    seq: int
    time_ns: int
    payload: bytes

    @property
    def end_of_stream(self) -> bool:
        return bool(self.flags & layout.FLAG_END_OF_STREAM)

    def effect(self, kind: int, payload: bytes = b"", flags: int = 0, arg: int = 0, stream_id: int = 0) -> Record:
        """An effect of this event; on its own stream unless another is named."""
        return (kind, flags, stream_id or self.stream_id, self.seq, arg, payload)

    def verdict(self, code: int = 0, state: int = 0) -> Record:
        return (layout.VERDICT, 0, self.stream_id, self.seq, state << 32 | code, b"")


Answer = Callable[[Event], Iterable[Record]]


def pass_through(event: Event) -> list[Record]:
    """Everything goes on as it came."""
    if event.kind in layout.WITHOUT_VERDICT:
        return []
    if event.kind in layout.BODY_KINDS:  # of TCP too
        flags = layout.FLAG_AS_SUBMITTED | event.flags & layout.FLAG_END_OF_STREAM
        return [event.effect(event.kind, flags=flags), event.verdict()]
    if event.kind in layout.MAP_KINDS:
        return [event.effect(event.kind), event.verdict()]
    return [event.verdict()]


@dataclass
class FakeVm:
    """
    Args:
        fds: the channel; the fake maps it on its own and keeps copies of the eventfds.
        answer: what an event brings.
    """

    fds: memfd.ChannelFds
    answer: Answer = pass_through
    seen: list[Event] = field(default_factory=list)
    """Every event, in order."""
    keep_seen: bool = True

    def __post_init__(self) -> None:
        self._vm_fd, self._client_fd = os.dup(self.fds.vm_event_fd), os.dup(self.fds.client_event_fd)
        self._shared = memfd.map_channel(self.fds.memfd, self.fds.ring_bytes)
        whole = memoryview(self._shared)
        self.words = whole[: layout.HEADER_BYTES].cast("I")
        middle = layout.HEADER_BYTES + self.fds.ring_bytes
        sq, cq = whole[layout.HEADER_BYTES : middle], whole[middle:]
        self.inbox = Consumer(self.words, sq, layout.OFFSET_SQ_TAIL // 4, layout.OFFSET_SQ_HEAD // 4)
        self.outbox = Producer(self.words, cq, layout.OFFSET_CQ_TAIL // 4, layout.OFFSET_CQ_HEAD // 4)
        self._views = [whole, self.words, sq, cq]
        self._partial: dict[int, list[bytes]] = {}
        self._unsent: list[Record] = []
        self._thread: threading.Thread | None = None
        self._stop = False
        self.failure: BaseException | None = None
        self.generation = 0

    # --- life ---

    def begin(self) -> None:
        """A new VM is there: VM_STARTED, state ready."""
        self.generation += 1
        self.words[layout.OFFSET_VM_GENERATION // 4] = self.generation
        self.emit([(layout.VM_STARTED, 0, 0, 0, self.generation, b"")])
        self.words[layout.OFFSET_VM_STATE // 4] = layout.VM_READY
        os.eventfd_write(self._client_fd, 1)

    def fail(self, cause: int = 0) -> None:
        """The VM is gone; what the ring holds stays there."""
        self.words[layout.OFFSET_VM_FAILURE // 4] = cause
        self.words[layout.OFFSET_VM_STATE // 4] = layout.VM_FAILED
        os.eventfd_write(self._client_fd, 1)

    # --- by hand ---

    def take(self) -> list[Event]:
        """Take what was submitted without answering it."""
        events = []
        for kind, flags, stream_id, seq, arg, payload in self.inbox.take():
            if flags & layout.FLAG_MORE:
                self._partial.setdefault(stream_id, []).append(payload)
                continue
            whole = b"".join([*self._partial.pop(stream_id, []), payload])
            events.append(Event(kind, flags, stream_id, seq, arg, whole))
        if events and self.keep_seen:
            self.seen += events
        fence()
        if self.words[_CLIENT_WANTS_SPACE] and self.words[_CLIENT_NEED_WAKE]:
            self._wake_client()
        return events

    def emit(self, records: Iterable[Record]) -> None:
        """Write completions, cut to fragments; waits for nothing (what finds no room goes out later)."""
        for record in records:
            self._unsent.extend(self._cut(record))
        self._send()

    def poll(self) -> int:
        """Take and answer all that is there. Returns how many events there were."""
        events = self.take()
        for event in events:
            self.emit(self.answer(event))
        if self._unsent:
            self._send()
        return len(events)

    def _cut(self, record: Record) -> Iterable[Record]:
        kind, flags, stream_id, seq, arg, payload = record
        step = self.outbox.max_payload
        for start in range(0, len(payload) or 1, step):
            more = layout.FLAG_MORE if start + step < len(payload) else 0
            yield (kind, flags | more, stream_id, seq, arg, payload[start : start + step])

    def _send(self) -> None:
        sent = 0
        while sent < len(self._unsent) and self.outbox.put(*self._unsent[sent]):
            sent += 1
        del self._unsent[:sent]
        self.words[_VM_WANTS_SPACE] = 1 if self._unsent else 0
        if self.outbox.publish():
            fence()
            if self.words[_CLIENT_NEED_WAKE]:
                self._wake_client()

    def _wake_client(self) -> None:
        self.words[_CLIENT_NEED_WAKE] = 0
        os.eventfd_write(self._client_fd, 1)

    # --- thread ---

    def start(self) -> FakeVm:
        """Serve from a thread until `stop`."""
        self._thread = threading.Thread(target=self._serve, name="fake-vm", daemon=True)
        self._thread.start()
        return self

    def _serve(self) -> None:
        poller = select.poll()
        poller.register(self._vm_fd, select.POLLIN)
        try:
            while not self._stop:
                if self.poll():
                    continue
                self.words[_VM_NEED_WAKE] = 1
                fence()
                if self.inbox.has_records() or (self._unsent and self.outbox.has_room(len(self._unsent[0][5]))):
                    self.words[_VM_NEED_WAKE] = 0
                    continue
                poller.poll(5000)
                self.words[_VM_NEED_WAKE] = 0
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self._vm_fd)
        except BaseException as failure:
            self.failure = failure
            raise

    def stop(self) -> None:
        """End the thread and unmap."""
        self._stop = True
        if self._thread is not None:
            os.eventfd_write(self._vm_fd, 1)
            self._thread.join(10)
            assert not self._thread.is_alive()
            assert self.failure is None
        for view in reversed(self._views):
            view.release()
        self._shared.close()
        os.close(self._vm_fd)
        os.close(self._client_fd)
