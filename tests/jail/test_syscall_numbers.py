"""The table of system call numbers against the kernel's own headers, as the ziglang package carries them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import ziglang

from sandboxd.jail.syscall_numbers import ARCHITECTURES, NUMBERS, name_of, number

HEADERS = Path(ziglang.__file__).parent / "lib" / "libc" / "include"
FOLDERS = {"x86_64": "x86-linux-any", "aarch64": "aarch64-linux-any"}


def header_numbers(architecture: str) -> dict[str, int]:
    text = (HEADERS / FOLDERS[architecture] / "asm" / "unistd_64.h").read_text()
    return {name: int(value) for name, value in re.findall(r"#define __NR_(\w+)\s+(\d+)", text)}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_number_is_the_kernels(architecture: str) -> None:
    known = header_numbers(architecture)
    assert len(known) > 300
    assert {name: number(name, architecture) for name in NUMBERS} == {name: known.get(name) for name in NUMBERS}


def test_names_for_messages() -> None:
    assert name_of(59, "x86_64") == "execve"
    assert name_of(221, "aarch64") == "execve"
    assert name_of(4095, "x86_64") == "#4095"
