"""Folders of plugins for tests: with small quotas, read from disk, changed and looked at."""

from __future__ import annotations

from pathlib import Path

from sandboxd.policy.folders import Access, FolderPolicy
from sandboxd.supervisor.folder_disk import Change
from sandboxd.supervisor.folders import Mount, open_folders
from sandboxd.vm.folder_blob import ChangeKind


def policy(path: Path, **more: object) -> FolderPolicy:
    """A folder that may be written, with small quotas."""
    return FolderPolicy(
        **{"name": "/d", "path": path, "access": Access.WRITE, "max_bytes": 100, "max_files": 5, **more}
    )  # type: ignore[arg-type]


def mounted(path: Path, **more: object) -> Mount:
    """The folder, read."""
    (mount,) = open_folders([policy(path, **more)])
    return mount


def paths(mount: Mount) -> dict[bytes, bytes | None]:
    """What a VM would get."""
    return {entry.path: entry.data for entry in mount.folder.snapshot(mount.policy).entries}


def do(mount: Mount, kind: ChangeKind, path: bytes, other: bytes = b"", size: int = 0) -> str:
    """Make a change, and wait for the disk."""
    problem = mount.folder.apply(Change(kind, path, other, size), mount.policy)
    mount.folder.flush()
    return problem
