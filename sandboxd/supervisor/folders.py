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
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sandboxd.errors import WorkerError
from sandboxd.log import one_line
from sandboxd.policy.folders import Access, FolderPolicy
from sandboxd.protos import control_pb2 as control
from sandboxd.supervisor import folder_disk
from sandboxd.supervisor.folder_disk import Change
from sandboxd.supervisor.throttle import Throttle
from sandboxd.vm.folder_blob import MAX_CHANGE_BYTES, ChangeKind, Entry, Snapshot, encode, path_problem

_log = logging.getLogger(__name__)

MAX_WAITING_BYTES: Final = 32 << 20
"""What may wait for the disk; further changes are refused until it has caught up."""
_CHANGE_BYTES: Final = 256
"""What one costs beside what it writes."""
_SCANS: Final = 3

_disk = ThreadPoolExecutor(1, thread_name_prefix="folders")


@dataclass(slots=True)
class _Node:
    data: bytearray | None
    changed_ns: int


class Folder:
    """One folder of the disk, for all plugins that have it. Any thread may call its methods."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._path = path
        self._nodes: dict[bytes, _Node] = {}
        self._bytes = 0
        self._changes = 0
        self._waiting_bytes = 0
        self._throttle = Throttle(per_second=0.2, burst=5)
        self.refused = 0
        """Changes that were not made: over a quota, or of what is not there (any more)."""
        self.failed = 0
        """Changes that the disk did not take."""

    def reload(self, policy: FolderPolicy) -> None:
        """
        Read it anew, once all that was changed is on disk. Blocking.

        Raises:
            FolderError: it cannot be read, or holds more than the policy allows.
        """
        for _ in range(_SCANS):
            self.flush()
            with self._lock:
                before = self._changes
            entries, skipped = folder_disk.scan(self._path, policy.max_bytes, policy.max_files)
            with self._lock:
                if self._changes != before:
                    continue
                self._nodes = {
                    e.path: _Node(None if e.data is None else bytearray(e.data), e.changed_ns) for e in entries
                }
                self._bytes = sum(len(entry.data or b"") for entry in entries)
            break  # else it never rests: what is known of it is what its plugin has made of it
        for path in skipped[:3]:
            _log.warning("folder %s: %s is left out: no plain file or folder", self._path, one_line(path, 200))

    def flush(self) -> None:
        """Wait until the disk has taken all changes. Not on the disk's own thread."""
        _disk.submit(lambda: None).result()

    def snapshot(self, policy: FolderPolicy) -> Snapshot:
        """Return it as a VM gets it."""
        with self._lock:
            entries = tuple(
                Entry(path, None if node.data is None else bytes(node.data), node.changed_ns)
                for path, node in sorted(self._nodes.items(), key=lambda item: item[0].split(b"/"))
            )
        writable = policy.access is Access.WRITE
        return Snapshot(policy.name, writable, policy.max_bytes, policy.max_files, entries)

    def apply(self, change: Change, policy: FolderPolicy) -> str:
        """Make a change in memory, and have it made on disk; return why it is refused, or an empty text."""
        with self._lock:
            if change.kind is ChangeKind.CREATE and self._is_file(change.path):
                # Another VM has made it since this one started: to this one it is empty.
                change = Change(ChangeKind.RESIZE, change.path)
            problem = self._apply(change, policy)
            if not problem:
                self._changes += 1
                self._waiting_bytes += len(change.other) + _CHANGE_BYTES
            else:
                self.refused += 1
        if problem:
            self._tell("%s of %s is refused: %s", change, problem)
        else:
            _disk.submit(folder_disk.perform, self._path, change).add_done_callback(
                lambda done: self._performed(change, done)
            )
        return problem

    def _performed(self, change: Change, done: Future[None]) -> None:
        with self._lock:
            self._waiting_bytes -= len(change.other) + _CHANGE_BYTES
        if (error := done.exception()) is not None:
            self.failed += 1
            self._tell("%s of %s failed, the plugin was not told: %s", change, str(error))

    def _tell(self, text: str, change: Change, reason: str) -> None:
        if self._throttle.admits(time.monotonic()):
            path = one_line(change.path.decode("utf-8", "replace"), 200)
            _log.warning(f"folder %s: {text}", self._path, change.kind.name.lower(), path, one_line(reason, 300))

    # --- the decisions; the lock is held ---

    def _apply(self, change: Change, policy: FolderPolicy) -> str:  # noqa: PLR0911 - one for each kind
        if self._waiting_bytes > MAX_WAITING_BYTES:
            return "the disk has not taken the changes before it"
        parent, _, _ = change.path.rpartition(b"/")
        if parent and not self._is_folder(parent):
            return "its folder is not there"
        node = self._nodes.get(change.path)
        match change.kind:
            case ChangeKind.CREATE | ChangeKind.FOLDER:
                return self._create(change, node, policy.max_files)
            case ChangeKind.WRITE:
                size = max(change.size + len(change.other), self._len(node))
                return self._resize(node, size, change, policy.max_bytes)
            case ChangeKind.RESIZE:
                return self._resize(node, change.size, change, policy.max_bytes)
            case ChangeKind.UNLINK | ChangeKind.REMOVE:
                return self._remove(change, node)
            case ChangeKind.RENAME:
                return self._rename(change.path, change.other, node)

    def _is_file(self, path: bytes) -> bool:
        node = self._nodes.get(path)
        return node is not None and node.data is not None

    def _is_folder(self, path: bytes) -> bool:
        node = self._nodes.get(path)
        return node is not None and node.data is None

    @staticmethod
    def _len(node: _Node | None) -> int:
        return len(node.data) if node is not None and node.data is not None else 0

    def _create(self, change: Change, node: _Node | None, max_files: int) -> str:
        if node is not None:
            return "it is there already"
        if len(self._nodes) >= max_files:
            return "the folder has as many files as it may"
        is_folder = change.kind is ChangeKind.FOLDER
        self._nodes[change.path] = _Node(None if is_folder else bytearray(), time.time_ns())
        return ""

    def _resize(self, node: _Node | None, size: int, change: Change, max_bytes: int) -> str:
        if node is None or node.data is None:
            return "there is no such file"
        more = size - len(node.data)
        if more > 0 and more > max_bytes - self._bytes:
            return "the folder has as many bytes as it may"
        if more > 0:
            node.data.extend(bytes(more))
        elif more < 0:
            del node.data[size:]
        self._bytes += more
        if change.kind is ChangeKind.WRITE:
            node.data[change.size : change.size + len(change.other)] = change.other
        node.changed_ns = time.time_ns()
        return ""

    def _remove(self, change: Change, node: _Node | None) -> str:
        is_folder = change.kind is ChangeKind.REMOVE
        if node is None or (node.data is None) != is_folder:
            return "it is not there"
        if is_folder and self._has_children(change.path):
            return "it is not empty"
        self._bytes -= self._len(node)
        del self._nodes[change.path]
        return ""

    def _has_children(self, path: bytes) -> bool:
        return any(other.startswith(path + b"/") for other in self._nodes)

    def _rename(self, path: bytes, other: bytes, node: _Node | None) -> str:
        parent, _, _ = other.rpartition(b"/")
        replaced = self._nodes.get(other)
        if node is None or (parent and not self._is_folder(parent)):
            return "it is not there, or its new folder is not"
        if other == path or other.startswith(path + b"/"):
            return "it cannot be moved into itself"
        if replaced is not None and ((replaced.data is None) != (node.data is None) or self._has_children(other)):
            return "what is in its new place cannot be replaced"
        moved = {p: other + p[len(path) :] for p in self._nodes if p == path or p.startswith(path + b"/")}
        if any(map(path_problem, moved.values())):
            return "its path would be too long"
        self._bytes -= self._len(replaced)
        self._nodes.pop(other, None)
        for old, new in moved.items():
            self._nodes[new] = self._nodes.pop(old)
        return ""


_folders: weakref.WeakValueDictionary[Path, Folder] = weakref.WeakValueDictionary()
_folders_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class Mount:
    """A folder as one plugin has it."""

    policy: FolderPolicy
    folder: Folder


def open_folders(policies: Iterable[FolderPolicy]) -> tuple[Mount, ...]:
    """
    Return the folders, read anew; all plugins and versions that have a folder share it. Blocking.

    Raises:
        FolderError: one cannot be read, or holds more than its policy allows.
    """
    found = []
    for policy in policies:
        path = policy.path.resolve()
        with _folders_lock:
            folder = _folders.setdefault(path, Folder(path))
        folder.reload(policy)
        found.append(Mount(policy, folder))
    return tuple(found)


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
    for number, change in changes.changes:
        if number >= len(mounts) or mounts[number].policy.access is not Access.WRITE:
            raise WorkerError(f"changed folder {number}, which its plugin may not")
        mounts[number].folder.apply(change, mounts[number].policy)
