"""
The zygote: a tiny single-threaded child, forked before anything else, that forks the fronts when asked.

A front has to be forked, because its log records travel to the supervisor through
``multiprocessing-logging``; but the supervisor must not fork once it has threads and an event loop. So it
forks this process at the very start and asks it later, by a packet that carries the new front's control
socket.
"""

from __future__ import annotations

import contextlib
import enum
import multiprocessing
import os
import select
import signal
import socket
import struct
import time
import warnings
from collections.abc import Callable
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import TypeAlias

from sandboxd.supervisor import frames

FrontMain: TypeAlias = Callable[[int, socket.socket], None]
"""Runs a front with its index and control socket until that socket ends."""

END_GRACE_S = 5.0
"""From the end of the zygote's own socket to SIGKILL of fronts that are still there."""

_REQUEST = struct.Struct("<I")
_REPORT = struct.Struct("<BIIi")

_context = multiprocessing.get_context("fork")


class Report(enum.IntEnum):
    """What the zygote tells."""

    FORKED = 1
    EXITED = 2
    NOT_FORKED = 3
    """The machine did not let it; the status is the errno, and there is no pid."""


class Zygote:
    """The supervisor's handle. Make it before there is any thread, event loop or gRPC in the process."""

    def __init__(self, front_main: FrontMain) -> None:
        with frames.Pair() as pair:
            self.socket = pair.ours
            self._process = _context.Process(target=_main, args=(pair.theirs, pair.ours, front_main), name="zygote")
            with warnings.catch_warnings():
                # multiprocessing-logging has begun its receiving thread; it holds no lock that the zygote,
                # which never logs, could wait for.
                warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*fork.*")
                self._process.start()
        self.pid = self._process.pid or 0

    def ask(self, index: int, control: socket.socket) -> None:
        """Have a front forked that owns ``control``; a `Report` follows on `socket`."""
        frames.send(self.socket, _REQUEST.pack(index), (control.fileno(),))

    def report(self) -> tuple[Report, int, int, int] | None:
        """Read one report: kind, index, pid, exit status (negative for a signal) or errno. None at the end."""
        data = frames.receive_plain(self.socket)
        if not data:
            return None
        kind, index, pid, status = _REPORT.unpack(data)
        return Report(kind), index, pid, status

    def close(self) -> None:
        """End the zygote, which ends the fronts that are left; bounded in time."""
        self.socket.close()
        self._process.join(END_GRACE_S + 2)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _main(sock: socket.socket, parents_end: socket.socket, front_main: FrontMain) -> None:
    parents_end.close()
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        # A terminal's Ctrl-C goes to the whole group; our end is the end of our socket, never a signal.
        signal.signal(number, signal.SIG_IGN)
    children: dict[int, tuple[int, ForkProcess]] = {}
    poller = select.poll()
    poller.register(sock, select.POLLIN)
    while True:
        for fd, _ in poller.poll():
            if fd == sock.fileno():
                packet = _request(sock)
                if packet is None:
                    _end(children)
                    return
                _fork(sock, packet, front_main, children, poller)
            else:
                poller.unregister(fd)
                index, process = children.pop(fd)
                process.join()
                _tell(sock, Report.EXITED, index, process.pid or 0, process.exitcode or 0)
                process.close()


def _request(sock: socket.socket) -> frames.Packet | None:
    """Return the next request; None when the supervisor has closed its end, or died."""
    try:
        packet = frames.receive_with_fds(sock)
    except ConnectionError:
        return None
    return packet if packet.data else None


def _fork(
    sock: socket.socket,
    packet: frames.Packet,
    front_main: FrontMain,
    children: dict[int, tuple[int, ForkProcess]],
    poller: select.poll,
) -> None:
    (index,) = _REQUEST.unpack(packet.data)
    with socket.socket(fileno=packet.fds[0]) as control:
        process = _context.Process(
            target=_front, args=(index, control, sock, list(children), front_main), name=f"front-{index}"
        )
        try:
            _start(process)
        except OSError as error:  # too many processes or files just now: asking again is the supervisor's matter
            _tell(sock, Report.NOT_FORKED, index, 0, error.errno or 0)
            return
    children[process.sentinel] = (index, process)
    poller.register(process.sentinel, select.POLLIN)
    _tell(sock, Report.FORKED, index, process.pid or 0, 0)


def _start(process: ForkProcess) -> None:
    """Start it; if that fails, close what `multiprocessing` had opened for it, which it forgets."""
    before = _descriptors()
    try:
        process.start()
    except OSError:
        for fd in _descriptors() - before:
            os.close(fd)
        raise


def _descriptors() -> set[int]:
    """Return the open ones, without that of the listing, which is closed again."""
    return {fd for item in Path("/proc/self/fd").iterdir() if _is_open(fd := int(item.name))}


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def _front(
    index: int, control: socket.socket, zygote: socket.socket, siblings: list[int], front_main: FrontMain
) -> None:
    """Run a front in the fresh child, without what belongs to the zygote."""
    zygote.close()
    for sentinel in siblings:
        os.close(sentinel)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    front_main(index, control)


def _tell(sock: socket.socket, kind: Report, index: int, pid: int, status: int) -> None:
    with contextlib.suppress(OSError):  # the supervisor is gone: the next poll ends us
        frames.send(sock, _REPORT.pack(kind, index, pid, status))


def _end(children: dict[int, tuple[int, ForkProcess]]) -> None:
    deadline_s = time.monotonic() + END_GRACE_S
    for _, process in children.values():
        process.join(max(0.0, deadline_s - time.monotonic()))
        if process.exitcode is None:
            process.kill()
            process.join()
