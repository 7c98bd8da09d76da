"""Who forks fronts and the broker, played: nothing is forked, and the test speaks for what would be."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable


class FakeZygote:
    """
    Keeps the children's ends of their sockets.

    Args:
        index: of the only child that may be asked for.
    """

    def __init__(self, index: int = 0) -> None:
        self.asked: list[socket.socket] = []
        self.fails = False
        self._index = index

    def ask(self, index: int, theirs: socket.socket) -> None:
        """As `Zygote.ask`."""
        assert index == self._index
        if self.fails:
            raise BrokenPipeError
        self.asked.append(socket.socket(fileno=os.dup(theirs.fileno())))


class FrontsListener:
    """Takes note of the name of whatever it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: self.told.append(name)
