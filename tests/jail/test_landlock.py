"""What each Landlock ABI is asked to deny. The numbers are those of linux/landlock.h."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import ziglang

from sandboxd.jail.landlock import ruleset

HEADER = Path(ziglang.__file__).parent / "lib/libc/include/any-linux-any/linux/landlock.h"


@pytest.mark.parametrize(
    ("abi", "fs_bits", "net"),
    [(1, 13, 0), (2, 14, 0), (3, 15, 0), (4, 15, 3), (5, 16, 3), (6, 16, 3), (99, 16, 3)],
)
def test_all_that_an_abi_knows_is_denied(abi: int, fs_bits: int, net: int) -> None:
    assert ruleset(abi, scopes=False) == ((1 << fs_bits) - 1, net, 0)


@pytest.mark.parametrize(("abi", "scopes"), [(5, 0), (6, 3), (7, 3)])
def test_scopes_are_a_ruleset_of_their_own(abi: int, scopes: int) -> None:
    assert ruleset(abi, scopes=True) == (0, 0, scopes)


def test_the_bits_are_the_kernels() -> None:
    text = HEADER.read_text()
    bits = {name: int(bit) for name, bit in re.findall(r"#define LANDLOCK_(\w+)\s+\(1ULL << (\d+)\)", text)}
    assert bits["ACCESS_FS_MAKE_SYM"] == 12
    assert bits["ACCESS_FS_REFER"] == 13
    assert bits["ACCESS_FS_TRUNCATE"] == 14
    assert bits["ACCESS_FS_IOCTL_DEV"] == 15
    assert bits["ACCESS_NET_CONNECT_TCP"] == 1
    assert bits["SCOPE_SIGNAL"] == 1
