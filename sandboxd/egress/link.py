"""
The broker's end of its control socket. Answers to one worker wait here while it has enough unread ones.

What waits for a worker waits in the calls themselves, and so counts in their tenant's budget; nobody else waits for it.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable

from sandboxd.limits import KIB
from sandboxd.protos import control_pb2 as control
from sandboxd.supervisor import frames

PIECE_BYTES = 48 * KIB
WINDOW_BYTES = 512 * KIB
"""What may be on the way to one worker."""
FRAMES_PER_TURN = 64


class Window:
    """How much one worker can take now. Those who wait are served in order."""

    def __init__(self) -> None:
        self._on_the_way = 0
        self._turn = asyncio.Lock()
        self._room = asyncio.Event()

    async def enter(self, size: int) -> None:
        """Wait until there is room, and take it."""
        async with self._turn:
            while self._on_the_way and self._on_the_way + size > WINDOW_BYTES:
                self._room.clear()
                await self._room.wait()
            self._on_the_way += size

    def close(self) -> None:
        """Nobody takes anything any more: let all pass."""
        self._on_the_way = -(1 << 62)
        self._room.set()

    def taken(self, size: int) -> None:
        """The worker has taken so much."""
        self._on_the_way -= size
        self._room.set()


class Link:
    """
    Args:
        sock: SOCK_SEQPACKET to the supervisor; owned.
        receive: takes each packet, and owns its descriptors.
        ended: the supervisor has closed its end, or is gone.
    """

    def __init__(
        self, sock: socket.socket, receive: Callable[[frames.Packet], None], ended: Callable[[], None]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._socket = sock
        self._receive = receive
        self._ended = ended
        self._unsent: deque[bytes] = deque()
        sock.setblocking(False)
        self._loop.add_reader(sock, self._readable)

    def send(self, frame: control.FromEgress) -> None:
        """Send a frame; what one call or worker may have under way is the caller's business."""
        self._unsent.append(frames.encode(frame))
        if len(self._unsent) == 1:
            self._write()

    def close(self) -> None:
        """Close the socket."""
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._socket.close()

    def _readable(self) -> None:
        for _ in range(FRAMES_PER_TURN):
            try:
                packet = frames.receive_with_fds(self._socket)
            except BlockingIOError:
                return
            except (OSError, frames.FrameTooLongError):
                packet = frames.Packet(b"")
            if not packet.data:
                self._loop.remove_reader(self._socket)
                self._ended()
                return
            self._receive(packet)

    def _write(self) -> None:
        try:
            while self._unsent:
                frames.send(self._socket, self._unsent[0])
                self._unsent.popleft()
        except BlockingIOError:
            self._loop.add_writer(self._socket, self._write)
            return
        except OSError:
            self._unsent.clear()  # the reader learns that the supervisor is gone
        self._loop.remove_writer(self._socket)
