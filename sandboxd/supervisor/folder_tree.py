"""
What a plugin's folder holds, in memory, and what a guest may make of it. Pure, not thread-safe.

Every change costs as much as it carries however many files there are, but for two: moving a folder costs as much as it
holds, and making a file longer than what is written to it clears memory. Those are paid from an `Effort`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from sandboxd.limits import MAX_FOLDER_FILES, MAX_FOLDERS_BYTES
from sandboxd.supervisor.folder_disk import Change
from sandboxd.vm.folder_blob import ChangeKind, Entry, path_problem

MAX_MOVED: Final = 2 * MAX_FOLDER_FILES
"""Files that one frame's changes may move with their folders; one folder, whatever it holds, can always be moved."""
MAX_CLEARED_BYTES: Final = 2 * MAX_FOLDERS_BYTES
"""By which one frame's changes may lengthen files without writing there; one file can always be lengthened."""


@dataclass(slots=True)
class Effort:
    """What is left of the work that may be put into one frame."""

    files: int = MAX_MOVED
    cleared_bytes: int = MAX_CLEARED_BYTES


@dataclass(slots=True)
class _Node:
    data: bytearray | None
    changed_ns: int
    children: set[bytes]
    """Names; none of a file."""

    @property
    def bytes(self) -> int:
        return 0 if self.data is None else len(self.data)


class FolderTree:
    """
    All files and folders, by path.

    Args:
        entries: what it holds to begin with; folders before what they hold.
    """

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self._nodes: dict[bytes, _Node] = {}
        self._top: set[bytes] = set()
        self._bytes = 0
        for entry in entries:
            self._put(entry.path, None if entry.data is None else bytearray(entry.data), entry.changed_ns)

    def entries(self) -> tuple[Entry, ...]:
        """Return copies of all, folders before what they hold."""
        return tuple(
            Entry(path, None if node.data is None else bytes(node.data), node.changed_ns)
            for path, node in sorted(self._nodes.items(), key=lambda item: item[0].split(b"/"))
        )

    def is_file(self, path: bytes) -> bool:
        """Return whether there is such a file."""
        node = self._nodes.get(path)
        return node is not None and node.data is not None

    def apply(self, change: Change, max_bytes: int, max_files: int, effort: Effort) -> str:
        """
        Make a change; return why it is refused, or an empty text.

        Args:
            change: its paths are checked.
            max_bytes: quota of the whole folder: of all files and all paths.
            max_files: the same, folders counted too.
            effort: is spent.
        """
        if not self._has_parent(change.path):
            return "its folder is not there"
        node = self._nodes.get(change.path)
        match change.kind:
            case ChangeKind.CREATE | ChangeKind.FOLDER:
                return self._create(change, node, max_bytes, max_files)
            case ChangeKind.WRITE:
                size = max(change.size + len(change.other), node.bytes if node is not None else 0)
                return self._resize(node, size, change, max_bytes, effort)
            case ChangeKind.RESIZE:
                return self._resize(node, change.size, change, max_bytes, effort)
            case ChangeKind.UNLINK | ChangeKind.REMOVE:
                return self._remove(change, node)
            case ChangeKind.RENAME:
                return self._rename(change, node, max_bytes, effort)

    def _has_parent(self, path: bytes) -> bool:
        parent, _, _ = path.rpartition(b"/")
        node = self._nodes.get(parent)
        return not parent or (node is not None and node.data is None)

    def _siblings(self, path: bytes) -> tuple[set[bytes], bytes]:
        """Return the names in a path's folder, which is there, and the path's own."""
        parent, _, name = path.rpartition(b"/")
        return (self._nodes[parent].children if parent else self._top), name

    def _put(self, path: bytes, data: bytearray | None, changed_ns: int) -> None:
        names, name = self._siblings(path)
        names.add(name)
        self._nodes[path] = node = _Node(data, changed_ns, set())
        self._bytes += node.bytes + len(path)

    def _drop(self, path: bytes) -> None:
        names, name = self._siblings(path)
        names.discard(name)
        self._bytes -= self._nodes.pop(path).bytes + len(path)

    def _create(self, change: Change, node: _Node | None, max_bytes: int, max_files: int) -> str:
        if node is not None:
            return "it is there already"
        if len(self._nodes) >= max_files:
            return "the folder has as many files as it may"
        if len(change.path) > max_bytes - self._bytes:
            return "the folder has as many bytes as it may"
        self._put(change.path, None if change.kind is ChangeKind.FOLDER else bytearray(), time.time_ns())
        return ""

    def _resize(self, node: _Node | None, size: int, change: Change, max_bytes: int, effort: Effort) -> str:
        if node is None or node.data is None:
            return "there is no such file"
        more = size - len(node.data)
        if more > 0 and more > max_bytes - self._bytes:
            return "the folder has as many bytes as it may"
        if (cleared := max(0, more - len(change.other))) > effort.cleared_bytes:
            return "files were lengthened too much at once"
        effort.cleared_bytes -= cleared
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
        if node is None or (node.data is None) != (change.kind is ChangeKind.REMOVE):
            return "it is not there"
        if node.children:
            return "it is not empty"
        self._drop(change.path)
        return ""

    def _rename(self, change: Change, node: _Node | None, max_bytes: int, effort: Effort) -> str:
        path, other = change.path, change.other
        replaced = self._nodes.get(other)
        if problem := self._move_problem(change, node, replaced):
            return problem
        moved = {}
        for old in self._below(path):
            if old != path:
                effort.files -= 1
            if effort.files < 0:
                return "too many files were moved at once"
            moved[old] = other + old[len(path) :]
        if any(map(path_problem, moved.values())):
            return "its path would be too long"
        more = len(moved) * (len(other) - len(path))
        freed = replaced.bytes + len(other) if replaced is not None else 0
        if more > 0 and more > max_bytes - self._bytes + freed:
            return "the folder has as many bytes as it may"
        if replaced is not None:
            self._drop(other)
        names, name = self._siblings(path)
        names.discard(name)
        names, name = self._siblings(other)
        names.add(name)
        for old, new in moved.items():
            self._nodes[new] = self._nodes.pop(old)
        self._bytes += more
        return ""

    def _move_problem(self, change: Change, node: _Node | None, replaced: _Node | None) -> str:
        """Return why a move makes no sense, whatever it costs."""
        if node is None or not self._has_parent(change.other):
            return "it is not there, or its new folder is not"
        if change.other == change.path or change.other.startswith(change.path + b"/"):
            return "it cannot be moved into itself"
        if replaced is not None and ((replaced.data is None) != (node.data is None) or replaced.children):
            return "what is in its new place cannot be replaced"
        return ""

    def _below(self, path: bytes) -> Iterator[bytes]:
        """Yield a path and all that is below it; costs as much as is taken."""
        yield path
        waiting = [(path, iter(self._nodes[path].children))]
        while waiting:
            parent, names = waiting[-1]
            name = next(names, None)
            if name is None:
                waiting.pop()
                continue
            path = parent + b"/" + name
            yield path
            waiting.append((path, iter(self._nodes[path].children)))
