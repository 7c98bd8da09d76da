"""
What a VM changes in its preopened folders, on its way to the supervisor: many small changes, few frames.

For one VM's thread. Nothing is decided here: the supervisor keeps the policy and the quotas.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from sandboxd.errors import WorkerError
from sandboxd.limits import KIB, MS_NS
from sandboxd.protos import control_pb2 as control
from sandboxd.vm.folder_blob import MAX_CHANGE_BYTES, ChangeKind
from sandboxd.vm.messages import Request

FRAME_BYTES: Final = 48 * KIB
DELAY_MS: Final = 20
"""How long a change may wait for others to share its frame."""
FRAMES_PER_SECOND: Final = 200
"""The VM waits rather than have its worker taken for one that floods the supervisor."""
_OVERHEAD_BYTES: Final = 32


class FileJournal:
    """
    Args:
        send: takes a frame's changes.
        now_ns: a clock that only goes forward.
        sleep: see `time.sleep`.
    """

    def __init__(
        self,
        send: Callable[[list[control.FileChange]], None],
        now_ns: Callable[[], int] = time.monotonic_ns,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._send = send
        self._now_ns = now_ns
        self._sleep = sleep
        self._changes: list[control.FileChange] = []
        self._bytes = 0
        self._since_ns = 0
        self._next_ns = 0

    def add(self, request: Request) -> None:
        """
        Take one change.

        Raises:
            WorkerError: it is malformed.
        """
        path, other, number, *_ = request.parts
        if len(number) != 8 or request.argument not in list(ChangeKind) or len(other) > MAX_CHANGE_BYTES:
            raise WorkerError(f"a malformed change of kind {request.argument}")
        size = int.from_bytes(number, "little")
        if self._joined(request, path, other, size):
            return
        if self._bytes + len(path) + len(other) + _OVERHEAD_BYTES > FRAME_BYTES:
            self.flush()
        if not self._changes:
            self._since_ns = self._now_ns()
        self._changes.append(
            control.FileChange(folder=request.call_id, kind=request.argument, path=path, other=other, size=size)
        )
        self._bytes += len(path) + len(other) + _OVERHEAD_BYTES

    def _joined(self, request: Request, path: bytes, data: bytes, offset: int) -> bool:
        """Lengthen the last write by one that follows it in the same file."""
        if not self._changes or request.argument != ChangeKind.WRITE:
            return False
        last = self._changes[-1]
        fits = len(last.other) + len(data) <= MAX_CHANGE_BYTES and self._bytes + len(data) <= FRAME_BYTES
        follows = last.size + len(last.other) == offset and (last.folder, last.path) == (request.call_id, path)
        if last.kind != ChangeKind.WRITE or not follows or not fits:
            return False
        last.other += data
        self._bytes += len(data)
        return True

    def wait_ms(self) -> float | None:
        """Return in how long it wants to be flushed; None: it is empty."""
        if not self._changes:
            return None
        return max(0.0, (self._since_ns - self._now_ns()) / MS_NS + DELAY_MS)

    def flush_if_due(self) -> None:
        """Send what has waited long enough."""
        if self.wait_ms() == 0.0:
            self.flush()

    def flush(self) -> None:
        """Send all."""
        if not self._changes:
            return
        changes, self._changes, self._bytes = self._changes, [], 0
        now_ns = self._now_ns()
        if self._next_ns > now_ns:
            self._sleep((self._next_ns - now_ns) / 1e9)
        self._next_ns = max(self._next_ns, now_ns) + 1_000_000_000 // FRAMES_PER_SECOND
        self._send(changes)
