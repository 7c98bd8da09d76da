"""
What a front gives up: root, every capability, and the calls that ``policies/seccomp/front.json`` names.

A front is trusted, but it talks to proxies over the network, so a fault in its gRPC shall not be worth the
daemon's privileges. It needs some of them to listen (sockets in root's directories, a certificate's key), hence
two steps: `give_up_most` while the process has one thread, before gRPC is loaded, and `give_up_rest` when it has
bound its sockets and before it accepts. The second one works on all threads: the C library changes the user of
each, and with the last uid 0 the kernel takes the capabilities.
"""

from __future__ import annotations

import os
import platform
import pwd
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sandboxd.errors import ConfigError, JailError
from sandboxd.jail import capabilities
from sandboxd.jail.enter import install_seccomp, no_new_privs, non_dumpable
from sandboxd.jail.filter_files import filter_directory
from sandboxd.jail.filters import build, load_filter
from sandboxd.jail.syscalls import step

DEFAULT_USER: Final = "sandboxd"
"""Made by ``systemd/sandboxd.sysusers``."""
FRONT_UID: Final = 65532
"""Of fronts where there is no such user: a number that belongs to nobody."""
_MAX_UID: Final = 2**31

_STATUS_FIELDS: Final = re.compile(r"^(Uid|CapPrm|CapEff|CapAmb|NoNewPrivs):\s*(.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class FrontJail:
    """What a front becomes."""

    uid: int
    """0: it stays who it is, for the daemon is not root."""
    gid: int
    program: bytes
    """Its system call filter."""


def front_jail(user: str = "") -> FrontJail:
    """
    Look up who fronts shall be. Call it in the supervisor: a front should not read user databases.

    Args:
        user: name or number from ``front.user``; empty: `DEFAULT_USER` if there is one, else `FRONT_UID`.

    Raises:
        ConfigError: there is no such user, or it is root, or the daemon may not change users.
    """
    program = build(load_filter(filter_directory() / "front.json"), platform.machine())
    if os.geteuid() != 0:
        if user and _find(user)[0] != os.geteuid():
            raise ConfigError(f"{user}: only a daemon that runs as root can give fronts another user", key="front.user")
        return FrontJail(0, 0, program)
    if user:
        uid, gid = _find(user)
    else:
        try:
            uid, gid = _find(DEFAULT_USER)
        except ConfigError:
            uid, gid = FRONT_UID, FRONT_UID
    if uid == 0:
        raise ConfigError("fronts must not run as root", key="front.user")
    return FrontJail(uid, gid, program)


def _find(user: str) -> tuple[int, int]:
    if user.isdecimal():
        number = int(user)
        if number >= _MAX_UID:
            raise ConfigError(f"{user} is no uid", key="front.user", allowed=("a name", "1 to 2^31-1"))
        return number, number
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        raise ConfigError(f"there is no user {user}", key="front.user") from None
    return entry.pw_uid, entry.pw_gid


def give_up_most(jail: FrontJail) -> None:
    """
    Keep what listening needs, and the right to change the user. The process must have one thread.

    Raises:
        JailError: the kernel refused a step; the front must end.
    """
    no_new_privs()
    if jail.uid:
        capabilities.drop_bounding_set()
        capabilities.keep(capabilities.CAP_SETGID, capabilities.CAP_SETUID)
    else:
        capabilities.drop_all()
    install_seccomp(jail.program.hex())
    non_dumpable()


def give_up_rest(jail: FrontJail) -> None:
    """
    Become the user, in every thread, and make sure of it. Sockets must be bound, no byte read from them.

    Raises:
        JailError: a thread has privileges left; the front must end.
    """
    if jail.uid:
        with step("front_user", "CAP_SETUID and CAP_SETGID are needed"):
            os.setgroups([])
            os.setresgid(jail.gid, jail.gid, jail.gid)
            os.setresuid(jail.uid, jail.uid, jail.uid)
    non_dumpable()  # the change of user may have set the flag again
    for thread in Path("/proc/self/task").iterdir():
        try:
            found = dict(_STATUS_FIELDS.findall((thread / "status").read_text()))
        except FileNotFoundError:  # it has ended
            continue
        if wrong := problems(found, jail.uid):
            raise JailError("front", 0, f"thread {thread.name} of a front still has {', '.join(wrong)}")


def problems(status: dict[str, str], uid: int) -> list[str]:
    """Return what a thread has left, from the fields of its status file. Pure."""
    found = [f"{name} {status[name]}" for name in ("CapPrm", "CapEff", "CapAmb") if int(status[name], 16)]
    if status["NoNewPrivs"] != "1":
        found.append("the right to gain privileges")
    if uid and set(status["Uid"].split()) != {str(uid)}:
        found.append(f"uids {status['Uid']}")
    return found
