"""
A plugin's folder on disk: reading all of it, and making a change. Blocking; no asyncio.

What lies there may have been put by anybody, at any moment: every part of a path is opened from its parent's descriptor
and without following links, and only plain files with one name on the same file system are touched. So neither a
symbolic link, nor a hard link, nor a mount point, nor a race leads out of the folder.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sandboxd.errors import FolderError
from sandboxd.vm.folder_blob import MAX_DEPTH, MAX_PATH_BYTES, ChangeKind, Entry

_FOLDER_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_FLAGS: Final = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_FILE_MODE: Final = 0o640
_FOLDER_MODE: Final = 0o750


@dataclass(frozen=True, slots=True)
class Change:
    """One change that a guest has made, its paths checked; ``other`` is what is written, or the new path."""

    kind: ChangeKind
    path: bytes
    other: bytes = b""
    size: int = 0
    """Offset of a write; new size."""


@dataclass(slots=True)
class _Room:
    bytes: int
    files: int


def scan(root: Path, max_bytes: int, max_files: int) -> tuple[list[Entry], list[str]]:
    """
    Return what lies below a folder, folders first, and what was left out because it is no plain file or folder.

    Raises:
        FolderError: it cannot be read, or holds more than this.
    """
    entries: list[Entry] = []
    skipped: list[str] = []
    try:
        with _opened_root(root) as fd:
            _scan(fd, b"", os.fstat(fd).st_dev, _Room(max_bytes, max_files), entries, skipped)
    except OSError as error:
        raise FolderError(f"folder {root} cannot be read: {error.strerror}") from None
    except _FullError as error:
        raise FolderError(f"folder {root} holds more than {error} ({max_bytes} bytes, {max_files} files)") from None
    return entries, skipped


class _FullError(Exception):
    pass


def _scan(  # noqa: PLR0917 - it calls itself
    fd: int, prefix: bytes, device: int, room: _Room, entries: list[Entry], skipped: list[str]
) -> None:
    with os.scandir(fd) as found:
        names = sorted(os.fsencode(item.name) for item in found)
    for name in names:
        path = prefix + name
        if path.count(b"/") >= MAX_DEPTH or len(path) > MAX_PATH_BYTES:
            skipped.append(os.fsdecode(path))
            continue
        opened = -1
        try:
            facts = os.stat(name, dir_fd=fd, follow_symlinks=False)
            if stat.S_ISDIR(facts.st_mode):
                opened = os.open(name, _FOLDER_FLAGS, dir_fd=fd)
            elif stat.S_ISREG(facts.st_mode):
                opened = os.open(name, os.O_RDONLY | _FILE_FLAGS, dir_fd=fd)
            facts = os.fstat(opened) if opened >= 0 else facts
            if opened < 0 or not _is_ours(facts, device):
                skipped.append(os.fsdecode(path))
                continue
            room.files -= 1
            room.bytes -= len(path)
            if min(room.files, room.bytes) < 0:
                raise _FullError("it may")
            if stat.S_ISDIR(facts.st_mode):
                entries.append(Entry(path, None, facts.st_mtime_ns))
                _scan(opened, path + b"/", device, room, entries, skipped)
            else:
                entries.append(Entry(path, _read(opened, room), facts.st_mtime_ns))
        except FileNotFoundError:
            continue  # it has gone since
        finally:
            if opened >= 0:
                os.close(opened)


def _read(fd: int, room: _Room) -> bytes:
    data = b""
    while piece := os.read(fd, min(1 << 20, room.bytes - len(data) + 1)):
        data += piece
        if len(data) > room.bytes:
            raise _FullError("it may")
    room.bytes -= len(data)
    return data


def _is_ours(facts: os.stat_result, device: int) -> bool:
    """A folder, or a file that has no other name: one elsewhere could be somebody else's file."""
    if facts.st_dev != device:
        return False
    return stat.S_ISDIR(facts.st_mode) or (stat.S_ISREG(facts.st_mode) and facts.st_nlink == 1)


@contextlib.contextmanager
def _opened_root(root: Path) -> Iterator[int]:
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def _opened_parent(root_fd: int, path: bytes) -> Iterator[tuple[int, bytes]]:
    """Open the folder that a path's last part is in."""
    *parts, name = path.split(b"/")
    fd = os.dup(root_fd)
    device = os.fstat(root_fd).st_dev
    try:
        for part in parts:
            below = os.open(part, _FOLDER_FLAGS, dir_fd=fd)
            os.close(fd)
            fd = below
            if os.fstat(fd).st_dev != device:
                raise OSError(18, "is on another file system")
        yield fd, name
    finally:
        os.close(fd)


def perform(root: Path, change: Change) -> None:
    """
    Make a change on disk.

    Raises:
        OSError: it cannot be made.
    """
    with _opened_root(root) as root_fd, _opened_parent(root_fd, change.path) as (fd, name):
        match change.kind:
            case ChangeKind.CREATE:
                created = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FILE_FLAGS, _FILE_MODE, dir_fd=fd)
                try:
                    _set_mode(created, _FILE_MODE)
                finally:
                    os.close(created)
            case ChangeKind.WRITE | ChangeKind.RESIZE:
                _change_file(fd, name, os.fstat(root_fd).st_dev, change)
            case ChangeKind.FOLDER:
                os.mkdir(name, _FOLDER_MODE, dir_fd=fd)
                made = os.open(name, _FOLDER_FLAGS, dir_fd=fd)
                try:
                    _set_mode(made, _FOLDER_MODE)
                finally:
                    os.close(made)
            case ChangeKind.UNLINK:
                os.unlink(name, dir_fd=fd)
            case ChangeKind.REMOVE:
                os.rmdir(name, dir_fd=fd)
            case ChangeKind.RENAME:
                with _opened_parent(root_fd, change.other) as (other_fd, other):
                    os.rename(name, other, src_dir_fd=fd, dst_dir_fd=other_fd)


def _change_file(parent_fd: int, name: bytes, device: int, change: Change) -> None:
    fd = os.open(name, os.O_WRONLY | _FILE_FLAGS, dir_fd=parent_fd)
    try:
        if not _is_ours(os.fstat(fd), device):
            raise OSError(1, "is not a plain file with one name")
        if change.kind is ChangeKind.RESIZE:
            os.ftruncate(fd, change.size)
            return
        written = 0
        while written < len(change.other):
            written += os.pwrite(fd, change.other[written:], change.size + written)
    finally:
        os.close(fd)


def _set_mode(fd: int, mode: int) -> None:
    """Whatever the daemon's umask is: the folder's group may read. In a setgid folder that is the folder's own."""
    os.fchmod(fd, mode | os.fstat(fd).st_mode & stat.S_ISGID)
