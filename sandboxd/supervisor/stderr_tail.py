"""The last that a worker wrote to its standard error: often it says there why it died."""

from __future__ import annotations

import asyncio
import os
from typing import IO

from sandboxd.supervisor import exits

STDERR_TAIL_BYTES = 4096


class StderrTail:
    """
    Args:
        loop: reads it as it comes, so that the worker never waits.
        stream: our end; closed by `close`.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, stream: IO[bytes]) -> None:
        self._loop = loop
        self._stream = stream
        self._fd = stream.fileno()
        self._tail = b""
        os.set_blocking(self._fd, False)
        loop.add_reader(self._fd, self._readable)

    def said(self, message: str) -> None:
        """The worker gave its reason in another way; what it writes from now on is added to that."""
        self._tail = message.encode()

    def close(self) -> str:
        """Take what is left and return the worker's last words on one line, or nothing."""
        self._readable()
        self._loop.remove_reader(self._fd)
        self._stream.close()
        return exits.last_words(self._tail)

    def _readable(self) -> None:
        try:
            data = os.read(self._fd, 65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._tail = (self._tail + data)[-STDERR_TAIL_BYTES:]
        else:
            self._loop.remove_reader(self._fd)
