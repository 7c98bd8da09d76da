"""
Files inside hostcore's memory, mapped over fixed ranges of it: the channel's, and the tenant's shared region.

Raw addresses; for `sandboxd.vm.instance` alone.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
from typing import Final

from sandboxd.errors import WorkerError
from sandboxd.limits import MIB
from sandboxd.vm.plugin import REQUIRED_SEALS

OFFSET: Final = 16 * MIB
"""Of the channel's window in hostcore's memory."""
SHARED_OFFSET: Final = 160 * MIB
"""Of the shared region's."""
MIN_SHARED_BYTES: Final = 64 * 1024
MAX_SHARED_BYTES: Final = 32 * MIB
_LOCK_AT: Final = 64
"""Of the region's lock: u32 owner, u32 stamp."""
_DEAD_OWNER: Final = 0xFFFFFFFF
MAX_BYTES: Final = 16 * MIB
CHANNEL_HEADER_BYTES: Final = 4096

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
]
_PROT_READ_WRITE: Final = 3
_MAP_SHARED: Final = 0x01
_MAP_PRIVATE: Final = 0x02
_MAP_FIXED: Final = 0x10
_MAP_ANONYMOUS: Final = 0x20


class Window:
    """
    The range of hostcore's memory that shows a file from here until `unmap`.

    Args:
        memory_address: where hostcore's memory begins in this process; it reaches past the window's end.
        fd: the channel's file, or the shared region's.
        size: of the file, as `checked_size` or `checked_shared_size` gave it.
        offset: of the window in that memory.

    Raises:
        WorkerError: the kernel refuses.
    """

    def __init__(self, memory_address: int, fd: int, size: int, offset: int = OFFSET) -> None:
        self._address = memory_address + offset
        self._size = size
        self._mapped = False
        self._mmap(_MAP_SHARED | _MAP_FIXED, fd)
        self._mapped = True

    def abandon_lock(self, owner: int) -> None:
        """
        Mark the shared region's lock as a dead owner's if ``owner`` holds it: whoever wants it next repairs what was
        left half done. For the thread that ran the owner, once nothing of it runs any more.
        """
        word = ctypes.c_uint32.from_address(self._address + _LOCK_AT)
        if word.value == owner:
            word.value = _DEAD_OWNER

    def unmap(self) -> None:
        """Put fresh memory in the file's place. A second call does nothing."""
        if self._mapped:
            self._mmap(_MAP_PRIVATE | _MAP_FIXED | _MAP_ANONYMOUS, -1)
            self._mapped = False

    def _mmap(self, flags: int, fd: int) -> None:
        found = _libc.mmap(self._address, self._size, _PROT_READ_WRITE, flags, fd, 0)
        if found != self._address:
            raise WorkerError(f"cannot map shared memory: {os.strerror(ctypes.get_errno())}")


def checked_size(channel_fd: int, ring_bytes: int) -> int:
    """
    Return the size of the channel's file, which nobody can change any more.

    Raises:
        WorkerError: it is not a sealed memfd, or its size is not that of a channel with such rings.
    """
    size = CHANNEL_HEADER_BYTES + 2 * ring_bytes
    try:
        seals = fcntl.fcntl(channel_fd, fcntl.F_GET_SEALS)
    except OSError:
        seals = 0
    if seals & REQUIRED_SEALS != REQUIRED_SEALS:
        raise WorkerError("the channel is not a memfd sealed against shrink, grow and further seals")
    found = os.fstat(channel_fd).st_size
    if found != size or size > MAX_BYTES:
        raise WorkerError(f"the channel's file has {found} bytes, expected {size}, at most {MAX_BYTES}")
    return size


def checked_shared_size(fd: int) -> int:
    """
    Return the size of the shared region's file, which nobody can change any more.

    Raises:
        WorkerError: it is not a sealed memfd, or has a size that hostcore does not take.
    """
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        seals = 0
    if seals & REQUIRED_SEALS != REQUIRED_SEALS:
        raise WorkerError("the shared region is not a memfd sealed against shrink, grow and further seals")
    size = os.fstat(fd).st_size
    if not MIN_SHARED_BYTES <= size <= MAX_SHARED_BYTES or size % CHANNEL_HEADER_BYTES:
        raise WorkerError(f"the shared region has {size} bytes, allowed are {MIN_SHARED_BYTES} to {MAX_SHARED_BYTES}")
    return size
