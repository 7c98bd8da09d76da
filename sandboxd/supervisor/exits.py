"""How a process ended, in a sentence for the operator. Pure."""

from __future__ import annotations

import signal

from sandboxd.log import one_line

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
