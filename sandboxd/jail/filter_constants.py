"""
Names that filter files may use for numbers. Source: the kernel's uapi headers; the same on both
architectures.
"""

from __future__ import annotations

from typing import Final

CONSTANTS: Final = {
    # sys/mman.h
    "PROT_WRITE": 0x2,
    "PROT_EXEC": 0x4,
    "PROT_GROWSDOWN": 0x0100_0000,
    "PROT_GROWSUP": 0x0200_0000,
    "MAP_GROWSDOWN": 0x100,
    "MAP_LOCKED": 0x2000,
    "MAP_HUGETLB": 0x4_0000,
    "MREMAP_MAYMOVE": 1,
    "MADV_NORMAL": 0,
    "MADV_WILLNEED": 3,
    "MADV_DONTNEED": 4,
    "MADV_FREE": 8,
    "MADV_HUGEPAGE": 14,
    "MADV_NOHUGEPAGE": 15,
    "MADV_DONTDUMP": 16,
    # linux/sched.h: what pthread_create asks for, and nothing else
    "CLONE_THREAD_FLAGS": 0x3D_0F00,
    "CLONE_FLAGS_BUT_DETACHED": 0xFFFF_FFFF_FFBF_FFFF,
    # linux/futex.h
    "FUTEX_WAIT": 0,
    "FUTEX_WAKE": 1,
    "FUTEX_WAIT_BITSET": 9,
    "FUTEX_WAKE_BITSET": 10,
    "FUTEX_COMMAND_MASK": 0xFFFF_FE7F,
    # linux/fcntl.h
    "F_GETFD": 1,
    "F_SETFD": 2,
    "F_GETFL": 3,
    "F_DUPFD_CLOEXEC": 1030,
    "F_GET_SEALS": 1034,
    "AT_EMPTY_PATH": 0x1000,
    # linux/prctl.h, linux/seccomp.h
    "PR_SET_NAME": 15,
    "PR_SET_MDWE": 65,
    "PR_SET_VMA": 0x5356_4D41,
    "SECCOMP_SET_MODE_FILTER": 1,
    # signals
    "SIGABRT": 6,
}
