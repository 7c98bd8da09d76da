"""Children of a test that run as somebody or in a jail; each reports once over a socket and ends."""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import socket
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

NOBODY = 65534
TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Ended:
    """How a child ended: what it reported (None: nothing) and its exit code (negative: a signal)."""

    report: Any
    exit_code: int


def become_nobody() -> None:
    """Be as a process that never was root: the uid, no groups, dumpable."""
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)


class Child:
    """A forked child that runs ``action(control_socket)`` and reports what it returns."""

    def __init__(self, action: Callable[[socket.socket], Any]) -> None:
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # other tests may have left threads behind
            self.pid = os.fork()
        if self.pid == 0:
            self.socket.close()
            _run(action, theirs)
        theirs.close()

    def receive(self) -> bytes:
        """Return the next message of the child; empty at its end, or when it takes too long."""
        ready, _, _ = select.select([self.socket], [], [], TIMEOUT_S)
        return self.socket.recv(1 << 20) if ready else b""

    def end(self) -> Ended:
        """Wait for the report and the end; kill a child that takes too long."""
        text = self.receive()
        if not text:
            self._kill_if_hanging()
        self.socket.close()
        _pid, status = os.waitpid(self.pid, 0)
        return Ended(json.loads(text) if text else None, os.waitstatus_to_exitcode(status))

    def _kill_if_hanging(self) -> None:
        if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
            poll = select.poll()
            poll.register(os.pidfd_open(self.pid), select.POLLIN)
            if not poll.poll(5000):
                os.kill(self.pid, signal.SIGKILL)


def _run(action: Callable[[socket.socket], Any], control: socket.socket) -> None:
    signal.alarm(0)
    try:
        report = action(control)
    except BaseException:
        report = {"failed": traceback.format_exc()}
    os.write(control.fileno(), json.dumps(report).encode())
    os._exit(0)


def in_child(action: Callable[[socket.socket], Any], *, as_nobody: bool = False) -> Ended:
    """Run ``action`` in a child, as nobody if asked for, and wait for it."""

    def whole(control: socket.socket) -> Any:
        if as_nobody:
            become_nobody()
        return action(control)

    return Child(whole).end()
