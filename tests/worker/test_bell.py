"""Who wakes a VM's thread that has ended meanwhile touches no descriptor: its number may be another's by then."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from sandboxd.worker.bell import ChannelBell

RINGS: list[Callable[[ChannelBell], None]] = [ChannelBell.wake, ChannelBell.ring]


class Header:
    """The part of a channel's header that a bell uses."""

    inbox = False

    def set_inbox(self, waiting: bool) -> None:
        self.inbox = waiting


@pytest.fixture
def event_fd() -> Iterator[int]:
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    yield fd
    os.close(fd)


def bell(event_fd: int) -> ChannelBell:
    return ChannelBell(Header(), event_fd)  # type: ignore[arg-type]


@pytest.mark.parametrize("ring", RINGS)
def test_the_thread_is_woken(event_fd: int, ring: Callable[[ChannelBell], None]) -> None:
    ring(bell(event_fd))
    assert os.eventfd_read(event_fd) == 1


@pytest.mark.parametrize("ring", RINGS)
def test_nothing_is_written_after_the_end(event_fd: int, ring: Callable[[ChannelBell], None]) -> None:
    closed = bell(event_fd)
    closed.close()
    ring(closed)
    with pytest.raises(BlockingIOError):
        os.eventfd_read(event_fd)
