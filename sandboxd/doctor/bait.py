"""
The bait of the self-test: what an attack could win outside the jail, put out for the length of a `with`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from sandboxd.jail.attack_calls import SECRET, Bait
from sandboxd.jail.syscalls import syscall

_IPC_PRIVATE_TRIES: Final = 100
_IPC_CREAT, _IPC_EXCL, _IPC_RMID = 0o1000, 0o2000, 0
_KEYCTL_JOIN_SESSION_KEYRING, _KEY_SPEC_SESSION = 1, -3


@contextlib.contextmanager
def bait() -> Iterator[Bait]:
    """
    Put out the bait in this process. It joins a session keyring of its own, so that the planted key ends
    with it.

    Raises:
        OSError: the machine cannot even do this much.
    """
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sandboxd-doctor-")))
        directory.chmod(0o777)  # as open to the attacker as it could be
        secret_file = directory / "secret"
        secret_file.write_bytes(SECRET)
        leaked = stack.enter_context(secret_file.open("rb"))
        namespace = stack.enter_context(Path("/proc/self/ns/net").open("rb"))
        tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        abstract = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        name = b"sandboxd-doctor-%d" % os.getpid()
        abstract.bind(b"\0" + name)
        abstract.listen()
        secret = ctypes.create_string_buffer(SECRET)
        shm_key, shm_id = _make_shared_memory()
        stack.callback(syscall, "shmctl", shm_id, _IPC_RMID, None)
        yield Bait(
            pid=os.getpid(),
            secret_address=ctypes.addressof(secret),
            secret_file=str(secret_file),
            tcp_port=tcp.getsockname()[1],
            abstract_name=name,
            leaked_fd=leaked.fileno(),
            namespace_fd=namespace.fileno(),
            shm_key=shm_key,
            key_name=_plant_key(),
            host_name=socket.gethostname(),
        )


def _make_shared_memory() -> tuple[int, int]:
    for key in range(os.getpid() + 1, os.getpid() + _IPC_PRIVATE_TRIES):
        with contextlib.suppress(FileExistsError):
            return key, syscall("shmget", key, 4096, _IPC_CREAT | _IPC_EXCL | 0o666)
    raise FileExistsError("no free shared memory key")


def _plant_key() -> bytes:
    """Plant a key where the kernel has keyrings; where not, the attack fails on a bare machine too."""
    name = b"sandboxd-doctor"
    with contextlib.suppress(OSError):
        syscall("keyctl", _KEYCTL_JOIN_SESSION_KEYRING, None)
        syscall("add_key", b"user", name, SECRET, len(SECRET), _KEY_SPEC_SESSION)
    return name
