"""
``python -m sandboxd.worker CONTROL_FD``: the process of one tenant.

Order matters. Everything is imported, then the first frame says what to give up, then it is given up, and
only then a tenant's bytes are read. Prints nothing but a last line when it cannot go on.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
from typing import NoReturn

from sandboxd.errors import SandboxdError, WorkerError
from sandboxd.jail.enter import Jail, enter
from sandboxd.jail.full_plan import decode
from sandboxd.limits import MIB
from sandboxd.protos import control_pb2 as control
from sandboxd.worker.control import ControlSocket
from sandboxd.worker.loop import Loop

THREAD_STACK_BYTES = 4 * MIB
"""
Guest code takes 512 KiB at most (`sandboxd.vm.settings`); the rest is the interpreter's, inside a callback.
"""

EXIT_USAGE = 64
EXIT_FAILED = 70


def main(argv: list[str]) -> int:
    """Serve one supervisor; returns the exit code. Returns in another process than it was called in."""
    if len(argv) != 1 or not argv[0].isdecimal():
        sys.stderr.write("usage: python -m sandboxd.worker CONTROL_FD\n")
        return EXIT_USAGE
    threading.stack_size(THREAD_STACK_BYTES)
    threading.excepthook = _thread_failed
    socket = ControlSocket(int(argv[0]))
    try:
        jail = _lock_down(socket)
        if jail is None:
            return 0
        socket.send(ready=control.WorkerReady(layers=jail.layers()))
        Loop(socket, jail.lock).run()
    except SandboxdError as error:
        socket.send(error=control.WorkerError(message=str(error)[:4096]))
        sys.stderr.write(f"worker: {error}\n")
        return EXIT_FAILED
    return 0


def _lock_down(socket: ControlSocket) -> Jail | None:
    """Apply what the first frame says; None if the supervisor went away before it sent one."""
    frame = socket.receive()
    if frame is None:
        return None
    if frame.kind != "setup":
        raise WorkerError(f"the first control frame is {frame.kind}, expected setup")
    try:
        return enter(decode(frame.body.jail_plan))
    except (ValueError, KeyError, TypeError) as error:
        raise WorkerError(f"the jail's plan makes no sense: {error!r}") from error


def _thread_failed(failed: threading.ExceptHookArgs) -> None:
    """End the worker: without its watchdog, or with a VM that nobody runs, it must not go on."""
    traceback.print_exception(failed.exc_type, failed.exc_value, failed.exc_traceback)
    _leave(EXIT_FAILED)


def _leave(code: int) -> NoReturn:
    """
    End at once. An orderly end of the interpreter would wait for VM threads that are inside the engine, and
    free code that the jail has sealed.
    """
    try:
        sys.stderr.flush()
    finally:
        os._exit(code)


if __name__ == "__main__":
    code = EXIT_FAILED
    try:
        code = main(sys.argv[1:])
    except BaseException:
        traceback.print_exc()
    finally:
        _leave(code)
