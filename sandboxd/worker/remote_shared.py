"""
Shared data that is kept outside this machine: a VM's thread asks the supervisor and waits for the answer.

The supervisor answers in bounded time, also when the store is away; `TIMEOUT_S` is for a supervisor that does not.
"""

from __future__ import annotations

import itertools
import threading
from typing import Final

from sandboxd.protos import control_pb2 as control
from sandboxd.worker.control import ControlSocket

TIMEOUT_S: Final = 2.0


class RemoteShared:
    """
    Args:
        socket: to the supervisor.
    """

    def __init__(self, socket: ControlSocket) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._waiting: dict[int, tuple[threading.Event, list[bytes]]] = {}

    def ask(self, vm_id: int, question: bytes) -> bytes:
        """Return the answer; empty: none came. On a VM's thread."""
        arrived, answers = threading.Event(), list[bytes]()
        with self._lock:
            number = next(self._numbers)
            self._waiting[number] = arrived, answers
        self._socket.send(shared_ask=control.SharedAsk(vm_id=vm_id, number=number, data=question))
        arrived.wait(TIMEOUT_S)
        with self._lock:
            del self._waiting[number]
        return answers[0] if answers else b""

    def answer(self, frame: control.SharedAnswer) -> None:
        """Take an answer; one that comes too late is dropped. On the main thread."""
        with self._lock:
            waiting = self._waiting.get(frame.number)
            if waiting is not None:
                waiting[1].append(frame.data)
                waiting[0].set()
