"""
The preopened folders as hostcore reads them: the ``folders`` entry of the configuration blob. Pure.

Layout in ``docs/hostcore.md``. The trusted side encodes what lies on disk; changes come back as `FileChange`.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

MAX_FOLDERS: Final = 16
MAX_DEPTH: Final = 16
"""Parts of a path."""
MAX_NAME_BYTES: Final = 255
MAX_PATH_BYTES: Final = 1024
MAX_CHANGE_BYTES: Final = 32 * 1024
"""Of one write."""

_FOLDER: Final = struct.Struct("<5I")
_ENTRY: Final = struct.Struct("<4IQ")


@dataclass(frozen=True, slots=True)
class Entry:
    """One file or folder, by its path below the preopened folder, parts joined by ``/``."""

    path: bytes
    data: bytes | None
    """None: a folder."""
    changed_ns: int = 0
    """Wall clock."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One preopened folder."""

    name: str
    """As the guest sees it."""
    writable: bool
    max_bytes: int
    max_files: int
    entries: tuple[Entry, ...]
    """Folders before what they hold."""


class ChangeKind(enum.IntEnum):
    """``enum change`` of hostcore."""

    CREATE = 1
    """An empty file."""
    WRITE = 2
    RESIZE = 3
    FOLDER = 4
    """A new folder."""
    UNLINK = 5
    """A file."""
    REMOVE = 6
    """An empty folder."""
    RENAME = 7


def encode(folders: Iterable[Snapshot]) -> bytes:
    """Return the entry's content."""
    parts: list[bytes] = []
    for folder in folders:
        name = folder.name.encode()
        parts.append(
            _FOLDER.pack(folder.writable, folder.max_bytes, folder.max_files, len(folder.entries), len(name)) + name
        )
        for entry in folder.entries:
            data = entry.data or b""
            head = _ENTRY.pack(len(entry.path), entry.data is None, len(data), 0, entry.changed_ns)
            parts += [head, entry.path, data]
    return b"".join(parts)


def path_problem(path: bytes) -> str:
    """
    Return why a path does not name something below a folder, and nothing else: it is empty, absolute, too long or too
    deep, or has an empty part, ``.``, ``..`` or NUL. Empty: it does.
    """
    parts = path.split(b"/")
    if len(path) > MAX_PATH_BYTES or len(parts) > MAX_DEPTH or b"\0" in path:
        return f"not a path below a folder: {path[:80]!r}"
    if any(part in {b"", b".", b".."} or len(part) > MAX_NAME_BYTES for part in parts):
        return f"not a path below a folder: {path[:80]!r}"
    return ""
