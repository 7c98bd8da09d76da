"""
Landlock with nothing allowed: a second lock on files, TCP, signals and abstract sockets. Source:
linux/landlock.h.
"""

from __future__ import annotations

import ctypes
import os
from typing import Final

from sandboxd.jail.syscalls import step, syscall

_CREATE_RULESET_VERSION: Final = 1

_FS_RIGHTS_BY_ABI: Final = (13, 14, 15, 15, 16, 16, 16)
"""Number of file rights (bits from 0) that ABI 1, 2, ... knows; the last entry holds for all later ones."""
_NET_SINCE: Final = 4
_NET_RIGHTS: Final = 0b11
"""Bind and connect of TCP."""
_SCOPES_SINCE: Final = 6
_SCOPES: Final = 0b11
"""Abstract Unix sockets and signals."""


class _RulesetAttr(ctypes.Structure):
    _fields_ = (("fs", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


def abi_version() -> int:
    """Return the kernel's Landlock ABI; 0 if it has none or it is switched off."""
    try:
        return syscall("landlock_create_ruleset", None, 0, _CREATE_RULESET_VERSION)
    except OSError:
        return 0


def ruleset(abi: int, scopes: bool) -> tuple[int, int, int]:
    """
    Return all that an ABI can deny, as (file rights, network rights, scopes). Pure.

    Scopes and the rest are rulesets of their own; they stack, and each can be proven without the other.
    """
    if scopes:
        return 0, 0, _SCOPES if has_scopes(abi) else 0
    rights = _FS_RIGHTS_BY_ABI[min(abi, len(_FS_RIGHTS_BY_ABI)) - 1]
    return (1 << rights) - 1, _NET_RIGHTS if abi >= _NET_SINCE else 0, 0


def has_scopes(abi: int) -> bool:
    """Tell whether an ABI can scope signals and abstract sockets."""
    return abi >= _SCOPES_SINCE


def restrict(abi: int, scopes: bool) -> None:
    """
    Deny one ruleset to this thread and those it starts; no_new_privs must be set already.

    Args:
        abi: the kernel's ABI, at least 1; at least 6 for ``scopes``.
        scopes: deny signals and abstract sockets to the outside; else deny files and TCP.

    Raises:
        JailError: the kernel refused.
    """
    attr = _RulesetAttr(*ruleset(abi, scopes))
    # An older kernel takes a structure longer than its own only if what it does not know is zero: and so it
    # is.
    with step("landlock", f"the kernel announced Landlock ABI {abi}"):
        fd = syscall("landlock_create_ruleset", attr, ctypes.sizeof(attr), 0)
        try:
            syscall("landlock_restrict_self", fd, 0)
        finally:
            os.close(fd)
