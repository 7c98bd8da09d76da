"""
Start a worker's process: exec with a clean environment, its control socket, and nothing else of ours.

Used by the asyncio side (`process`) and the synchronous one (`local`).
"""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field

from sandboxd.jail.command import python_module
from sandboxd.jail.full_plan import JailPlan, encode
from sandboxd.jail.jailer import Jailer, WorkerWishes, this_machine
from sandboxd.protos import control_pb2 as control
from sandboxd.supervisor import frames
from sandboxd.supervisor.cgroups import WorkerCgroup

END_GRACE_S = 2.0
"""From closing the control socket of a process that was not set up to SIGKILL."""


@dataclass(frozen=True, slots=True)
class Launched:
    """A worker's process that waits for its setup."""

    process: subprocess.Popen[bytes]
    socket: socket.socket
    """Our end of its control socket."""
    control_fd: int
    """Its end, by its number there."""

    def kill(self) -> None:
        """End it now."""
        self.process.kill()
        self.process.communicate()
        self.socket.close()

    def close(self) -> None:
        """End it: it leaves by itself when its socket ends."""
        self.socket.close()
        try:
            self.process.communicate(timeout=END_GRACE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()


def launch() -> Launched:
    """Start a worker's process; see `start`. Raises OSError."""
    with frames.Pair() as pair:
        return Launched(start(pair.theirs), pair.ours, pair.theirs.fileno())


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What a worker is told to make of itself before it reads a tenant's bytes."""

    tenant: str
    wishes: WorkerWishes = field(default_factory=WorkerWishes)
    jailer: Jailer | None = None
    """None: this machine's, with nothing tolerated."""
    make_cgroup: Callable[[], WorkerCgroup | None] = field(default=lambda: None, compare=False)
    """
    Makes the leaf that it is put into before it is told anything; None: there are none here. Raises JailError.
    """
    launch: Callable[[], Launched] = field(default=launch, compare=False)
    """Gives the process."""

    def plan(self, control_fd: int, waiter_pid: int) -> JailPlan:
        """
        Return the worker's jail.

        Args:
            control_fd: its control socket, by its number in the worker.
            waiter_pid: pid of the process that `start` made.

        Raises:
            JailError: a required layer cannot be had.
        """
        return (self.jailer or this_machine()).worker(control_fd, waiter_pid, self.wishes)

    def setup(self, plan: JailPlan) -> control.ToWorker:
        """Return the first frame."""
        return control.ToWorker(setup=control.WorkerSetup(tenant=self.tenant, jail_plan=encode(plan)))


def start(control_socket: socket.socket) -> subprocess.Popen[bytes]:
    """
    Exec ``python -m sandboxd.worker FD`` in a session of its own; ``stderr`` of the result is a pipe.

    Call it in a thread that lives as long as the worker shall: the kernel kills the worker with it. The process
    becomes the worker's waiter, which ends as the worker ends (``docs/security.md``).

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
