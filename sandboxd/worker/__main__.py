"""
``python -m sandboxd.worker CONTROL_FD``: the process of one tenant.

Order matters. Everything is imported, then the first frame says what to give up, then it is given up, and
only then a tenant's bytes are read. Prints nothing but a last line when it cannot go on.
"""

from __future__ import annotations

import os

PARENT_PID = os.getppid()  # before anything slow: a parent that dies meanwhile must be noticed

import sys  # noqa: E402
import threading  # noqa: E402

from sandboxd.errors import SandboxdError, WorkerError  # noqa: E402
from sandboxd.jail.plan import worker_plan  # noqa: E402
from sandboxd.jail.steps import apply  # noqa: E402
from sandboxd.limits import MIB  # noqa: E402
from sandboxd.protos import control_pb2 as control  # noqa: E402
from sandboxd.worker.control import ControlSocket  # noqa: E402
from sandboxd.worker.loop import Loop  # noqa: E402

THREAD_STACK_BYTES = 4 * MIB
"""
Guest code takes 512 KiB at most (`sandboxd.vm.settings`); the rest is the interpreter's, inside a callback.
"""


def main(argv: list[str]) -> int:
    """Serve one supervisor; returns the exit code."""
    if len(argv) != 1 or not argv[0].isdecimal():
        sys.stderr.write("usage: python -m sandboxd.worker CONTROL_FD\n")
        return 64
    threading.stack_size(THREAD_STACK_BYTES)
    control_fd = int(argv[0])
    socket = ControlSocket(control_fd)
    try:
        layers = _lock_down(socket, control_fd)
        if layers is None:
            return 0
        socket.send(ready=control.WorkerReady(pid=os.getpid(), layers=layers))
        Loop(socket).run()
    except SandboxdError as error:
        socket.send(error=control.WorkerError(message=str(error)[:4096]))
        sys.stderr.write(f"worker: {error}\n")
        return 70
    return 0


def _lock_down(socket: ControlSocket, control_fd: int) -> tuple[str, ...] | None:
    """Apply what the first frame says; None if the supervisor went away before it sent one."""
    frame = socket.receive()
    if frame is None:
        return None
    if frame.kind != "setup":
        raise WorkerError(f"the first control frame is {frame.kind}, expected setup")
    setup = frame.body
    return apply(
        worker_plan(
            parent_pid=PARENT_PID,
            keep_fds=frozenset({control_fd}),
            uid=setup.uid,
            gid=setup.gid,
            max_processes=setup.max_processes,
            max_open_files=setup.max_open_files,
            address_space_bytes=setup.address_space_bytes,
        )
    )


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stderr.flush()
    # VM threads may be inside the engine: an orderly end of the interpreter would wait for them, or crash.
    os._exit(code)
