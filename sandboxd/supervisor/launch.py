"""
Start a worker's process: exec with a clean environment, its control socket, and nothing else of ours.

Used by the asyncio side (`process`) and the synchronous one (`local`).
"""

from __future__ import annotations

import socket
import subprocess
from dataclasses import dataclass

from sandboxd.jail.command import python_module
from sandboxd.protos import control_pb2 as control
from sandboxd.supervisor.cgroups import WorkerCgroup


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What a worker is told to make of itself before it reads a tenant's bytes."""

    tenant: str
    uid: int = 0
    """0: keep ours (we are not root, or the configuration gives no range)."""
    gid: int = 0
    max_processes: int = 0
    """Processes and threads of its uid; 0: no limit of its own."""
    max_open_files: int = 4096
    address_space_bytes: int = 0
    """0: no limit; the engine reserves gigabytes of address space that it never touches."""
    cgroup: WorkerCgroup | None = None
    """The leaf that it is put into before it is told anything; None: there are none here."""

    def setup(self) -> control.ToWorker:
        """Return the first frame."""
        return control.ToWorker(
            setup=control.WorkerSetup(
                tenant=self.tenant,
                uid=self.uid,
                gid=self.gid,
                max_processes=self.max_processes,
                max_open_files=self.max_open_files,
                address_space_bytes=self.address_space_bytes,
            )
        )


def start(control_socket: socket.socket) -> subprocess.Popen[bytes]:
    """
    Exec ``python -m sandboxd.worker FD`` in a session of its own; ``stderr`` of the result is a pipe.

    Args:
        control_socket: the worker's end; it is the only descriptor that is inherited beside 0 to 2.
    """
    fd = control_socket.fileno()
    argv, environment = python_module("sandboxd.worker", str(fd))
    return subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        close_fds=True,
        pass_fds=(fd,),
        cwd="/",
        env=environment,
        start_new_session=True,
    )
