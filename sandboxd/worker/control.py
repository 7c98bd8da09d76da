"""
The worker's end of the control socket: one protobuf frame per packet, descriptors beside it.

The peer is the supervisor, which we trust; a frame that makes no sense is a bug, and ends the worker.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
from dataclasses import dataclass
from typing import Any, Final

from sandboxd.errors import WorkerError
from sandboxd.protos.control_pb2 import FromWorker, ToWorker

MAX_FRAME_BYTES: Final = 64 * 1024
MAX_FDS: Final = 8
FDS_PER_FRAME: Final = {
    "setup": 0,
    "load_plugin": 1,
    "open_vm": 4,
    "close_vm": 0,
    "restart_vm": 0,
    "callout_answer": 0,
    "shared_answer": 0,
    "read_metrics": 0,
    "ping": 0,
}
OPTIONAL_FDS: Final = {"open_vm": 1, "restart_vm": 1}
"""Descriptors that may follow: the tenant's shared region; the configuration that the VM starts with from now on."""


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame from the supervisor. The receiver owns the descriptors."""

    kind: str
    body: Any
    fds: tuple[int, ...]


class ControlSocket:
    """
    Receives on one thread, sends from any.

    Args:
        fd: the inherited SOCK_SEQPACKET socket; owned from now on.
    """

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)
        # The supervisor's loop may have made the pair non-blocking.
        self._socket.setblocking(True)

    def receive(self) -> Frame | None:
        """
        Wait for the next frame; None when the supervisor has closed its end.

        Raises:
            WorkerError: the frame is none of the protocol.
        """
        room = socket.CMSG_SPACE(MAX_FDS * array.array("i").itemsize)
        try:
            data, ancillary, flags, _ = self._socket.recvmsg(MAX_FRAME_BYTES, room, socket.MSG_CMSG_CLOEXEC)
        except ConnectionError:
            return None
        if not data:
            return None
        fds = _descriptors(ancillary)
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            _close(fds)
            raise WorkerError("control frame was cut")
        return _decoded(data, fds)

    def send(self, **frame: Any) -> None:
        """
        Send one `FromWorker` frame, given as its one field. A supervisor that is gone is noticed by
        `receive`.
        """
        data = FromWorker(**frame).SerializeToString()
        # No lock: a packet goes as a whole. VMs that the supervisor makes wait must not keep the main thread from
        # answering it.
        with contextlib.suppress(ConnectionError):
            self._socket.send(data)


def _decoded(data: bytes, fds: tuple[int, ...]) -> Frame:
    message = ToWorker()
    message.ParseFromString(data)
    kind = message.WhichOneof("frame")
    if kind is None or not 0 <= len(fds) - FDS_PER_FRAME[kind] <= OPTIONAL_FDS.get(kind, 0):
        _close(fds)
        raise WorkerError(f"control frame {kind or 'of unknown kind'} came with {len(fds)} descriptors")
    return Frame(kind, getattr(message, kind), fds)


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> tuple[int, ...]:
    fds = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return tuple(fds)


def _close(fds: tuple[int, ...]) -> None:
    for fd in fds:
        os.close(fd)
