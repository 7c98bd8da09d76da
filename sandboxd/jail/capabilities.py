"""Capabilities: dropped from every set, with the roads back closed. Each function is one step of the plan."""

from __future__ import annotations

import ctypes
import errno
from typing import Final

from sandboxd.jail.syscalls import prctl, step, syscall

_PR_CAPBSET_READ, _PR_CAPBSET_DROP, _PR_SET_SECUREBITS, _PR_CAP_AMBIENT = 23, 24, 28, 47
_PR_CAP_AMBIENT_CLEAR_ALL: Final = 4
CAP_SETGID, CAP_SETUID = 6, 7
_CAPABILITY_VERSION_3: Final = 0x2008_0522
_MOST_CAPABILITIES: Final = 64

_SECUREBITS: Final = 0b1100_0000 | 0b10_0000 | 0b11
"""
NOROOT with its lock, so that uid 0 gives nothing; the lock of KEEP_CAPS, so that they never survive a change
of uid; NO_CAP_AMBIENT_RAISE with its lock. SECBIT_NO_SETUID_FIXUP stays off: the change of uid shall clear
the sets.
"""


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    """Two times (effective, permitted, inheritable), low and high half."""

    _fields_ = (("words", ctypes.c_uint32 * 6),)


def drop_bounding_set() -> None:
    """Empty the bounding set and lock the secure bits; needs CAP_SETPCAP, so it comes before `drop_all`."""
    with step("capabilities", "CAP_SETPCAP is needed to empty the bounding set"):
        for capability in range(_MOST_CAPABILITIES):
            try:
                prctl(_PR_CAPBSET_READ, capability)
            except OSError as error:
                if error.errno == errno.EINVAL:
                    break  # behind the last one that this kernel knows
                raise
            prctl(_PR_CAPBSET_DROP, capability)
        prctl(_PR_SET_SECUREBITS, _SECUREBITS)


def drop_all() -> None:
    """Clear the ambient, effective, permitted and inheritable sets. Raises JailError."""
    with step("capabilities", "capset was refused"):
        prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
        syscall("capset", _Header(_CAPABILITY_VERSION_3, 0), _Sets())
        if any(effective_sets()):
            raise AssertionError("capabilities are left after capset")


def keep(*wanted: int) -> None:
    """
    Clear all sets but for ``wanted`` in the effective and permitted ones, as far as they are there. All numbers
    are below 32. Raises JailError.
    """
    mask = sum(1 << number for number in wanted)
    with step("capabilities", "capset was refused"):
        prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
        have = effective_sets()[1] & mask
        sets = _Sets()
        sets.words[0] = sets.words[1] = have
        syscall("capset", _Header(_CAPABILITY_VERSION_3, 0), sets)


def effective_sets() -> tuple[int, int, int]:
    """Return the effective, permitted and inheritable sets of this thread as bit masks. Raises OSError."""
    sets = _Sets()
    syscall("capget", _Header(_CAPABILITY_VERSION_3, 0), sets)
    words = list(sets.words)
    effective, permitted, inheritable = (words[n] | words[n + 3] << 32 for n in range(3))
    return effective, permitted, inheritable
