"""
Bundles on disk, by the digest of all that made them.

A bundle is machine code that workers run, so the directory must belong to us alone, and every file carries
its own digest: a torn or edited one is dropped, not loaded.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import tempfile
from pathlib import Path
from typing import Final

from sandboxd.errors import ConfigError
from sandboxd.vm.artefacts import MAX_BUNDLE_BYTES

_DIGEST_BYTES: Final = 32


class ArtefactCache:
    """
    A directory of bundles. Several processes may use it at once: files appear whole or not at all.

    Args:
        directory: made with mode 0700 if it is not there.

    Raises:
        ConfigError: it belongs to somebody else, or others may write it.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = directory.stat()
        except OSError as error:
            raise ConfigError(
                f"cannot use the artefact cache: {error.strerror}", path=str(directory)
            ) from None
        if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise ConfigError(
                "the artefact cache must belong to the daemon's user and be writable by nobody else",
                path=str(directory),
            )

    def get(self, key: str) -> bytes | None:
        """Return the bundle; None if there is none or if it is damaged, and then it is dropped."""
        path = self._path(key)
        try:
            with path.open("rb") as file:
                if os.fstat(file.fileno()).st_size > MAX_BUNDLE_BYTES + _DIGEST_BYTES:
                    self.drop(key)
                    return None
                content = file.read()
        except OSError:
            return None
        digest, data = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        if hashlib.sha256(data).digest() != digest:
            self.drop(key)
            return None
        return data

    def put(self, key: str, data: bytes) -> None:
        """Keep a bundle. mkstemp() makes files of mode 0600."""
        handle, name = tempfile.mkstemp(dir=self._directory, prefix=".new-")
        try:
            with open(handle, "wb") as file:
                file.write(hashlib.sha256(data).digest())
                file.write(data)
            Path(name).replace(self._path(key))
        except BaseException:
            with contextlib.suppress(OSError):
                Path(name).unlink()
            raise

    def drop(self, key: str) -> None:
        """Forget a bundle."""
        with contextlib.suppress(OSError):
            self._path(key).unlink()

    def _path(self, key: str) -> Path:
        return self._directory / f"{key}.sbxb"
