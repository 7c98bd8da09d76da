"""The ``wasi`` part of a plugin. Pure; used by `sandboxd.policy.read_plugin`."""

from __future__ import annotations

import re
from pathlib import Path

from sandboxd import limits
from sandboxd.policy.folders import Access, FolderPolicy, WasiPolicy
from sandboxd.yaml_nodes import Value

_NAME = re.compile(r"/(?:[A-Za-z0-9_-][A-Za-z0-9_.-]*(?:/[A-Za-z0-9_-][A-Za-z0-9_.-]*)*)?")
_NAME_FORM = "a path from / in the guest's eyes, such as /rules or /data/out"


def read_wasi(value: Value | None, root: Path) -> WasiPolicy:
    """Read a plugin's ``wasi``; paths of folders are relative to ``root``."""
    default = WasiPolicy()
    if value is None:
        return default
    section = value.section(("folders", "open_files"))
    folders, open_files = section.get("folders"), section.get("open_files")
    return WasiPolicy(
        folders=_folders(folders, root) if folders else (),
        open_files=open_files.integer(1, limits.MAX_OPEN_FILES) if open_files else default.open_files,
    )


def _folders(value: Value, root: Path) -> tuple[FolderPolicy, ...]:
    entries = value.mapping()
    if len(entries) > limits.MAX_FOLDERS:
        raise value.fail(f"has {len(entries)} entries, at most {limits.MAX_FOLDERS} are allowed")
    found = tuple(_folder(name, entry, root) for name, entry in entries.items())
    if sum(folder.max_bytes for folder in found) > limits.MAX_FOLDERS_BYTES:
        raise value.fail(f"its folders' bytes are more than {limits.MAX_FOLDERS_BYTES} in all: every VM holds them")
    paths = [folder.path for folder in found]
    for folder in found:
        if folder.access is Access.WRITE and paths.count(folder.path) > 1:
            raise value.fail(f"names {folder.path} twice, and lets the plugin write there")
    return found


def _folder(name: str, value: Value, root: Path) -> FolderPolicy:
    if not _NAME.fullmatch(name) or len(name) > limits.MAX_FOLDER_NAME_BYTES:
        raise value.fail(f"{name[:70]!r} is not a name of a folder", (_NAME_FORM,))
    section = value.section(("path", "access", "bytes", "files"))
    path, access, size, files = section.need("path"), section.get("access"), section.get("bytes"), section.get("files")
    text = path.string()
    if "\0" in text:
        raise path.fail("must not hold a NUL")
    return FolderPolicy(
        name=name,
        path=root / text,
        access=access.choice(Access) if access else Access.READ,
        max_bytes=size.size(0, limits.MAX_FOLDERS_BYTES) if size else limits.DEFAULT_FOLDER_BYTES,
        max_files=files.integer(0, limits.MAX_FOLDER_FILES) if files else limits.DEFAULT_FOLDER_FILES,
    )
