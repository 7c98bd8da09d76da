"""
Takes the steps of a jail plan on the calling process. To be run before the process has a second thread.

Imports nothing that the trusted side lacks; run by the hostile process itself, with whatever privilege it has
left.
"""

from __future__ import annotations

import ctypes
import functools
import os
import resource
import signal
from collections.abc import Iterable
from typing import Final

from sandboxd.errors import JailError
from sandboxd.jail.plan import (
    LAYERS,
    BecomeUser,
    CloseOtherFds,
    DieWithParent,
    LimitResource,
    NoNewPrivileges,
    NotDumpable,
    Step,
)

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4
_PR_SET_NO_NEW_PRIVS: Final = 38

_libc: Final = ctypes.CDLL(None, use_errno=True)


def apply(steps: Iterable[Step]) -> tuple[str, ...]:
    """
    Take the steps in order; return the names of the layers now in force, each once.

    Raises:
        JailError: a step failed; the process must end.
    """
    layers: dict[str, None] = {}
    for step in steps:
        layer = LAYERS[type(step)]
        try:
            _take(step)
        except OSError as error:
            raise JailError(layer, error.errno or 0, str(step)) from None
        except ValueError as error:
            raise JailError(layer, hint=f"{step}: {error}") from None
        layers[layer] = None
    return tuple(layers)


@functools.singledispatch
def _take(step: Step) -> None:
    raise TypeError(f"not a step: {step!r}")


@_take.register
def _(step: CloseOtherFds) -> None:
    first = 0
    for fd in sorted(step.keep):
        # An empty range is not harmless: CPython 3.11 makes closerange(0, 0) close everything.
        if first < fd:
            os.closerange(first, fd)
        first = fd + 1
    if first < (end := _past_last_fd(first)):
        os.closerange(first, end)


def _past_last_fd(first: int) -> int:
    """
    Return a number above every open descriptor, whatever the limit says: it may have been lowered since.
    """
    return max([first, *(int(name) + 1 for name in os.listdir("/proc/self/fd"))])  # noqa: PTH208 (names, not paths)


@_take.register
def _(step: LimitResource) -> None:
    which = getattr(resource, step.resource)
    hard = resource.getrlimit(which)[1]
    value = step.value if hard == resource.RLIM_INFINITY else min(step.value, hard)
    resource.setrlimit(which, (value, value))


@_take.register
def _(step: BecomeUser) -> None:
    os.setgroups([])
    os.setresgid(step.gid, step.gid, step.gid)
    os.setresuid(step.uid, step.uid, step.uid)


@_take.register
def _(_step: NotDumpable) -> None:
    _prctl(_PR_SET_DUMPABLE, 0)


@_take.register
def _(step: DieWithParent) -> None:
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # The parent may have died before the call; then nobody would send the signal.
    if os.getppid() != step.parent_pid:
        raise ValueError("the parent is gone already")


@_take.register
def _(_step: NoNewPrivileges) -> None:
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
