"""
Apply a plan to the calling process. Decides nothing; a step succeeds or ends the start with JailError.

`enter` is called once by a worker, after its imports and before it has a second thread. It forks: the caller
becomes the waiter and never returns, the child returns as process 1 of its namespaces. `Jail.lock` is called
once the modules are loaded.
"""

from __future__ import annotations

import ctypes
import os
import re
import resource
import select
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

from sandboxd.errors import JailError
from sandboxd.jail import capabilities, landlock, namespaces, speculation, vdso
from sandboxd.jail.full_plan import JailPlan, Phase, Step
from sandboxd.jail.layers import Layer
from sandboxd.jail.syscalls import prctl, step, syscall

EXIT_JAIL: Final = 70
"""Exit status of a waiter that could not jail itself; its worker is killed with it."""

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38
_PR_SET_MDWE, _PR_MDWE_REFUSE_EXEC_GAIN = 65, 1
_SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_TSYNC = 1, 1
_KEYCTL_JOIN_SESSION_KEYRING: Final = 1
_LAST_FD: Final = 0xFFFF_FFFF
_OOM_SCORE_ADJUSTMENT: Final = b"1000"
_MAPS_LINE: Final = re.compile(rb"^([0-9a-f]+)-([0-9a-f]+) ([r-])([w-])([x-])", re.MULTILINE)


class _SockFprog(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


@dataclass(slots=True)
class Jail:
    """The worker's handle on its own jail."""

    plan: JailPlan
    maps_fd: int
    """/proc/self/maps, opened while there was a /proc; -1 once the jail is locked."""

    def lock(self) -> None:
        """
        Forbid executable memory from here on, in all threads. Modules must be loaded, callbacks made.

        Raises:
            JailError: the worker must end.
        """
        for item in self.plan.phase(Phase.LOADED):
            _LOADED[item.name](self, **dict(item.arguments))
        if self.maps_fd >= 0:
            os.close(self.maps_fd)
            self.maps_fd = -1

    def layers(self) -> tuple[str, ...]:
        """Return the names of the layers that the plan holds, for WorkerReady."""
        return tuple(layer.value for layer in self.plan.layers())


def enter(plan: JailPlan) -> Jail:
    """
    Close the jail around the caller, who returns from here as process 1 of new namespaces.

    Raises:
        JailError: a step failed; the process is half jailed and must end.
        RuntimeError: the process has more than one thread.
    """
    threads = len(list(Path("/proc/self/task").iterdir()))
    if threads != 1:
        raise RuntimeError(f"a process with {threads} threads cannot be jailed: only this one would be")
    outer_ids = (os.getuid(), os.getgid())
    for item in plan.phase(Phase.OUTSIDE):
        _OUTSIDE[item.name](outer_ids, **dict(item.arguments))
    alive_reader, alive_writer = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child:
        os.close(alive_reader)
        _wait(child, plan, alive_writer)
    os.close(alive_writer)
    maps_fd = os.open("/proc/self/maps", os.O_RDONLY | os.O_CLOEXEC)
    for item in plan.phase(Phase.INSIDE):
        if item.layer is Layer.SECCOMP and alive_reader >= 0:
            alive_reader = _close(alive_reader)
        _apply(item, alive_reader)
    if alive_reader >= 0:
        _close(alive_reader)
    return Jail(plan, maps_fd)


def _close(fd: int) -> int:
    os.close(fd)
    return -1


def _wait(child: int, plan: JailPlan, alive_writer: int) -> NoReturn:
    """Be the waiter: drop everything, wait, and end as the worker ended, so that the supervisor sees it."""
    own_pid = os.getpid()  # asked now: the filter knows no getpid
    try:
        close_fds(keep=(2, alive_writer))
        for item in plan.phase(Phase.WAITER):
            if item.name == "seccomp":
                os.close(2)
            _apply(item, -1)
    except BaseException as error:  # whatever it is: no worker without its waiter
        os.kill(child, signal.SIGKILL)
        os.write(2, f"{error}\n".encode())
        os._exit(EXIT_JAIL)
    _pid, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        if -code not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(own_pid, -code)
    os._exit(code if code >= 0 else EXIT_JAIL)


def _apply(item: Step, alive_reader: int) -> None:
    arguments = dict(item.arguments)
    if item.name == "parent_death_signal":
        parent_death_signal(alive_reader)
    else:
        _STEPS[item.name](**arguments)


# --- steps before the fork ------------------------------------------------------------------------


def close_fds(keep: tuple[int, ...]) -> None:
    """Close every descriptor but ``keep``. Raises JailError."""
    with step("close_fds", "needs Linux 5.9"):
        first = 0
        for fd in sorted(set(keep)):
            if fd > first:
                syscall("close_range", first, fd - 1, 0)
            first = fd + 1
        syscall("close_range", first, _LAST_FD, 0)


def clear_environment() -> None:
    """Forget the environment; the supervisor gives none that matters."""
    os.environ.clear()


def oom_first() -> None:
    """Offer this process first when memory runs out. Raises JailError."""
    with step("oom_first", "/proc must be mounted"):
        fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, _OOM_SCORE_ADJUSTMENT)
        finally:
            os.close(fd)


# --- steps after the fork -------------------------------------------------------------------------


def rlimits(limits: tuple[tuple[str, int], ...]) -> None:
    """Set resource limits, soft and hard alike; never above a hard limit that is there. Raises JailError."""
    for name, value in limits:
        with step(f"rlimits {name}", "a limit can only be lowered"):
            kind = _RLIMITS_UNNAMED.get(name) or int(getattr(resource, f"RLIMIT_{name}"))
            _soft, hard = resource.getrlimit(kind)
            wanted = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(kind, (wanted, wanted))


_RLIMITS_UNNAMED: Final = {"SIGPENDING": 11, "MSGQUEUE": 12}
"""Limits that Python has no name for on some platforms; the numbers of asm-generic/resource.h."""


def new_keyring() -> None:
    """Leave the session keyring of the parent for an empty one. Raises JailError."""
    with step("keyring", "keyctl was refused"):
        syscall("keyctl", _KEYCTL_JOIN_SESSION_KEYRING, None)


def change_uid(uid: int, gid: int) -> None:
    """Become the tenant's own user, with no other group. Raises JailError."""
    with step("change_uid", "CAP_SETUID and CAP_SETGID are needed"):
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)


def no_new_privs() -> None:
    """No program that this process execs gains privilege. Raises JailError."""
    with step("no_new_privs"):
        prctl(_PR_SET_NO_NEW_PRIVS, 1)


def non_dumpable() -> None:
    """No core, no tracing by others of the same uid. Raises JailError."""
    with step("non_dumpable"):
        prctl(_PR_SET_DUMPABLE, 0)


def parent_death_signal(alive_reader: int) -> None:
    """
    Die with the parent: the waiter with the supervisor's thread that started it, the worker with the waiter.

    ``alive_reader`` reports the end of a parent that died before the signal was set; -1: ask for it by
    getppid.
    """
    with step("parent_death_signal"):
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if alive_reader >= 0 and select.select([alive_reader], [], [], 0)[0]:
        os._exit(EXIT_JAIL)


def disable_tsc() -> None:
    """
    Make the processor's cycle counter trap; clocks are read by system call from here on. Raises JailError.
    """
    vdso.replace_by_system_calls()
    speculation.disable_tsc()


def install_seccomp(program: str, flags: int = 0) -> None:
    """Install an assembled filter (hex). Raises JailError."""
    code = bytes.fromhex(program)
    buffer = ctypes.create_string_buffer(code, len(code))
    fprog = _SockFprog(len(code) // 8, ctypes.addressof(buffer))
    with step("seccomp", "needs CONFIG_SECCOMP_FILTER"):
        thread = syscall("seccomp", _SECCOMP_SET_MODE_FILTER, flags, fprog)
    if thread:
        raise JailError("seccomp", 0, f"thread {thread} has a filter of its own")


# --- steps once the modules are loaded ------------------------------------------------------------


def seal_executable(jail: Jail) -> None:
    """
    Take write from every mapping that is writable and executable.

    libffi keeps the code of ctypes callbacks in such memory on some systems; callbacks made before go on
    working, making new ones is an error from here on. Raises JailError.
    """
    with step("seal_executable"):
        for start, end in writable_and_executable(jail.maps_fd):
            syscall("mprotect", start, end - start, 1 | 4)
        if writable_and_executable(jail.maps_fd):
            raise AssertionError("memory is left that is both writable and executable")


def writable_and_executable(maps_fd: int) -> list[tuple[int, int]]:
    """Return the address ranges that are both, from an open /proc/PID/maps."""
    os.lseek(maps_fd, 0, os.SEEK_SET)
    text = b"".join(iter(lambda: os.read(maps_fd, 1 << 16), b""))
    found = ((m[1], m[2]) for m in _MAPS_LINE.finditer(text) if m[4] == b"w" and m[5] == b"x")
    return [(int(start, 16), int(end, 16)) for start, end in found]


def refuse_exec_gain(_jail: Jail) -> None:
    """The kernel's own rule: memory that was not executable never becomes so. Raises JailError."""
    with step("mdwe", "needs Linux 6.3"):
        prctl(_PR_SET_MDWE, _PR_MDWE_REFUSE_EXEC_GAIN)


def no_new_exec(_jail: Jail, program: str) -> None:
    """Install the second filter in all threads. Raises JailError."""
    install_seccomp(program, _SECCOMP_FILTER_FLAG_TSYNC)


_OUTSIDE: Final[Mapping[str, Callable[..., None]]] = {
    "close_fds": lambda _ids, keep: close_fds(keep),
    "clear_environment": lambda _ids: clear_environment(),
    "oom_first": lambda _ids: oom_first(),
    "user_namespace": lambda _ids: namespaces.unshare("user"),
    "single_id_map": lambda ids, inside: namespaces.map_single_id(inside, *ids),
    "namespace": lambda _ids, kind: namespaces.unshare(kind),
}

_STEPS: Final[Mapping[str, Callable[..., Any]]] = {
    "empty_root": namespaces.empty_root,
    "host_name": namespaces.set_host_name,
    "rlimits": rlimits,
    "new_keyring": new_keyring,
    "bounding_set": capabilities.drop_bounding_set,
    "change_uid": change_uid,
    "drop_capabilities": capabilities.drop_all,
    "no_new_privs": no_new_privs,
    "non_dumpable": non_dumpable,
    "speculation": speculation.disable,
    "tsc": disable_tsc,
    "own_core": speculation.own_core,
    "landlock": lambda abi, scopes: landlock.restrict(abi, bool(scopes)),
    "seccomp": install_seccomp,
}

_LOADED: Final[Mapping[str, Callable[..., None]]] = {
    "seal_executable": seal_executable,
    "mdwe": refuse_exec_gain,
    "no_new_exec": no_new_exec,
}
