"""The filters that are shipped: what they let through and what they end, simulated for both architectures."""

from __future__ import annotations

import errno

import pytest

from sandboxd.jail.filter_files import load_filters
from sandboxd.jail.syscall_numbers import number
from tests.jail.bpf_machine import ALLOW, ERRNO, KILL, data, run

FILTERS = load_filters()
CONTROL_FD, WAITER_PID = 7, 4321
BOTH = ("x86_64", "aarch64")
THREAD = 0x3D0F00
PROT_EXEC, PROT_WRITE = 4, 2


DANGEROUS = [
    "socket",
    "connect",
    "bind",
    "listen",
    "accept4",
    "socketpair",
    "execve",
    "execveat",
    "ptrace",
    "kill",
    "tkill",
    "process_vm_readv",
    "mount",
    "umount2",
    "pivot_root",
    "unshare",
    "setns",
    "io_uring_setup",
    "bpf",
    "keyctl",
    "add_key",
    "userfaultfd",
    "perf_event_open",
    "memfd_create",
    "shmat",
    "shmget",
    "pkey_mprotect",
    "remap_file_pages",
    "personality",
    "setresuid",
    "capset",
    "chroot",
    "pidfd_open",
    "pidfd_getfd",
    "pidfd_send_signal",
    "rt_sigqueueinfo",
    "openat2",
    "dup3",
    "pipe2",
    "sched_setaffinity",
    "setpriority",
    "clock_settime",
]


def answer(architecture: str, kind: str, call: str | int, *arguments: int) -> int:
    """What the worker gets: with ``locked`` the stricter of both filters, as the kernel decides."""
    programs = FILTERS.build(architecture, CONTROL_FD, WAITER_PID)
    call_number = number(call, architecture) if isinstance(call, str) else call
    assert call_number is not None
    seccomp_data = data(call_number, arguments, architecture)
    if kind == "waiter":
        return run(programs.waiter, seccomp_data)
    first = run(programs.worker, seccomp_data)
    if kind == "worker":
        return first
    second = run(programs.no_new_exec, seccomp_data)
    # KILL_PROCESS is negative as a signed number; the kernel takes the least.
    return min(first, second, key=lambda action: action - (1 << 32) if action >> 31 else action)


@pytest.mark.parametrize("architecture", BOTH)
@pytest.mark.parametrize("kind", ["worker", "locked", "waiter"])
def test_whatever_is_not_listed_kills(architecture: str, kind: str) -> None:
    """Every number there is and will be: the list is an allowlist."""
    rules = FILTERS.waiter.rules if kind == "waiter" else FILTERS.worker.rules
    listed = {number(rule.syscall, architecture) for rule in rules}
    others = [n for n in (*range(600), 1 << 30, 1 << 31, (1 << 32) - 1) if n not in listed]
    assert len(others) > 500
    assert {answer(architecture, kind, n) for n in others} == {KILL}


@pytest.mark.parametrize("architecture", BOTH)
@pytest.mark.parametrize(
    "call",
    DANGEROUS,
)
def test_the_dangerous_calls_kill(architecture: str, call: str) -> None:
    assert answer(architecture, "worker", call, 0, 0, 0, 0) == KILL
    assert answer(architecture, "locked", call, 0, 0, 0, 0) == KILL


@pytest.mark.parametrize("architecture", BOTH)
@pytest.mark.parametrize(
    ("call", "arguments", "wanted"),
    [
        ("read", (5, 1, 1), ALLOW),
        ("clone", (THREAD, 1, 1, 1, 1), ALLOW),
        ("clone", (THREAD | 0x400000, 1, 1, 1, 1), ALLOW),
        ("clone", (17, 0, 0, 0, 0), KILL),
        ("clone", (THREAD | 0x10000000, 0, 0, 0, 0), KILL),
        ("clone", (THREAD | 1 << 32, 0, 0, 0, 0), KILL),
        ("clone3", (1, 88), ERRNO | errno.ENOSYS),
        ("recvmsg", (CONTROL_FD, 1, 0), ALLOW),
        ("recvmsg", (CONTROL_FD + 1, 1, 0), KILL),
        ("sendto", (CONTROL_FD, 1, 1, 0, 0, 0), ALLOW),
        ("sendmsg", (CONTROL_FD, 1, 0), KILL),
        ("sendto", (3, 1, 1, 0, 0, 0), KILL),
        ("futex", (1, 0), ALLOW),
        ("futex", (1, 128 | 9 | 256), ALLOW),
        ("futex", (1, 6), KILL),  # FUTEX_LOCK_PI
        ("futex", (1, 11 | 128), KILL),  # FUTEX_WAIT_REQUEUE_PI
        ("mmap", (0, 4096, 3, 0x22, -1, 0), ALLOW),
        ("mmap", (0, 4096, 3, 0x11, 9, 0), ALLOW),
        ("mmap", (0, 4096, PROT_EXEC, 0x22, -1, 0), ERRNO | errno.EPERM),
        ("mmap", (0, 4096, 3, 0x2022, -1, 0), ERRNO | errno.EPERM),  # MAP_LOCKED
        ("mremap", (1, 1, 1, 1), ALLOW),
        ("mremap", (1, 1, 1, 3, 1), KILL),  # MREMAP_FIXED
        ("madvise", (1, 1, 4), ALLOW),
        ("madvise", (1, 1, 100), ERRNO | errno.EINVAL),  # MADV_HWPOISON
        ("madvise", (1, 1, 12), ERRNO | errno.EINVAL),  # MADV_MERGEABLE
        ("fcntl", (3, 3), ALLOW),
        ("fcntl", (3, 4, 0), KILL),  # F_SETFL
        ("fcntl", (3, 8), KILL),  # F_SETOWN
        ("fcntl", (3, 10), KILL),  # F_SETSIG
        ("ioctl", (0, 0x5412), ERRNO | errno.ENOTTY),  # TIOCSTI
        ("openat", (-100, 1, 0), ERRNO | errno.ENOENT),
        ("newfstatat", (3, 1, 1, 0x1000), ALLOW),
        ("newfstatat", (-100, 1, 1, 0), ERRNO | errno.ENOENT),
        ("tgkill", (1, 1, 6), ALLOW),
        ("tgkill", (1, 1, 9), KILL),
        ("prlimit64", (0, 3, 0, 1), ALLOW),
        ("prlimit64", (0, 3, 1, 1), ERRNO | errno.EPERM),
        ("prlimit64", (0, 3, 1 << 32, 1), ERRNO | errno.EPERM),
        ("prlimit64", (1, 3, 0, 1), ERRNO | errno.EPERM),
        ("prctl", (4, 1), KILL),  # PR_SET_DUMPABLE
        ("prctl", (1, 0), KILL),  # PR_SET_PDEATHSIG
        ("prctl", (15, 1), ALLOW),  # PR_SET_NAME
    ],
)
def test_arguments_are_narrowed(architecture: str, call: str, arguments: tuple[int, ...], wanted: int) -> None:
    assert answer(architecture, "worker", call, *arguments) == wanted


@pytest.mark.parametrize("architecture", BOTH)
def test_loading_and_locking_are_possible_once(architecture: str) -> None:
    """Before the second filter: read-execute of an artefact, MDWE and the filter itself; after it: none."""
    for call, arguments, wanted in (
        ("mprotect", (1, 1, 1 | PROT_EXEC), ERRNO | errno.EPERM),
        ("prctl", (65, 1), KILL),
        ("seccomp", (1, 0, 1), KILL),
    ):
        assert answer(architecture, "worker", call, *arguments) == ALLOW
        assert answer(architecture, "locked", call, *arguments) == wanted
    assert answer(architecture, "worker", "mprotect", 1, 1, PROT_WRITE | PROT_EXEC) == ERRNO | errno.EPERM
    assert answer(architecture, "locked", "mprotect", 1, 1, 1 | PROT_WRITE) == ALLOW


@pytest.mark.parametrize("architecture", BOTH)
def test_the_waiter_may_end_itself_only(architecture: str) -> None:
    assert answer(architecture, "waiter", "kill", WAITER_PID, 9) == ALLOW
    assert answer(architecture, "waiter", "kill", WAITER_PID + 1, 9) == KILL
    assert answer(architecture, "waiter", "kill", -1, 9) == KILL
    assert answer(architecture, "waiter", "wait4", WAITER_PID, 0) == ALLOW
    assert answer(architecture, "waiter", "read", 0) == KILL
