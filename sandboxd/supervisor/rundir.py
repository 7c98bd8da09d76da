"""
The daemon's directories: made with the right modes, locked against a second daemon, cleared of dead sockets.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
from pathlib import Path

from sandboxd.compiler.cache import read_or_make_key
from sandboxd.errors import ConfigError
from sandboxd.policy.redact import tenant_key

LOCK_NAME = "sandboxd.pid"
ADMIN_SOCKET_NAME = "admin.sock"
KEY_NAME = "redaction.key"
SOCKET_PROBE_S = 1.0


class RuntimeDirectory:
    """
    The runtime directory, ours alone until `close`.

    Args:
        path: made if it is not there; its parent must be.

    Raises:
        ConfigError: it cannot be had, or another daemon has it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # 0755: proxies of other users reach the fronts' sockets in it; each socket has a mode of its own.
        make_directory(path, 0o755)
        self._lock_fd = self._lock()

    @property
    def admin_socket(self) -> Path:
        """The operator's socket."""
        return self.path / ADMIN_SOCKET_NAME

    def close(self) -> None:
        """Give the directory back. The lock's file stays: removing it would race with the next daemon."""
        os.ftruncate(self._lock_fd, 0)
        os.close(self._lock_fd)

    def _lock(self) -> int:
        path = self.path / LOCK_NAME
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        except OSError as error:
            raise ConfigError(f"cannot be written: {error.strerror}", path=str(path)) from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
            os.close(fd)
            owner = f" (pid {holder})" if holder else ""
            problem = f"another sandboxd{owner} uses this runtime directory"
            raise ConfigError(problem, path=str(self.path), key="runtime_directory") from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        return fd


def make_directory(path: Path, mode: int) -> None:
    """
    Make a directory (and, for a user's own directories, its parents) if it is not there.

    Raises:
        ConfigError: it cannot be made, or is not a directory that we own.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.mkdir(mode=0o700)
            path.chmod(mode)  # whatever the umask says: proxies must reach the sockets
        status = path.stat()
    except OSError as error:
        raise ConfigError(f"cannot be made: {error.strerror}", path=str(path)) from None
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise ConfigError("must be a directory that belongs to the daemon's user", path=str(path))
    if status.st_mode & 0o022:
        raise ConfigError("must not be writable for others (chmod go-w)", path=str(path))


def remove_dead_socket(path: Path) -> None:
    """
    Remove a socket that a dead process left; nothing if there is none.

    Raises:
        ConfigError: somebody listens there, or it is no socket.
    """
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise ConfigError("is in the way: it is not a socket", path=str(path))
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(SOCKET_PROBE_S)
        answer = probe.connect_ex(str(path))
    if answer not in (errno.ECONNREFUSED, errno.ENOENT):
        raise ConfigError("is in use by a process that is alive", path=str(path))
    path.unlink(missing_ok=True)


class RedactionKeys:
    """
    Keys of the ``hash`` redaction: one per tenant, the same for as long as the state directory lives.

    Args:
        state_directory: holds the installation's key, readable by the daemon's user alone.

    Raises:
        ConfigError: the key cannot be read or written, or others may read it.
    """

    def __init__(self, state_directory: Path) -> None:
        make_directory(state_directory, 0o700)
        self._key = read_or_make_key(state_directory / KEY_NAME)

    def of(self, tenant: str) -> bytes:
        """Return one tenant's key."""
        return tenant_key(self._key, tenant)
