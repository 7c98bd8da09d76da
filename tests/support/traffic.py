"""Steady traffic in the background, every answer kept with its time."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

from sandboxd.demo import http1
from sandboxd.demo.client import Connection, Request

TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Answer:
    """What came of one request."""

    sent_s: float
    """Monotonic clock."""
    done_s: float
    message: http1.Message | None
    error: str = ""

    @property
    def status(self) -> int:
        """The status, 0 without an answer."""
        return self.message.status if self.message is not None else 0


class Traffic:
    """Sends one request over and over on several connections, on a thread of its own, until stopped."""

    def __init__(self, port: int, request: Request, connections: int = 4) -> None:
        self._port = port
        self._request = request
        self._connections = connections
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="traffic", daemon=True)
        self.answers: list[Answer] = []

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End when every request that is under way is answered."""
        self._stop.set()
        self._thread.join(TIMEOUT_S * 2)
        assert not self._thread.is_alive(), "a request was neither answered nor failed in time"

    def statuses(self) -> set[int]:
        """Return every status that came, 0 for none."""
        return {answer.status for answer in self.answers}

    def _run(self) -> None:
        asyncio.run(self._all())

    async def _all(self) -> None:
        await asyncio.gather(*(self._one() for _ in range(self._connections)))

    async def _one(self) -> None:
        connection = await Connection.open(self._port)
        while not self._stop.is_set():
            sent_s = time.monotonic()
            message: http1.Message | None = None
            error = ""
            try:
                message = await connection.exchange(self._request, TIMEOUT_S)
            except (OSError, EOFError) as failure:
                error = str(failure) or type(failure).__name__
                await connection.close()
                connection = await Connection.open(self._port)
            self.answers.append(Answer(sent_s, time.monotonic(), message, error))
            if message is not None and message.value("connection").lower() == "close":
                await connection.close()
                connection = await Connection.open(self._port)
        await connection.close()


@contextlib.contextmanager
def running(port: int, request: Request, connections: int = 4) -> Iterator[Traffic]:
    """Send traffic for the length of a ``with`` block."""
    traffic = Traffic(port, request, connections)
    traffic.start()
    try:
        yield traffic
    finally:
        traffic.stop()
