"""A machine for the BPF that seccomp runs, written apart from the assembler."""

from __future__ import annotations

import struct

ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
KILL, ERRNO, ALLOW = 0x80000000, 0x00050000, 0x7FFF0000


def data(number: int, arguments: tuple[int, ...] = (), architecture: str | int = "x86_64") -> bytes:
    """struct seccomp_data: int nr; u32 arch; u64 instruction_pointer; u64 args[6]."""
    arch = ARCH[architecture] if isinstance(architecture, str) else architecture
    words = [argument & (1 << 64) - 1 for argument in (*arguments, 0, 0, 0, 0, 0, 0)[:6]]
    return struct.pack("<IIQ6Q", number & 0xFFFFFFFF, arch, 0x1234, *words)


def run(program: bytes, seccomp_data: bytes) -> int:
    """Run a program on one call and return its action. Fails on anything that the kernel would refuse."""
    instructions = [struct.unpack_from("<HBBI", program, at) for at in range(0, len(program), 8)]
    accumulator, at = 0, 0
    while True:
        code, jump_true, jump_false, k = instructions[at]
        at += 1
        match code:
            case 0x20:  # BPF_LD | BPF_W | BPF_ABS
                assert k % 4 == 0
                (accumulator,) = struct.unpack_from("<I", seccomp_data, k)
            case 0x54:  # BPF_ALU | BPF_AND | BPF_K
                accumulator &= k
            case 0x15:  # BPF_JMP | BPF_JEQ | BPF_K
                at += jump_true if accumulator == k else jump_false
            case 0x35:  # BPF_JMP | BPF_JGE | BPF_K
                at += jump_true if accumulator >= k else jump_false
            case 0x06:  # BPF_RET | BPF_K
                return k
            case _:
                raise AssertionError(f"unknown instruction {code:#x}")
