"""
Classic BPF as seccomp runs it: instructions, and the check that a program is well formed before the kernel
sees it.

Pure. The data that a program reads is ``struct seccomp_data``: the call's number, the architecture, the
instruction pointer and six 64-bit arguments, little-endian on both architectures that we know.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

LD_ABS: Final = 0x20
"""A = 32-bit word of the data at offset k."""
AND: Final = 0x54
"""A = A & k."""
JEQ: Final = 0x15
JGT: Final = 0x25
JGE: Final = 0x35
JSET: Final = 0x45
RET: Final = 0x06

OFFSET_NUMBER: Final = 0
OFFSET_ARCH: Final = 4
OFFSET_ARGUMENTS: Final = 16
DATA_BYTES: Final = 64

MAX_INSTRUCTIONS: Final = 4096
"""BPF_MAXINSNS."""
MAX_JUMP: Final = 255
"""Jump offsets are one byte."""

_JUMPS: Final = (JEQ, JGT, JGE, JSET)
_KNOWN: Final = (LD_ABS, AND, RET, *_JUMPS)
_FORMAT: Final = struct.Struct("=HBBI")
INSTRUCTION_BYTES: Final = _FORMAT.size


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction, ``struct sock_filter``; jumps count from the next instruction."""

    code: int
    jump_true: int
    jump_false: int
    k: int


def load(offset: int) -> Instruction:
    """A = the word at ``offset``."""
    return Instruction(LD_ABS, 0, 0, offset)


def ret(action: int) -> Instruction:
    """End with ``action``."""
    return Instruction(RET, 0, 0, action)


def argument_low(index: int) -> int:
    """Return the offset of the low half of an argument."""
    return OFFSET_ARGUMENTS + 8 * index


def argument_high(index: int) -> int:
    """Return the offset of the high half of an argument."""
    return OFFSET_ARGUMENTS + 8 * index + 4


def encode(program: tuple[Instruction, ...]) -> bytes:
    """Return the program as the kernel reads it."""
    return b"".join(_FORMAT.pack(i.code, i.jump_true, i.jump_false, i.k) for i in program)


def decode(data: bytes) -> tuple[Instruction, ...]:
    """Return the instructions of an encoded program. Raises ValueError if it is not whole instructions."""
    if len(data) % INSTRUCTION_BYTES:
        raise ValueError(f"a BPF program is a multiple of {INSTRUCTION_BYTES} bytes, not {len(data)}")
    return tuple(Instruction(*fields) for fields in _FORMAT.iter_unpack(data))


def verify(program: tuple[Instruction, ...]) -> None:
    """
    Refuse a program that the kernel would refuse, or that does not end on every path.

    Jumps only go forward, so a program whose last instruction returns and whose jumps stay inside always
    ends.

    Raises:
        ValueError: with the index of the offending instruction.
    """
    if not 0 < len(program) <= MAX_INSTRUCTIONS:
        raise ValueError(f"a BPF program has 1 to {MAX_INSTRUCTIONS} instructions, not {len(program)}")
    for index, instruction in enumerate(program):
        if instruction.code not in _KNOWN:
            raise ValueError(f"instruction {index}: code {instruction.code:#x} is not used here")
        if instruction.code == LD_ABS and (instruction.k % 4 or instruction.k > DATA_BYTES - 4):
            raise ValueError(f"instruction {index}: loads from {instruction.k}, which is not a word of the data")
        if instruction.code in _JUMPS:
            farthest = index + 1 + max(instruction.jump_true, instruction.jump_false)
            if farthest >= len(program):
                raise ValueError(f"instruction {index}: jumps to {farthest}, behind the end")
            if max(instruction.jump_true, instruction.jump_false) > MAX_JUMP:
                raise ValueError(f"instruction {index}: jumps farther than {MAX_JUMP}")
    if program[-1].code != RET:
        raise ValueError("the last instruction does not return")
