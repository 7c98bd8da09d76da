"""The compilers that run, so that the daemon can end without waiting for them."""

from __future__ import annotations

import contextlib
import subprocess
import threading
from collections.abc import Iterator

from sandboxd.errors import WorkerError


class Running:
    """Any thread may use it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._stopped = False

    @property
    def count(self) -> int:
        """How many run."""
        with self._lock:
            return len(self._processes)

    @contextlib.contextmanager
    def noted(self, process: subprocess.Popen[bytes]) -> Iterator[None]:
        """
        Have `stop` kill a process for the length of a ``with`` block.

        Raises:
            WorkerError: `stop` was called before, or meanwhile; how the process ended says nothing of its module.
        """
        with self._lock:
            self._processes.add(process)
        try:
            self._check()
            yield
            self._check()
        finally:
            with self._lock:
                self._processes.discard(process)

    def stop(self) -> None:
        """Kill all; no other one will run."""
        with self._lock:
            self._stopped = True
            for process in self._processes:
                process.kill()

    def _check(self) -> None:
        with self._lock:
            if self._stopped:
                raise WorkerError("compiling was given up: the daemon ends")
