"""
The header page of a channel as the worker sees it: state, generation, and the watchdog's clock.

A mapping of its own, so that it outlives the VM whose memory the whole channel is mapped into.
"""

from __future__ import annotations

import enum
import mmap
from typing import Final

HEADER_BYTES: Final = 4096
_VM_STATE: Final = 448 // 4
_VM_GENERATION: Final = 452 // 4
_CALL_STAMP: Final = 456 // 4
_INBOX: Final = 460 // 4
_VM_FAILURE: Final = 464 // 4
_MASK: Final = 0xFFFFFFFF


class VmState(enum.IntEnum):
    """``vm_state`` of the header page."""

    STARTING = 0
    READY = 1
    FAILED = 2
    GONE = 3


class ChannelHeader:
    """The page of the channel behind ``channel_fd``, which may be closed afterwards."""

    def __init__(self, channel_fd: int) -> None:
        self._mapping = mmap.mmap(channel_fd, HEADER_BYTES, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._words = memoryview(self._mapping).cast("I")

    @property
    def state(self) -> VmState:
        """What the client is told of the VM."""
        return VmState(self._words[_VM_STATE])

    @state.setter
    def state(self, state: VmState) -> None:
        self._words[_VM_STATE] = state

    def set_failure(self, cause: int) -> None:
        """Say why the VM is about to be `FAILED` or `GONE`: a number of `FailureCause`."""
        self._words[_VM_FAILURE] = cause

    @property
    def generation(self) -> int:
        """1 for the first VM of the channel."""
        return self._words[_VM_GENERATION]

    @generation.setter
    def generation(self, generation: int) -> None:
        self._words[_VM_GENERATION] = generation & _MASK

    @property
    def call_stamp(self) -> int:
        """Odd while guest code runs."""
        return self._words[_CALL_STAMP]

    def set_inbox(self, full: bool) -> None:
        """Have hostcore's ``poll`` return soon, or no more. Any thread may call it."""
        self._words[_INBOX] = full

    def end_call(self) -> None:
        """Make the stamp even again after a call that never returned."""
        self._words[_CALL_STAMP] = (self._words[_CALL_STAMP] + 1 & _MASK) & ~1

    def close(self) -> None:
        """Unmap the page."""
        self._words.release()
        self._mapping.close()
