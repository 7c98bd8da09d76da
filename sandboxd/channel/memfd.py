"""
Memory that two processes share: the file of a channel, and read-only blobs.

Seals are the protection: once F_SEAL_SHRINK is set no peer can truncate a mapped file under us (a SIGBUS), and once
F_SEAL_WRITE is set no peer can change a blob after we checked it.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import struct
from dataclasses import dataclass

from sandboxd.channel import layout
from sandboxd.channel.errors import ChannelBroken

CHANNEL_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
BLOB_SEALS = CHANNEL_SEALS | fcntl.F_SEAL_WRITE


@dataclass(frozen=True, slots=True)
class ChannelFds:
    """What makes a channel. The owner closes them; sending them over a socket keeps our copies open."""

    memfd: int
    vm_event_fd: int
    """The VM sleeps on it, the client writes it."""
    client_event_fd: int
    """The client sleeps on it, the VM's side writes it."""
    ring_bytes: int

    def close(self) -> None:
        """Close our copies."""
        for fd in (self.memfd, self.vm_event_fd, self.client_event_fd):
            with contextlib.suppress(OSError):
                os.close(fd)


def create_channel(ring_bytes: int = layout.DEFAULT_RING_BYTES) -> ChannelFds:
    """
    Make a channel: a sealed memfd with its header page written, and two non-blocking eventfds.

    Non-blocking matters: the other side can raise an eventfd's count to its end, and a blocking write would hang.
    """
    if not layout.valid_ring_bytes(ring_bytes):
        raise ValueError(
            f"ring_bytes {ring_bytes}: must be a power of two from {layout.MIN_RING_BYTES} to {layout.MAX_RING_BYTES}"
        )
    memfd = os.memfd_create("sandboxd-channel", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(memfd, layout.file_bytes(ring_bytes))
    os.pwrite(memfd, struct.pack("<4I", layout.MAGIC, layout.VERSION, ring_bytes, 0), layout.OFFSET_MAGIC)
    fcntl.fcntl(memfd, fcntl.F_ADD_SEALS, CHANNEL_SEALS)
    flags = os.EFD_CLOEXEC | os.EFD_NONBLOCK
    return ChannelFds(memfd, os.eventfd(0, flags), os.eventfd(0, flags), ring_bytes)


def create_shared_region(size: int) -> int:
    """Make the region that the VMs of one tenant share: zeros are its first state. The caller owns the descriptor."""
    memfd = os.memfd_create("sandboxd-shared", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(memfd, size)
        fcntl.fcntl(memfd, fcntl.F_ADD_SEALS, CHANNEL_SEALS)
    except BaseException:
        os.close(memfd)
        raise
    return memfd


def map_channel(memfd: int, ring_bytes: int) -> mmap.mmap:
    """
    Map a channel's file for reading and writing.

    Raises:
        ChannelBroken: it is not a sealed channel of this size.
    """
    size = os.fstat(memfd).st_size
    if not layout.valid_ring_bytes(ring_bytes) or size != layout.file_bytes(ring_bytes):
        raise ChannelBroken(f"channel file of {size} bytes does not fit rings of {ring_bytes} bytes")
    if fcntl.fcntl(memfd, fcntl.F_GET_SEALS) & CHANNEL_SEALS != CHANNEL_SEALS:
        raise ChannelBroken("channel file is not sealed against a change of its size")
    shared = mmap.mmap(memfd, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    magic, version, written_ring_bytes, _ = struct.unpack_from("<4I", shared, layout.OFFSET_MAGIC)
    if (magic, version, written_ring_bytes) != (layout.MAGIC, layout.VERSION, ring_bytes):
        shared.close()
        raise ChannelBroken("channel file has another header than was announced")
    return shared


def create_blob(name: str, data: bytes) -> int:
    """Return a memfd that holds ``data`` and that nobody can change any more."""
    fd = os.memfd_create(f"sandboxd-{name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, BLOB_SEALS)
    return fd


def read_blob(fd: int, max_bytes: int) -> bytes:
    """
    Return the content of a blob, whatever the file's position is.

    Raises:
        ChannelBroken: it is not sealed, or larger than ``max_bytes``.
    """
    if fcntl.fcntl(fd, fcntl.F_GET_SEALS) & BLOB_SEALS != BLOB_SEALS:
        raise ChannelBroken("blob is not sealed")
    size = os.fstat(fd).st_size
    if size > max_bytes:
        raise ChannelBroken(f"blob of {size} bytes, at most {max_bytes} are allowed")
    data = bytearray()
    while len(data) < size:
        piece = os.pread(fd, size - len(data), len(data))
        if not piece:
            raise ChannelBroken("blob ended early")
        data += piece
    return bytes(data)
