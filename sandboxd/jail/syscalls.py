"""
Bare system calls through ctypes: the only place of the jail that talks to the kernel without the standard
library.

No policy here: a call either returns a number of zero or more or raises OSError with the kernel's errno.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from typing import Final

from sandboxd.errors import JailError
from sandboxd.jail import syscall_numbers

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_LIBC.syscall.restype = ctypes.c_long

_MAX_ARGUMENTS: Final = 6

Argument = int | bytes | ctypes.Array[ctypes.c_char] | ctypes.Structure | None
"""An integer, a NUL-terminated string, a buffer or structure (passed by address), or NULL."""


def syscall(name: str, *arguments: Argument) -> int:
    """
    Make one system call by name.

    Raises:
        OSError: with the kernel's errno; ENOSYS too if this architecture has no such call.
    """
    call_number = syscall_numbers.number(name)
    if call_number is None:
        raise OSError(38, os.strerror(38), name)
    return syscall_by_number(call_number, *arguments, name=name)


def syscall_by_number(call_number: int, *arguments: Argument, name: str = "") -> int:
    """Make one system call by number; for what has no name here. Raises OSError."""
    converted = [_as_word(argument) for argument in arguments]
    ctypes.set_errno(0)
    result = int(_LIBC.syscall(ctypes.c_long(call_number), *converted))
    if result == -1:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), name or str(call_number))
    return result


def _as_word(argument: Argument) -> object:
    """Return one machine word: all system call arguments are; ctypes would pass plain integers as 32 bits."""
    if argument is None:
        return ctypes.c_void_p(None)
    if isinstance(argument, int):
        return ctypes.c_ulong(argument & 0xFFFF_FFFF_FFFF_FFFF)
    if isinstance(argument, bytes):
        return ctypes.c_char_p(argument)
    return ctypes.byref(argument)


def prctl(option: int, second: int = 0, third: int = 0, fourth: int = 0, fifth: int = 0) -> int:
    """Make one prctl; unused arguments are 0, as the newer options demand. Raises OSError."""
    return syscall("prctl", option, second, third, fourth, fifth)


@contextlib.contextmanager
def step(name: str, hint: str = "") -> Iterator[None]:
    """Turn an OSError of the body into a JailError that names the step of the plan."""
    try:
        yield
    except OSError as error:
        raise JailError(name, error.errno or 0, hint) from error
