"""
Bundles on disk, by the digest of all that made them.

A bundle is machine code that workers run, so the directory must belong to us alone, and every file begins
with a MAC of its name and content: one that is torn, edited, renamed or somebody else's is dropped, not
loaded.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import logging
import os
import secrets
import stat
import tempfile
from pathlib import Path
from typing import Final

from sandboxd.errors import ConfigError
from sandboxd.vm.artefacts import MAX_BUNDLE_BYTES

_log = logging.getLogger(__name__)

KEY_BYTES: Final = 32
KEY_NAME: Final = "artefact.key"
_MAC_BYTES: Final = 32


class ArtefactCache:
    """
    A directory of bundles. Several processes may use it at once: files appear whole or not at all.

    Args:
        directory: made with mode 0700 if it is not there.
        key: 32 secret bytes that authenticate the files; None: a key that is kept in the directory itself,
            which tells what is damaged, and no more.

    Raises:
        ConfigError: it belongs to somebody else, or others may write it.
    """

    def __init__(self, directory: Path, key: bytes | None = None) -> None:
        self._directory = directory
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = directory.stat()
        except OSError as error:
            raise ConfigError(f"cannot use the artefact cache: {error.strerror}", path=str(directory)) from None
        if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise ConfigError(
                "the artefact cache must belong to the daemon's user and be writable by nobody else",
                path=str(directory),
            )
        self._key = key if key is not None else read_or_make_key(directory / KEY_NAME)

    def get(self, key: str) -> bytes | None:
        """Return the bundle; None if there is none or if it is not as we wrote it, and then it is dropped."""
        try:
            with self._path(key).open("rb") as file:
                content = file.read(MAX_BUNDLE_BYTES + _MAC_BYTES + 1)
        except OSError:
            return None
        mac, data = content[:_MAC_BYTES], content[_MAC_BYTES:]
        if not hmac.compare_digest(mac, self._mac(key, data)):
            _log.warning(
                "artefact cache: %s is damaged, was altered, or is of another installation;"
                " the module is compiled again",
                self._path(key),
            )
            self.drop(key)
            return None
        return data

    def put(self, key: str, data: bytes) -> None:
        """Keep a bundle. mkstemp() makes files of mode 0600."""
        handle, name = tempfile.mkstemp(dir=self._directory, prefix=".new-")
        try:
            with open(handle, "wb") as file:
                file.write(self._mac(key, data))
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

    def _mac(self, key: str, data: bytes) -> bytes:
        """Return the MAC of one entry: under its own name, so that one module's code is never another's."""
        mac = hashlib.blake2b(key=self._key, digest_size=_MAC_BYTES, person=b"sandboxd bundle")
        mac.update(len(key).to_bytes(8, "little") + key.encode())
        mac.update(data)
        return mac.digest()

    def _path(self, key: str) -> Path:
        return self._directory / f"{key}.sbxb"


def read_or_make_key(path: Path) -> bytes:
    """
    Return a secret key that lasts: read from a file of mode 0600, or made.

    Raises:
        ConfigError: the file cannot be read or written, belongs to somebody else, others may read it, or it
            holds something else.
    """
    try:
        if not path.exists():
            _make_key(path)
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            key = file.read(KEY_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot be read or written: {error.strerror}", path=str(path)) from None
    if status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise ConfigError("must belong to the daemon's user, who alone may read it (0600)", path=str(path))
    if len(key) != KEY_BYTES:
        raise ConfigError(f"must hold {KEY_BYTES} bytes; remove it to get a new key", path=str(path))
    return key


def _make_key(path: Path) -> None:
    # Written beside and linked: a crash never leaves half a key, and of two processes one wins for both.
    handle, fresh = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with open(handle, "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(fresh)
    finally:
        Path(fresh).unlink()
