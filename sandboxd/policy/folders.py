"""What a plugin may have of the file system: frozen data, without any by default."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from pathlib import Path

from sandboxd import limits


class Access(enum.StrEnum):
    """What a plugin may do in a folder."""

    READ = "read"
    WRITE = "write"
    """Also create, change, rename and remove."""


@dataclass(frozen=True, slots=True)
class FolderPolicy:
    """One preopened folder."""

    name: str
    """As the guest sees it, such as ``/rules``."""
    path: Path
    """On the machine."""
    access: Access = Access.READ
    max_bytes: int = limits.DEFAULT_FOLDER_BYTES
    """All files of it together, and all paths."""
    max_files: int = limits.DEFAULT_FOLDER_FILES
    """Files and folders below it."""


@dataclass(frozen=True, slots=True)
class WasiPolicy:
    """What WASI gives beside environment, clocks and random numbers."""

    folders: tuple[FolderPolicy, ...] = ()
    open_files: int = limits.DEFAULT_OPEN_FILES
    """Files and folders open at once in one VM, beside the preopened ones."""
