"""
A child process: its output goes to a file, it is stopped by its own pid, it never outlives us.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

# Run in the child before the program itself (a preexec_fn is unsafe beside threads): the kernel shall end the
# child with us. The terminal's Ctrl-C goes to us alone, because the child has a session of its own.
_DIE_WITH_PARENT = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 15); os.execv(sys.argv[1], sys.argv[1:])"
_LOG_TAIL_BYTES = 4000


class ChildFailedError(Exception):
    """A child did not start, or ended when it should not. The text holds the end of what it said."""


class Child:
    """
    A running program.

    Args:
        name: what messages call it.
        arguments: the program, by its path, and its arguments.
        log: where its standard output and error go; the file is begun anew.
        environment: the whole environment of the child; None: ours.
    """

    def __init__(
        self, name: str, arguments: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self.log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-IS", "-c", _DIE_WITH_PARENT, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=None if environment is None else dict(environment),
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """Exit code, minus the signal's number if one ended it, None while it runs."""
        return self._process.poll()

    def said(self) -> str:
        """Return the end of what the child wrote."""
        with contextlib.suppress(FileNotFoundError):
            return self.log.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace").strip()
        return ""

    def wait_until(self, ready: Callable[[], bool], timeout_s: float) -> None:
        """
        Wait until ``ready`` holds.

        Raises:
            ChildFailedError: the child ended first, or the time is over.
        """
        deadline = time.monotonic() + timeout_s
        while not ready():
            if self.exit_code is not None:
                raise ChildFailedError(f"{self.name} ended with exit code {self.exit_code}:\n{self.said()}")
            if time.monotonic() > deadline:
                raise ChildFailedError(f"{self.name} was not ready within {timeout_s:g} s:\n{self.said()}")
            time.sleep(0.02)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if the child still runs."""
        if self.exit_code is None:
            os.kill(self.pid, number)

    def stop(self, timeout_s: float = 10.0) -> int:
        """End the child, by force when it has not ended in time. Return its exit code."""
        self.signal(signal.SIGTERM)
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait(timeout_s)
