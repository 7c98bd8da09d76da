"""
The system calls of the self-attacks (`sandboxd.jail.attacks`): each goes for one thing of the bait.

A function returns normally if it got what it wanted and raises OSError with the kernel's answer if not. They
do no lasting harm where they succeed.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import signal
import socket
import struct
import threading
from dataclasses import dataclass
from typing import Final

from sandboxd.jail.syscalls import prctl, syscall, syscall_by_number

EXIT_EXECUTED: Final = 42
"""Exit status of the program that the execve attack runs."""

SECRET: Final = b"canary-of-the-trusted-side"


@dataclass(frozen=True, slots=True)
class Bait:
    """What lies around outside the jail for an attack to reach."""

    pid: int
    """The process that holds the rest; as root it may belong to root."""
    secret_address: int
    """Where that process has `SECRET` in its memory."""
    secret_file: str
    """A world-readable file that holds `SECRET`."""
    tcp_port: int
    """Something listens there on 127.0.0.1."""
    abstract_name: bytes
    """An abstract Unix stream socket listens under this name, without its leading NUL."""
    leaked_fd: int
    """A descriptor of the secret file that a careless parent left open and inheritable."""
    namespace_fd: int
    """A descriptor of the parent's network namespace, left open too."""
    shm_key: int
    """A System V shared memory segment that everybody may use."""
    key_name: bytes
    """A key of type user in the parent's session keyring."""
    host_name: str


# --- network --------------------------------------------------------------------------------------


def _inet_address(port: int) -> bytes:
    return struct.pack("=H", socket.AF_INET) + struct.pack("!H4s8x", port, socket.inet_aton("127.0.0.1"))


def connect_tcp(bait: Bait, _prepared: int) -> None:
    fd = syscall("socket", socket.AF_INET, socket.SOCK_STREAM, 0)
    address = _inet_address(bait.tcp_port)
    syscall("connect", fd, address, len(address))


def send_udp(bait: Bait, _prepared: int) -> None:
    fd = syscall("socket", socket.AF_INET, socket.SOCK_DGRAM, 0)
    address = _inet_address(bait.tcp_port)
    syscall("sendto", fd, b"x", 1, 0, address, len(address))


def abstract_socket(bait: Bait, _prepared: int) -> None:
    fd = syscall("socket", socket.AF_UNIX, socket.SOCK_STREAM, 0)
    address = ctypes.create_string_buffer(struct.pack("=H", socket.AF_UNIX) + b"\0" + bait.abstract_name)
    syscall("connect", fd, address, len(address) - 1)


def netlink(_bait: Bait, _prepared: int) -> None:
    syscall("socket", 16, socket.SOCK_RAW, 0)


# --- files ----------------------------------------------------------------------------------------

_AT_FDCWD: Final = -100


def _read(path: bytes) -> bytes:
    fd = syscall("openat", _AT_FDCWD, path, os.O_RDONLY, 0)
    return os.read(fd, 100)


def open_file(bait: Bait, _prepared: int) -> None:
    _read(bait.secret_file.encode())


def write_file(bait: Bait, _prepared: int) -> None:
    for directory in (os.path.dirname(bait.secret_file).encode(), b""):  # noqa: PTH120 (no pathlib in an attack)
        path = directory + b"/by-the-worker"
        try:
            fd = syscall("openat", _AT_FDCWD, path, os.O_WRONLY | os.O_CREAT, 0o600)
        except OSError:
            if not directory:
                raise
            continue
        os.write(fd, b"x")
        syscall("unlinkat", _AT_FDCWD, path, 0)
        return


def process_environment(bait: Bait, _prepared: int) -> None:
    _read(b"/proc/%d/environ" % bait.pid)


def process_memory_file(bait: Bait, _prepared: int) -> None:
    fd = syscall("openat", _AT_FDCWD, b"/proc/%d/mem" % bait.pid, os.O_RDONLY, 0)
    os.lseek(fd, bait.secret_address, os.SEEK_SET)
    os.read(fd, len(SECRET))


def leaked_descriptor(bait: Bait, _prepared: int) -> None:
    os.lseek(bait.leaked_fd, 0, os.SEEK_SET)
    os.read(bait.leaked_fd, 100)


def mount(_bait: Bait, _prepared: int) -> None:
    syscall("mount", b"none", b"/", b"tmpfs", 0, None)


# --- other processes ------------------------------------------------------------------------------


def execve(_bait: Bait, _prepared: int) -> None:
    arguments = (ctypes.c_char_p * 4)(b"/bin/sh", b"-c", b"exit %d" % EXIT_EXECUTED, None)
    pointer = ctypes.cast(arguments, ctypes.c_void_p).value
    with contextlib.suppress(OSError):
        os.close(2)  # a loader that cannot map the program says so there; the exit status is what counts
    syscall("execve", b"/bin/sh", pointer, None)


def fork(_bait: Bait, _prepared: int) -> None:
    if syscall("clone", signal.SIGCHLD, 0, 0, 0, 0) == 0:
        os._exit(0)


def clone3(_bait: Bait, _prepared: int) -> None:
    arguments = ctypes.create_string_buffer(struct.pack("=QQQQQQQQ", 0, 0, 0, 0, signal.SIGCHLD, 0, 0, 0), 64)
    if syscall("clone3", arguments, 64) == 0:
        os._exit(0)


def ptrace(bait: Bait, _prepared: int) -> None:
    syscall("ptrace", 0x4206, bait.pid, 0, 0)  # PTRACE_SEIZE: attaches without stopping


def kill(bait: Bait, _prepared: int) -> None:
    # Ignored by default; SIGCONT would be let through within a session whatever the uid.
    syscall("kill", bait.pid, signal.SIGWINCH)


def queue_signal(bait: Bait, _prepared: int) -> None:
    info = ctypes.create_string_buffer(struct.pack("=iii", signal.SIGWINCH, 0, -1), 128)
    syscall("rt_sigqueueinfo", bait.pid, signal.SIGWINCH, info)


def signal_thread(bait: Bait, _prepared: int) -> None:
    syscall("tgkill", bait.pid, bait.pid, signal.SIGWINCH)


def read_memory(bait: Bait, _prepared: int) -> None:
    local = ctypes.create_string_buffer(len(SECRET))
    here = ctypes.create_string_buffer(struct.pack("=QQ", ctypes.addressof(local), len(SECRET)), 16)
    there = ctypes.create_string_buffer(struct.pack("=QQ", bait.secret_address, len(SECRET)), 16)
    syscall("process_vm_readv", bait.pid, here, 1, there, 1, 0)


def steal_descriptor(bait: Bait, _prepared: int) -> None:
    pidfd = syscall("pidfd_open", bait.pid, 0)
    syscall("pidfd_getfd", pidfd, bait.leaked_fd, 0)


def shared_memory(bait: Bait, _prepared: int) -> None:
    syscall("shmget", bait.shm_key, 0, 0)


def search_key(bait: Bait, _prepared: int) -> None:
    syscall("keyctl", 10, -3, b"user", bait.key_name, 0)  # KEYCTL_SEARCH in the session keyring


# --- namespaces and privilege ---------------------------------------------------------------------


def join_namespace(bait: Bait, _prepared: int) -> None:
    syscall("setns", bait.namespace_fd, 0)


def new_user_namespace(_bait: Bait, _prepared: int) -> None:
    syscall("unshare", 0x1000_0000)


def new_network_namespace(_bait: Bait, _prepared: int) -> None:
    syscall("unshare", 0x4000_0000)


def become_other(_bait: Bait, _prepared: int) -> None:
    uid = 1 if os.getuid() == 0 else 0
    syscall("setresuid", uid, uid, uid)


def set_clock(_bait: Bait, _prepared: int) -> None:
    now = ctypes.create_string_buffer(16)
    syscall("clock_gettime", 0, now)
    syscall("clock_settime", 0, now)


def host_name(bait: Bait, _prepared: int) -> None:
    names = ctypes.create_string_buffer(6 * 65)
    syscall("uname", names)
    if names.raw[65:130].split(b"\0")[0] != bait.host_name.encode():
        raise OSError(2, "another name")


def undo_dumpable(_bait: Bait, _prepared: int) -> None:
    prctl(4, 1)


def shared_flags(_bait: Bait, _prepared: int) -> None:
    """Flags belong to the open file, not to the descriptor: whoever shares it has them too."""
    flags = syscall("fcntl", 0, 3, 0)  # F_GETFL
    syscall("fcntl", 0, 4, flags)  # F_SETFL


def undo_death_signal(_bait: Bait, _prepared: int) -> None:
    prctl(1, 0)


# --- the kernel's rich interfaces -----------------------------------------------------------------


def io_uring(_bait: Bait, _prepared: int) -> None:
    syscall("io_uring_setup", 2, ctypes.create_string_buffer(120))


def bpf(_bait: Bait, _prepared: int) -> None:
    syscall("bpf", 0, ctypes.create_string_buffer(struct.pack("=IIIII", 2, 4, 4, 1, 0), 128), 128)


def userfaultfd(_bait: Bait, _prepared: int) -> None:
    syscall("userfaultfd", 1)  # UFFD_USER_MODE_ONLY


def perf(_bait: Bait, _prepared: int) -> None:
    software_cpu_clock, exclude_kernel_and_hypervisor = 1, 0b110_0000
    attributes = struct.pack("=IIQQQQQ", 1, 128, software_cpu_clock, 0, 0, 0, exclude_kernel_and_hypervisor)
    syscall("perf_event_open", ctypes.create_string_buffer(attributes, 128), 0, -1, -1, 0)


def x32_call(_bait: Bait, _prepared: int) -> None:
    syscall_by_number(0x4000_0000 | 39)


def unknown_call(_bait: Bait, _prepared: int) -> None:
    """A number that no kernel has: without seccomp the answer is ENOSYS, which counts as let through."""
    try:
        syscall_by_number(4000)
    except OSError as error:
        if error.errno != 38:
            raise


def compatibility_call(_bait: Bait, prepared: int) -> None:
    """
    Getpid by ``int 0x80``, whose numbers are others: a filter that forgot the architecture lets it through.
    """
    result = int(ctypes.CFUNCTYPE(ctypes.c_long)(prepared)())
    if result <= 0:
        raise OSError(-result, os.strerror(-result))


def read_tsc(_bait: Bait, prepared: int) -> None:
    ctypes.CFUNCTYPE(ctypes.c_long)(prepared)()


# --- executable memory ----------------------------------------------------------------------------

_PAGE: Final = mmap.PAGESIZE
_MAP_FLAGS: Final = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS


def map_executable(_bait: Bait, _prepared: int) -> None:
    syscall("mmap", 0, _PAGE, mmap.PROT_READ | mmap.PROT_EXEC, _MAP_FLAGS, -1, 0)


def map_both(_bait: Bait, _prepared: int) -> None:
    syscall("mmap", 0, _PAGE, 7, _MAP_FLAGS, -1, 0)


def make_executable(_bait: Bait, prepared: int) -> None:
    syscall("mprotect", prepared, _PAGE, mmap.PROT_READ | mmap.PROT_EXEC)


def writable_page() -> int:
    return syscall("mmap", 0, _PAGE, mmap.PROT_READ | mmap.PROT_WRITE, _MAP_FLAGS, -1, 0)


def write_to_code(_bait: Bait, prepared: int) -> None:
    """Overwrite code that was writable and executable when the worker began (libffi keeps such pages)."""
    # By a call that writes to memory, so that the refusal is an errno and not a crash.
    syscall("getrandom", prepared, 1, 0)


def code_page(code: bytes) -> int:
    address = syscall("mmap", 0, _PAGE, 7, _MAP_FLAGS, -1, 0)
    ctypes.memmove(address, code, len(code))
    return address


INT80_GETPID: Final = b"\x53\xb8\x14\x00\x00\x00\xcd\x80\x5b\x48\x98\xc3"
"""push rbx; mov eax, 20; int 0x80; pop rbx; cdqe; ret."""
RDTSC: Final = b"\x0f\x31\xc3"


# --- eating the machine ---------------------------------------------------------------------------

_MANY_THREADS: Final = 200
_MANY_DESCRIPTORS: Final = 10_000


def many_threads(_bait: Bait, _prepared: int) -> None:
    release = threading.Event()
    threading.stack_size(64 * 1024)
    try:
        for _ in range(_MANY_THREADS):
            threading.Thread(target=release.wait, daemon=True).start()
    except RuntimeError as error:
        raise OSError(11, "no more threads") from error
    finally:
        release.set()


def many_descriptors(_bait: Bait, _prepared: int) -> None:
    for _ in range(_MANY_DESCRIPTORS):
        syscall("fcntl", 0, 1030, 0)  # F_DUPFD_CLOEXEC, which the filter lets through


def locked_memory(_bait: Bait, _prepared: int) -> None:
    syscall("mlock", writable_page(), _PAGE)
