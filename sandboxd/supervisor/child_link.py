"""
The control socket of a process that the zygote forks, and the process behind it: frames both ways, its pulse, its end.

The process may read what strangers send; what it says is bounded here, and read by whoever has the link.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Callable, Sequence

from sandboxd.supervisor import frames
from sandboxd.supervisor.outbox import Outbox, OutboxFullError

_log = logging.getLogger(__name__)

STATUS_PERIOD_S = 2.0
STATUS_TIMEOUT_S = 30.0
"""A process whose loop is silent for so long is replaced."""
FRAMES_PER_TURN = 64


class UnreadableError(Exception):
    """A frame that no honest process sends."""


class ChildLink:
    """
    One process, from the request to fork it to its end.

    Args:
        question: makes the frame, of that number, that asks for its state.
        heard: takes each frame; an `UnreadableError` of it is the process's end.
        ended: called once, with what the process did; its socket has ended, or it has been killed. Then `disconnect` or
            `close` is to be called.
        buffer_bytes: what the kernel may hold of either direction, as far as it lets us; 0: its default.
    """

    def __init__(
        self,
        *,
        question: Callable[[int], frames.Message],
        heard: Callable[[bytes], None],
        ended: Callable[[str], None],
        buffer_bytes: int = 0,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._question = question
        self._heard = heard
        self._ended = ended
        self._has_ended = False
        self._process: int | None = None
        """A pidfd: the number may be another process's as soon as the zygote has seen the end of this one."""
        self._number = 0
        self._last_word_s = self._loop.time()
        pair = frames.Pair()
        self._socket, self.theirs = pair.ours, pair.theirs
        if buffer_bytes:
            for end in (self._socket, self.theirs):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_bytes)
        self._socket.setblocking(False)
        self._outbox = Outbox(self._loop, self._socket)
        self._loop.add_reader(self._socket, self._readable)
        self._timer = self._loop.call_later(STATUS_PERIOD_S, self._pulse)

    @property
    def connected(self) -> bool:
        """Whether there is a control socket."""
        return self._socket.fileno() >= 0

    @property
    def has_process(self) -> bool:
        """Whether there is a process that we know."""
        return self._process is not None

    @property
    def waiting(self) -> int:
        """Frames that it has not read, beside those in the kernel."""
        return len(self._outbox)

    def send(self, frame: frames.Message, fds: Sequence[int] = ()) -> None:
        """Send a frame; a process that does not read comes to its end. One that is too long is logged, and not sent."""
        try:
            self._outbox.send(frame, fds)
        except OutboxFullError as error:
            # Not from here: whoever sends may be in the middle of something.
            self._loop.call_soon(self._fail, str(error))
        except frames.FrameTooLongError as error:
            _log.error("a control frame is not sent: %s", error)

    def ask(self) -> None:
        """Ask for its state."""
        self._number += 1
        self.send(self._question(self._number))

    # --- the process ---

    def forked(self, pid: int) -> None:
        """It is this process; its socket may have ended meanwhile."""
        with contextlib.suppress(OSError):  # its end is already on its way to us
            self._process = os.pidfd_open(pid)

    def exited(self) -> None:
        """There is no process any more."""
        if self._process is not None:
            os.close(self._process)
            self._process = None

    def kill(self) -> None:
        """SIGKILL, if there is a process that we know."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._process, signal.SIGKILL)

    def disconnect(self) -> None:
        """Close our end of the socket, which tells it to end; it can still be killed."""
        self._timer.cancel()
        if self.connected:
            self._loop.remove_reader(self._socket)
            self._outbox.close()
            self._socket.close()

    def close(self) -> None:
        """Close our end, and let go of the process."""
        self.disconnect()
        self.exited()

    # --- what it says, or does not ---

    def _pulse(self) -> None:
        if self._loop.time() - self._last_word_s > STATUS_TIMEOUT_S:
            self._fail("does not answer")
            return
        self._timer = self._loop.call_later(STATUS_PERIOD_S, self._pulse)
        self.ask()

    def _readable(self) -> None:
        for _ in range(FRAMES_PER_TURN):  # then the others of this loop have a turn
            try:
                data = frames.receive_plain(self._socket)
            except BlockingIOError:
                return
            except frames.FrameTooLongError:
                self._fail("sent a frame that is too long")
                return
            except OSError:
                data = b""
            if not data:
                self._end("is gone")
                return
            self._last_word_s = self._loop.time()
            try:
                self._heard(data)
            except UnreadableError as error:
                self._fail(f"sent what cannot be read ({error})")
                return
            if not self.connected:
                return

    def _fail(self, why: str) -> None:
        if self.connected:
            self.kill()
            self._end(why)

    def _end(self, why: str) -> None:
        if not self._has_ended:
            self._has_ended = True
            self._ended(why)
