"""
A jailed process seen from outside: what the kernel says of it in /proc, without asking the process.

For the layers that no attack can show from within (no_new_privs, dumpable, the death signal, speculation).
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sandboxd.doctor.probe import TIMEOUT_S, Prison
from sandboxd.jail.enter import enter
from sandboxd.jail.full_plan import JailPlan
from sandboxd.jail.layers import Layer
from sandboxd.jail.waiter import worker_pid

_NOTHING: Final = frozenset[Layer]()
_SECCOMP_FILTER_MODE: Final = "2"
_ALL_SETS: Final = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")


@dataclass(frozen=True, slots=True)
class Seen:
    """One layer from outside."""

    layer: Layer
    live: bool
    evidence: str


@dataclass(frozen=True, slots=True)
class Inmate:
    """An idle process in a complete jail."""

    waiter_pid: int
    pid: int
    plan: JailPlan


@contextlib.contextmanager
def inmate(prison: Prison) -> Iterator[Inmate]:
    """
    Keep one process in a complete, locked jail for the length of the `with`. The caller has one thread.

    Raises:
        OSError: it did not come up.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    waiter = os.fork()
    if waiter == 0:
        ours.close()
        try:
            enter(prison.plan(theirs.fileno(), os.getpid(), _NOTHING, _NOTHING)).lock()
            os.write(theirs.fileno(), b"in")
            theirs.recvmsg(1)  # as a worker does: its filter knows no other way
        finally:
            os._exit(0)
    theirs.close()
    with ours:
        ours.settimeout(TIMEOUT_S)
        try:
            if ours.recv(16) != b"in":
                raise OSError(0, "the jailed process ended before it was in")
            plan = prison.plan(theirs.fileno(), waiter, _NOTHING, _NOTHING)
            yield Inmate(waiter, worker_pid(waiter), plan)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(waiter, signal.SIGKILL)
            os.waitpid(waiter, 0)


def status_fields(text: str) -> Mapping[str, str]:
    """Return the fields of a /proc/PID/status. Pure."""
    pairs = (line.partition(":") for line in text.splitlines())
    return {name: value.strip() for name, _, value in pairs}


def judge_status(fields: Mapping[str, str]) -> Iterator[Seen]:
    """Judge what /proc/PID/status tells. Pure."""
    yield Seen(Layer.NO_NEW_PRIVS, fields.get("NoNewPrivs") == "1", f"NoNewPrivs: {fields.get('NoNewPrivs')}")
    mode, filters = fields.get("Seccomp"), int(fields.get("Seccomp_filters", "0"))
    seccomp = mode == _SECCOMP_FILTER_MODE
    yield Seen(Layer.SECCOMP, seccomp, f"Seccomp: {mode}, {filters} filters")
    yield Seen(Layer.NO_NEW_EXEC, seccomp and filters >= 2, f"{filters} filters")
    sets = {name: fields.get(name, "?") for name in _ALL_SETS}
    clean = all(value != "?" and int(value, 16) == 0 for value in sets.values())
    yield Seen(Layer.CAPABILITIES, clean, ", ".join(f"{name}: {value}" for name, value in sets.items()))
    pids = fields.get("NSpid", "").split()
    own = len(pids) > 1 and pids[-1] == "1"
    yield Seen(Layer.PID_NAMESPACE, own, f"NSpid: {' '.join(pids)}")
    bypass = fields.get("Speculation_Store_Bypass", "unknown")
    mitigated = "mitigated" in bypass or bypass == "not vulnerable"
    yield Seen(Layer.SPECULATION, mitigated, f"Speculation_Store_Bypass: {bypass}")


def judge_owner(uid_line: str, file_owner: int) -> Seen:
    """Judge who owns the process's memory file: of a process that is not dumpable, never itself. Pure."""
    own = {int(word) for word in uid_line.split()}
    live = file_owner not in own
    return Seen(Layer.NON_DUMPABLE, live, f"/proc/PID/mem belongs to uid {file_owner}, the process is {uid_line}")


def observe(prison: Prison) -> tuple[Seen, ...]:
    """Jail a process, look at it, then kill its waiter and see it die. Raises OSError, JailError."""
    with inmate(prison) as found:
        directory = Path(f"/proc/{found.pid}")
        fields = status_fields((directory / "status").read_text())
        applied = set(found.plan.layers())
        seen = [item for item in judge_status(fields) if item.layer in applied]
        seen.append(judge_owner(fields.get("Uid", ""), (directory / "mem").stat().st_uid))
        os.kill(found.waiter_pid, signal.SIGKILL)
        dead = _within(1.0, lambda: not directory.exists() or _is_zombie(directory))
        seen.append(Seen(Layer.PARENT_DEATH_SIGNAL, dead, "its waiter was killed"))
        return tuple(seen)


def _is_zombie(directory: Path) -> bool:
    try:
        return status_fields((directory / "status").read_text()).get("State", "").startswith("Z")
    except OSError:
        return True


def _within(limit_s: float, condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.005)
    return condition()
