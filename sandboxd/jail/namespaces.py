"""
Namespaces and the empty root: what the process can see at all.

Each function is one step of the plan. They run in a process with one thread, which either holds
CAP_SYS_ADMIN or has just made a user namespace and holds it there.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from sandboxd.jail.syscalls import step, syscall

CLONE_FLAGS: Final = {
    "user": 0x1000_0000,
    "pid": 0x2000_0000,
    "network": 0x4000_0000,
    "mount": 0x0002_0000,
    "ipc": 0x0800_0000,
    "uts": 0x0400_0000,
    "cgroup": 0x0200_0000,
    "time": 0x0000_0080,
}
"""Namespace kinds by our names; ``time`` and ``pid`` take effect for the next child only."""

_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 1, 2, 4, 8
_MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 32, 4096, 16384, 1 << 18
_MNT_DETACH: Final = 2
_EMPTY_ROOT_OPTIONS: Final = b"size=4k,nr_inodes=1,mode=0555"
"""One inode, the root itself: the kernel will not make a second, read-only or not."""

_USER_HINT: Final = (
    "start as root with a uid range, or allow unprivileged user namespaces: user.max_user_namespaces > 0, "
    "kernel.unprivileged_userns_clone=1, and kernel.apparmor_restrict_unprivileged_userns=0 "
    "or an AppArmor profile with `userns,`"
)


def unshare(kind: str) -> None:
    """Leave one shared namespace for a fresh, empty one. Raises JailError."""
    other = f"the kernel needs {kind} namespaces, and a container must allow them"
    hint = _USER_HINT if kind == "user" else other
    with step(f"{kind}_namespace", hint):
        syscall("unshare", CLONE_FLAGS[kind])


def map_single_id(inside: int, outside_uid: int, outside_gid: int) -> None:
    """
    Give the new user namespace one uid and one gid; every other id of the machine does not exist in it.

    setgroups has to be denied first, or an unprivileged process may not write the gid map at all. Raises
    JailError.
    """
    with step("uid_map", "the process must be dumpable and /proc mounted"):
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{inside} {outside_uid} 1")
        _write("/proc/self/gid_map", f"{inside} {outside_gid} 1")


def _write(path: str, text: str) -> None:
    """One write: the kernel takes a map only whole."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def empty_root(mount_point: str) -> None:
    """
    Swap the root for an empty read-only tmpfs and let go of the old tree.

    Args:
        mount_point: any directory of the old tree; it is covered for an instant, in this namespace only.

    Raises:
        JailError: and the process must end, as it may stand between two roots.
    """
    target = mount_point.encode()
    with step("mount_namespace", f"could not make {mount_point} the new root"):
        # First cut the propagation, or what follows would happen in the machine's own tree too.
        syscall("mount", b"none", b"/", None, _MS_REC | _MS_PRIVATE, None)
        syscall("mount", b"none", target, b"tmpfs", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, _EMPTY_ROOT_OPTIONS)
        os.chdir(mount_point)
        # With both arguments the same directory, the old root lands on top of the new one and is detached
        # from there.
        syscall("pivot_root", b".", b".")
        syscall("umount2", b".", _MNT_DETACH)
        os.chdir("/")
        flags = _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
        syscall("mount", b"none", b"/", None, flags, None)
    if list(Path("/").iterdir()):
        raise AssertionError("the new root is not empty")


def set_host_name(host_name: str) -> None:
    """Hide the machine's name. Raises JailError."""
    encoded = host_name.encode()
    with step("uts_namespace", "sethostname was refused"):
        syscall("sethostname", encoded, len(encoded))
        syscall("setdomainname", b"", 0)
