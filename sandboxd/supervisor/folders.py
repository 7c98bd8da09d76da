"""
The folders of plugins as the trusted side keeps them: in memory as every VM gets them, and on disk.

A worker has no file system. A VM starts with a copy of the folder and says what it changes; each change is decided here
once more, made in memory, and then on disk, in order, on a thread of its own. So a VM that starts again gets what the
ones before it have written, and a slow disk holds up nobody.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sandboxd.errors import FolderError, WorkerError
from sandboxd.log import one_line
from sandboxd.policy.folders import Access, FolderPolicy
from sandboxd.protos import control_pb2 as control
from sandboxd.supervisor import folder_disk
from sandboxd.supervisor.folder_disk import Change
from sandboxd.supervisor.folder_lookup import lookup
from sandboxd.supervisor.folder_tree import Effort, FolderTree
from sandboxd.supervisor.throttle import Throttle
from sandboxd.vm.folder_blob import MAX_CHANGE_BYTES, ChangeKind, Snapshot, encode, path_problem

_log = logging.getLogger(__name__)

MAX_WAITING_BYTES: Final = 32 << 20
"""What may wait for the disk; further changes are refused until it has caught up."""
_CHANGE_BYTES: Final = 256
"""What one costs beside what it writes."""
_SCANS: Final = 3
_MOMENT_S: Final = 0.5
MAX_CHANGES: Final = 2048
"""Of one frame: more than an honest worker puts there."""

DISK_TIMEOUT_S: Final = 30.0
"""A disk that takes longer for all folders of a tenant, or for the changes to one, hangs."""


class Folder:
    """One folder of the disk, for all plugins that have it. Any thread may call its methods."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._path = path
        # A thread of its own: a mount that hangs holds up its own plugins alone. It ends when nobody has the folder.
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="folder")
        self._tree = FolderTree()
        self._changes = 0
        self._waiting_bytes = 0
        self._hangs = False
        """Somebody has waited in vain for a reading that is still under way."""
        self._throttle = Throttle(per_second=0.2, burst=5)
        self.refused = 0
        """Changes that were not made: over a quota, or of what is not there (any more)."""
        self.failed = 0
        """Changes that the disk did not take."""

    def reload(self, policy: FolderPolicy, timeout_s: float) -> None:
        """
        Read it anew, once all that was changed is on disk. Blocking; not on the disk's own thread.

        Raises:
            FolderError: it cannot be read, holds more than the policy allows, or its disk does neither within
                ``timeout_s``; if an earlier reading is still under way that took too long, at once.
        """
        with self._lock:
            if self._hangs:
                raise FolderError(f"folder {self._path} cannot be read: its disk hangs, as it did before")
        done: Future[None] = Future()
        self._have_done(self._read, policy, _SCANS, done)
        try:
            done.result(timeout_s)
        except TimeoutError:
            with self._lock:
                self._hangs = done.cancel() or self._hangs
                late = "has not taken the changes made to it" if self._waiting_bytes else "was not read"
            raise FolderError(f"folder {self._path} {late} within {timeout_s:.3g} s: its disk hangs") from None

    def _read(self, policy: FolderPolicy, tries: int, done: Future[None]) -> None:
        """Read it, on the disk's own thread; what changes meanwhile is made behind us, then it is read again."""
        with self._lock:
            if done.cancelled():
                self._hangs = False
                return
            before, rests = self._changes, not self._waiting_bytes
        try:
            entries, skipped = folder_disk.scan(self._path, policy.max_bytes, policy.max_files) if rests else ([], [])
        except Exception as error:  # whatever it is, somebody waits
            with self._lock:
                self._hangs = False
                waited_for = done.set_running_or_notify_cancel()
            if waited_for:
                done.set_exception(error)
            return
        with self._lock:
            self._hangs = False
            rests = rests and self._changes == before
            if not rests and tries > 1:
                self._disk.submit(self._read, policy, tries - 1, done)
                return
            if not done.set_running_or_notify_cancel():
                return
            if rests:  # else it never rests: what is known of it is what its plugin has made of it
                self._tree = FolderTree(entries)
        for path in skipped[:3]:
            _log.warning("folder %s: %s is left out: no plain file or folder", self._path, one_line(path, 200))
        done.set_result(None)

    def flush(self) -> None:
        """
        Wait until the disk has taken all changes. Not on the disk's own thread.

        Raises:
            FolderError: it does not take them within `DISK_TIMEOUT_S`.
        """
        try:
            self._have_done(lambda: None).result(DISK_TIMEOUT_S)
        except TimeoutError:
            text = f"folder {self._path} has not taken the changes made to it within {DISK_TIMEOUT_S:g} s"
            raise FolderError(text) from None

    def _have_done(self, work: Callable[..., None], *arguments: object) -> Future[None]:
        try:
            return self._disk.submit(work, *arguments)
        except RuntimeError as error:
            raise FolderError(f"folder {self._path} gets no thread: {error}") from None

    def snapshot(self, policy: FolderPolicy) -> Snapshot:
        """Return it as a VM gets it."""
        with self._lock:
            entries = self._tree.entries()
        writable = policy.access is Access.WRITE
        return Snapshot(policy.name, writable, policy.max_bytes, policy.max_files, entries)

    def apply(self, change: Change, policy: FolderPolicy, effort: Effort | None = None) -> str:
        """
        Make a change in memory, and have it made on disk; return why it is refused, or an empty text.

        Args:
            change: what a guest has done.
            policy: has the quotas.
            effort: of all changes that came together; None: it came alone.
        """
        with self._lock:
            if change.kind is ChangeKind.CREATE and self._tree.is_file(change.path):
                # Another VM has made it since this one started: to this one it is empty.
                change = Change(ChangeKind.RESIZE, change.path)
            if self._waiting_bytes > MAX_WAITING_BYTES:
                problem = "the disk has not taken the changes before it"
            else:
                problem = self._tree.apply(change, policy.max_bytes, policy.max_files, effort or Effort())
            if not problem:
                self._changes += 1
                self._waiting_bytes += len(change.other) + _CHANGE_BYTES
                self._have_performed(change)
            else:
                self.refused += 1
        if problem:
            self._tell("%s of %s is refused: %s", change, problem)
        return problem

    def _have_performed(self, change: Change) -> None:
        try:
            self._disk.submit(self._perform, change)
        except RuntimeError as error:  # there is no thread for it
            self._waiting_bytes -= len(change.other) + _CHANGE_BYTES
            self.failed += 1
            self._tell("%s of %s failed, the plugin was not told: %s", change, str(error))

    def _perform(self, change: Change) -> None:
        problem = ""
        try:
            folder_disk.perform(self._path, change)
        except Exception as error:  # whatever it is, those behind it have to be made
            problem = str(error)
        with self._lock:
            self._waiting_bytes -= len(change.other) + _CHANGE_BYTES
            self.failed += bool(problem)
        if problem:
            self._tell("%s of %s failed, the plugin was not told: %s", change, problem)

    def _tell(self, text: str, change: Change, reason: str) -> None:
        if self._throttle.admits(time.monotonic()):
            path = one_line(change.path.decode("utf-8", "replace"), 200)
            _log.warning(f"folder %s: {text}", self._path, change.kind.name.lower(), path, one_line(reason, 300))


_folders: weakref.WeakValueDictionary[Path, Folder] = weakref.WeakValueDictionary()
_folders_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class Mount:
    """A folder as one plugin has it."""

    policy: FolderPolicy
    folder: Folder


def open_folders(policies: Iterable[FolderPolicy], deadline_s: float | None = None) -> tuple[Mount, ...]:
    """
    Return the folders, read anew; all plugins and versions that have a folder share it. Blocking.

    Args:
        policies: of one plugin.
        deadline_s: of the monotonic clock; None: all have `DISK_TIMEOUT_S`.

    Raises:
        FolderError: as `Folder.reload`.
    """
    deadline_s = time.monotonic() + DISK_TIMEOUT_S if deadline_s is None else deadline_s
    found = []
    for policy in policies:
        path = lookup(policy.path, _left_s(deadline_s))
        with _folders_lock:
            folder = _folders.setdefault(path, Folder(path))
        folder.reload(policy, _left_s(deadline_s))
        found.append(Mount(policy, folder))
    return tuple(found)


def _left_s(deadline_s: float) -> float:
    """Return what is left until then, and a moment in any case: a folder whose disk is well is read in that."""
    return max(_MOMENT_S, deadline_s - time.monotonic())


def encoded(mounts: Iterable[Mount]) -> bytes:
    """Return folders as hostcore reads them."""
    return encode(mount.folder.snapshot(mount.policy) for mount in mounts)


@dataclass(frozen=True, slots=True)
class FileChanges:
    """What a VM has changed, in order: each with the number of its folder."""

    vm_id: int
    plugin_id: int
    changes: tuple[tuple[int, Change], ...]


def read_changes(frame: control.FileChanges, plugin_id: int) -> FileChanges:
    """
    Check what a worker says that a VM has changed.

    Raises:
        WorkerError: no honest worker says this.
    """
    if len(frame.changes) > MAX_CHANGES:
        raise WorkerError(f"made {len(frame.changes)} changes at once")
    return FileChanges(frame.vm_id, plugin_id, tuple((change.folder, _change(change)) for change in frame.changes))


def _change(change: control.FileChange) -> Change:
    if change.kind not in list(ChangeKind) or len(change.other) > MAX_CHANGE_BYTES or change.size >= 1 << 40:
        raise WorkerError(f"a malformed change of kind {change.kind} in a folder")
    kind = ChangeKind(change.kind)
    problem = path_problem(change.path) or (path_problem(change.other) if kind is ChangeKind.RENAME else "")
    if problem:
        raise WorkerError(f"changed what is {problem}")
    return Change(kind, change.path, change.other, change.size)


def apply_changes(mounts: tuple[Mount, ...], changes: FileChanges) -> None:
    """
    Make what a VM has changed.

    Raises:
        WorkerError: it has no such folder, or may not write there: hostcore would not have let it.
    """
    effort = Effort()
    for number, change in changes.changes:
        if number >= len(mounts) or mounts[number].policy.access is not Access.WRITE:
            raise WorkerError(f"changed folder {number}, which its plugin may not")
        mounts[number].folder.apply(change, mounts[number].policy, effort)
