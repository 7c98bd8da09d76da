"""
Modules that made a compiler hang or blow up, so that nobody pays for the same one again and again.

Kept in memory: a restart of the daemon forgets them all, `sandboxd restart TENANT` those of a tenant.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

KEEP_S: Final = 3600.0
"""After so long a module is tried once more: the machine may have been short of memory, or busy."""

MOST: Final = 1000


@dataclass(frozen=True, slots=True)
class _Rejection:
    text: str
    timeout_s: float | None
    expires_s: float


class Rejections:
    """
    Any thread may use it.

    Args:
        clock: seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._found: dict[tuple[str, str], _Rejection] = {}

    def remember(self, module_sha256: str, key: str, text: str, timeout_s: float | None = None) -> None:
        """
        Take note of a module.

        Args:
            module_sha256: digest of the module.
            key: of all that decides how it is compiled.
            text: what happened.
            timeout_s: the time that was not enough; None: more time would not have helped.
        """
        with self._lock:
            self._found.pop((module_sha256, key), None)
            while len(self._found) >= MOST:
                del self._found[next(iter(self._found))]
            self._found[module_sha256, key] = _Rejection(text, timeout_s, self._clock() + KEEP_S)

    def find(self, module_sha256: str, key: str, timeout_s: float) -> str:
        """Return what happened to a module that was given no less than ``timeout_s``; empty: nothing known."""
        with self._lock:
            found = self._found.get((module_sha256, key))
            if found is None or (found.timeout_s is not None and found.timeout_s < timeout_s):
                return ""
            if self._clock() >= found.expires_s:
                del self._found[module_sha256, key]
                return ""
            return found.text

    def forget(self, module_sha256: str) -> None:
        """Have a module tried again."""
        with self._lock:
            for entry in [entry for entry in self._found if entry[0] == module_sha256]:
                del self._found[entry]
