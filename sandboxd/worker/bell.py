"""
How the threads of a worker, and the client, wake one another: eventfds, and the inbox flag.
"""

from __future__ import annotations

import contextlib
import os
import threading

from sandboxd.worker.header import ChannelHeader


class ChannelBell:
    """The inbox flag in the channel's header, and the eventfd that the VM's thread sleeps on."""

    def __init__(self, header: ChannelHeader, vm_event_fd: int) -> None:
        self._header = header
        self._fd = vm_event_fd
        self._lock = threading.Lock()
        self._open = True

    def ring(self) -> None:
        """Any thread may call it."""
        with self._lock:
            if self._open:
                self._header.set_inbox(True)
                raise_event(self._fd)

    def clear(self) -> None:
        """The VM's thread is about to look."""
        self._header.set_inbox(False)

    def wake(self) -> None:
        """Have the VM's thread look round, if it has not ended. Any thread may call it."""
        with self._lock:
            if self._open:
                raise_event(self._fd)

    def close(self) -> None:
        """The descriptor is about to be closed."""
        with self._lock:
            self._open = False


def raise_event(fd: int) -> None:
    """Wake whoever sleeps on the eventfd."""
    # A full counter means that the other side has its wake-up already.
    with contextlib.suppress(BlockingIOError):
        os.eventfd_write(fd, 1)
