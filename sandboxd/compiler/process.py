"""
One compiler's process, from its job to its output: its jail, its limits, its end.

What it writes is hostile: bounded here, checked by `sandboxd.compiler.client`.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import signal
import subprocess
from collections.abc import Iterator
from typing import Final

from sandboxd.compiler.frames import ExitCode
from sandboxd.compiler.running import Running
from sandboxd.errors import InternalError, ModuleRejected, WorkerError
from sandboxd.jail import full_plan
from sandboxd.jail.command import python_module
from sandboxd.jail.jailer import CompilerLeaf, Jailer
from sandboxd.limits import GIB
from sandboxd.vm.artefacts import MAX_BUNDLE_BYTES

MAX_TEXT_BYTES: Final = 8192
MEMORY_BYTES: Final = 4 * GIB
"""Address space of a compiler. Code generation for the largest accepted module stays below this."""

_TOO_MUCH_MEMORY: Final = "compiling the module took too much memory"
_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL

_running: Final = Running()


class CompilerOverwhelmed(ModuleRejected):
    """
    The module made the compiler hang or blow up. ``timeout_s`` is the time that was not enough; None: it was
    not for want of time.
    """

    def __init__(self, text: str, timeout_s: float | None = None) -> None:
        self.timeout_s = timeout_s
        super().__init__(text)

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (str(self), self.timeout_s))


def run_compiler(job: bytes, timeout_s: float, jailer: Jailer) -> bytes:
    """Return the output of one compiler process."""
    with (
        _memfd("sandboxd-job") as job_fd,
        _memfd("sandboxd-result") as result_fd,
        _memfd("sandboxd-error") as error_fd,
    ):
        _write_sealed(job_fd, job)
        argv, environment = python_module("sandboxd.compiler", str(job_fd), str(result_fd))
        process = subprocess.Popen(
            argv,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=error_fd,
            stderr=error_fd,
            pass_fds=(job_fd, result_fd),
            start_new_session=True,
            cwd="/",
        )
        leaf: CompilerLeaf | None = None
        try:
            leaf = jailer.compiler_cgroup()
            if leaf is not None:
                leaf.enter(process.pid)
            plan = jailer.compiler(
                job_fd,
                result_fd,
                process.pid,
                cpu_seconds=max(1, math.ceil(timeout_s)),
                memory_bytes=MEMORY_BYTES,
                result_bytes=MAX_BUNDLE_BYTES,
            )
            with _running.noted(process):
                process.communicate(full_plan.encode(plan), timeout_s)
            code = process.returncode
        except subprocess.TimeoutExpired:
            text = f"compiling the module took more than {timeout_s:g} s"
            raise CompilerOverwhelmed(text, timeout_s) from None
        finally:
            _end(process)
            starved = leaf is not None and leaf.memory_death()
            if leaf is not None:
                leaf.remove()
        if starved and code != ExitCode.DONE:
            raise CompilerOverwhelmed(_TOO_MUCH_MEMORY)
        return _result(code, result_fd, error_fd, timeout_s)


def stop() -> None:
    """Kill all compilers, for the daemon ends; who waits for one gets a `WorkerError`, and so does who asks later."""
    _running.stop()


def _result(code: int, result_fd: int, error_fd: int, timeout_s: float) -> bytes:
    if code == ExitCode.DONE:
        return _read(result_fd, MAX_BUNDLE_BYTES)
    if code == ExitCode.REJECTED:
        raise ModuleRejected(_text(result_fd))
    if code == ExitCode.INTERNAL:
        raise InternalError(f"compiler: {_text(result_fd)}")
    if code == ExitCode.EXHAUSTED:
        raise CompilerOverwhelmed(f"{_TOO_MUCH_MEMORY}, or gave too large a result")
    if code in (-signal.SIGXCPU, -signal.SIGKILL):
        text = f"compiling the module took more than {timeout_s:g} s of CPU"
        raise CompilerOverwhelmed(text, timeout_s)
    if code < 0:
        name = signal.Signals(-code).name
        text = f"compiling the module crashed the compiler, or took too much memory ({name})"
        raise CompilerOverwhelmed(text)
    raise InternalError(f"compiler: exit code {code}: {_text(error_fd)}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill whatever is left of the process and its children."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    if process.stdin is not None:
        with contextlib.suppress(BrokenPipeError):  # what was not sent goes to nobody
            process.stdin.close()
    process.wait()


@contextlib.contextmanager
def _memfd(name: str) -> Iterator[int]:
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        yield fd
    finally:
        os.close(fd)


def _write_sealed(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    os.lseek(fd, 0, os.SEEK_SET)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)


def _read(fd: int, limit: int) -> bytes:
    """Return the file's content. The process that wrote it is dead, so its size cannot change any more."""
    size = os.fstat(fd).st_size
    if size > limit:
        raise WorkerError(f"compiler: {size} bytes of output, at most {limit} are accepted")
    return os.pread(fd, size, 0)


def _text(fd: int) -> str:
    """Return the end of the file as text fit for a log."""
    size = os.fstat(fd).st_size
    raw = os.pread(fd, MAX_TEXT_BYTES, max(0, size - MAX_TEXT_BYTES)).decode(errors="replace")
    return "".join(char if char.isprintable() or char == "\n" else "?" for char in raw).strip()
