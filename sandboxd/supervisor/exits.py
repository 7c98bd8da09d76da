"""How a process ended: a sentence for the operator and a cause for the ledger. Pure."""

from __future__ import annotations

import enum
import signal
from dataclasses import dataclass

from sandboxd.log import one_line


class ExitCause(enum.StrEnum):
    """Why a worker is gone, for counters; beside the causes of failed VMs."""

    WORKER_EXIT = "worker_exit"
    """It ended by itself."""
    WORKER_SIGNAL = "worker_signal"
    """A signal that we did not send: a crash of the engine, or the operator."""
    WORKER_SECCOMP = "worker_seccomp"
    """A system call that its jail forbids."""
    WORKER_MEMORY = "worker_memory"
    """The kernel killed it at the limit of the tenant's memory."""
    WORKER_SILENT = "worker_silent"
    """It did not answer our pings."""
    WORKER_PROTOCOL = "worker_protocol"
    """It said what no honest worker says."""
    WALL_TIME = "wall_time"
    """An event had no verdict long after its time."""
    START_TIME = "start_time"
    """It was not ready, or a plugin of it not loaded or started, in time."""


@dataclass(frozen=True, slots=True)
class Exit:
    """The end of a worker."""

    sentence: str
    """Without a subject: ``was killed with SIGKILL ...``."""
    cause: ExitCause


_SIGNALS = {
    signal.SIGKILL: "was killed with SIGKILL: by the operator, or by the kernel for want of memory"
    " (see the kernel's log)",
    signal.SIGSYS: "made a system call that its jail forbids (SIGSYS)",
    signal.SIGSEGV: "crashed with SIGSEGV: a bug in the engine, or an attack on it",
    signal.SIGILL: "crashed with SIGILL: a bug in the engine, or an attack on it",
    signal.SIGBUS: "crashed with SIGBUS: a mapped file was cut, or memory ran out",
    signal.SIGABRT: "aborted itself (SIGABRT): the engine found itself in an impossible state",
    signal.SIGXCPU: "used up its CPU time (SIGXCPU)",
    signal.SIGTERM: "was ended with SIGTERM",
}


def last_words(stderr: bytes) -> str:
    """Return the last line of what a process wrote to stderr, made harmless: of a traceback, the error."""
    lines = stderr.decode("utf-8", "replace").strip().splitlines()
    return one_line(lines[-1].strip(), 512) if lines else ""


def sentence(return_code: int, *, killed_for: str = "") -> str:
    """
    Return what happened, without a subject: ``was killed with SIGKILL ...``.

    Args:
        return_code: as `subprocess.Popen.returncode`: negative for a signal.
        killed_for: why we killed it ourselves, empty if we did not.
    """
    if killed_for:
        return f"was killed by sandboxd: {killed_for}"
    if return_code == 0:
        return "ended by itself with status 0"
    if return_code > 0:
        return f"ended by itself with status {return_code}"
    try:
        number = signal.Signals(-return_code)
    except ValueError:
        return f"was ended by signal {-return_code}"
    return _SIGNALS.get(number, f"was ended by {number.name}")


def cause(return_code: int) -> ExitCause:
    """Return the cause of an end that was none of our doing; the return code is as for `sentence`."""
    if return_code >= 0:
        return ExitCause.WORKER_EXIT
    return ExitCause.WORKER_SECCOMP if return_code == -signal.SIGSYS else ExitCause.WORKER_SIGNAL
