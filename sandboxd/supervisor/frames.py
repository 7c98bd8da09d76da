"""
Control frames on a SOCK_SEQPACKET socket: one protobuf message per packet, file descriptors beside it.

Only transport: no frame's meaning is known here. May be imported by the supervisor, the fronts and the tests.
"""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

MAX_FRAME_BYTES = 64 * 1024
"""One frame, as ``control.proto`` says."""

MAX_FRAME_FDS = 8
"""Descriptors beside one frame; the protocol needs four."""


class Message(Protocol):
    """What this module needs of a protobuf message."""

    def SerializeToString(self) -> bytes: ...  # noqa: N802  (protobuf's name)


@dataclass(frozen=True, slots=True)
class Packet:
    """One packet as it came in; the receiver owns the descriptors."""

    data: bytes
    fds: tuple[int, ...] = ()

    def close(self) -> None:
        """Close the descriptors."""
        for fd in self.fds:
            os.close(fd)


class FrameTooLongError(Exception):
    """A packet did not fit the bound of its kind."""


class Pair:
    """The two ends of a control socket; a context manager that closes what was not taken."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.theirs.close()
        if kind is not None:
            self.ours.close()


def encode(message: Message) -> bytes:
    """
    Return the frame's bytes.

    Raises:
        FrameTooLongError: the message does not fit a frame.
    """
    data = message.SerializeToString()
    if len(data) > MAX_FRAME_BYTES:
        raise FrameTooLongError(f"a control frame of {len(data)} bytes; {MAX_FRAME_BYTES} is the most")
    return data


def send(sock: socket.socket, data: bytes, fds: Sequence[int] = ()) -> None:
    """Send one packet with its descriptors; raises as `socket.socket.sendmsg` does."""
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([data], ancillary)


def receive_plain(sock: socket.socket) -> bytes:
    """
    Receive one packet from a peer that must not send descriptors; b"" at the end.

    No room is offered for descriptors, so the kernel never installs what a hostile peer sends along.

    Raises:
        FrameTooLongError: the packet is longer than a frame may be.
        OSError: as the socket gives it, BlockingIOError among them.
    """
    data, _, flags, _ = sock.recvmsg(MAX_FRAME_BYTES)
    if flags & socket.MSG_TRUNC:
        raise FrameTooLongError(f"a control frame of more than {MAX_FRAME_BYTES} bytes")
    return data


def receive_with_fds(sock: socket.socket) -> Packet:
    """
    Receive one packet and its descriptors (close-on-exec) from a trusted peer; an empty packet at the end.

    Raises:
        FrameTooLongError: packet or descriptors were cut; the descriptors that came are closed.
    """
    room = socket.CMSG_SPACE(MAX_FRAME_FDS * array.array("i").itemsize)
    data, ancillary, flags, _ = sock.recvmsg(MAX_FRAME_BYTES, room, socket.MSG_CMSG_CLOEXEC)
    packet = Packet(data, tuple(_descriptors(ancillary)))
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        packet.close()
        raise FrameTooLongError("a control frame or its descriptors were cut")
    return packet


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> array.array[int]:
    fds = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return fds
