"""What VMs are told of spinning."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sandboxd import limits
from sandboxd.supervisor import spinning

HEADER = Path(spinning.__file__).parents[1] / "hostcore" / "channel.h"


@pytest.mark.parametrize(
    ("spin_us", "cpus", "alone"), [(50, 2, True), (50, 3, True), (50, 4, False), (0, 2, False), (0, 64, False)]
)
def test_few_cpus_spin_for_one_stream_alone(spin_us: int, cpus: int, alone: bool) -> None:
    found = spinning.poll_argument(spin_us, cpus)
    assert bool(found & spinning.SPIN_ALONE) is alone
    assert found & ~spinning.SPIN_ALONE == spin_us * spinning.LOOKS_PER_US


def test_the_longest_spin_leaves_the_flag_alone() -> None:
    assert spinning.poll_argument(limits.MAX_SPIN_US, 64) < spinning.SPIN_ALONE


def test_hostcore_has_the_same_flag() -> None:
    flag = re.search(r"#define SPIN_ALONE (0x[0-9a-f]+)u", HEADER.read_text())
    assert flag is not None
    assert int(flag[1], 16) == spinning.SPIN_ALONE
