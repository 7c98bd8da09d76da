"""
Frames on their way out of the event loop through a non-blocking control socket; never blocks, never grows
without end.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from collections.abc import Sequence

from sandboxd.supervisor import frames

MAX_QUEUED_FRAMES = 4096


class OutboxFullError(Exception):
    """The peer does not read."""


class Outbox:
    """
    The sending side of one control socket, which must be non-blocking and stays the caller's.

    A peer that is gone is no error here: its end is seen on the receiving side.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
        self._loop = loop
        self._socket = sock
        self._queue: deque[tuple[bytes, tuple[int, ...]]] = deque()
        self._waiting_bytes = 0

    def send(self, frame: frames.Message, fds: Sequence[int] = ()) -> None:
        """
        Send a frame, or queue it with duplicates of its descriptors.

        Raises:
            OutboxFullError: too many frames wait.
        """
        if self._socket.fileno() < 0:
            return
        data = frames.encode(frame)
        if not self._queue and self._try(data, fds):
            return
        if len(self._queue) >= MAX_QUEUED_FRAMES:
            raise OutboxFullError("does not read its control socket")
        self._queue.append((data, tuple(os.dup(fd) for fd in fds)))
        self._waiting_bytes += len(data)
        self._loop.add_writer(self._socket, self._writable)

    def __len__(self) -> int:
        """Frames that wait."""
        return len(self._queue)

    @property
    def waiting_bytes(self) -> int:
        """Bytes of the frames that wait."""
        return self._waiting_bytes

    def close(self) -> None:
        """Drop what waits; call before the socket is closed."""
        if self._socket.fileno() >= 0:
            self._loop.remove_writer(self._socket)
        while self._queue:
            _close_all(self._queue.popleft()[1])

    def _try(self, data: bytes, fds: Sequence[int]) -> bool:
        """Return whether the frame is dealt with; False: the socket is full."""
        try:
            frames.send(self._socket, data, fds)
        except BlockingIOError:
            return False
        except OSError:  # the peer is gone; a reader learns of it by the end of its stream
            return True
        return True

    def _writable(self) -> None:
        while self._queue:
            data, fds = self._queue[0]
            if not self._try(data, fds):
                return
            self._queue.popleft()
            self._waiting_bytes -= len(data)
            _close_all(fds)
        self._loop.remove_writer(self._socket)


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
