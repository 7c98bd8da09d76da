"""The counters of the memory that a tenant's VMs share: whatever a VM writes there, they are numbers within bounds."""

from __future__ import annotations

import os
import struct

import pytest

from sandboxd.limits import DEFAULT_SHARED_BYTES, KIB
from sandboxd.supervisor.shared_region import SharedCounts, SharedRegion, SharedUse


def test_a_fresh_region() -> None:
    assert SharedRegion().use() == SharedUse(DEFAULT_SHARED_BYTES, 0, 0, SharedCounts())
    assert SharedRegion(64 * KIB).size == os.fstat(SharedRegion(64 * KIB).fd).st_size == 64 * KIB


def test_counters_in_hostcores_order() -> None:
    region = SharedRegion()
    os.pwrite(region.fd, struct.pack("<7I", 1, 2, 3, 4, 5, 6, 7), 256)
    os.pwrite(region.fd, struct.pack("<II", 20480, 9), 132)

    assert region.use() == SharedUse(
        DEFAULT_SHARED_BYTES,
        20480,
        9,
        SharedCounts(sets=1, cas_mismatches=2, full=3, repairs=4, lock_waits=5, enqueued=6, queue_full=7),
    )


def test_counters_go_on_past_32_bits() -> None:
    region = SharedRegion()
    for word, total in ((2**32 - 1, 2**32 - 1), (4, 2**32 + 4), (4, 2**32 + 4)):
        os.pwrite(region.fd, struct.pack("<I", word), 256)
        assert region.use().counts.sets == total


@pytest.mark.parametrize("word", [2**32 - 1, 2**31])
def test_a_hostile_vm_stays_within_bounds(word: int) -> None:
    region = SharedRegion(64 * KIB)
    os.pwrite(region.fd, struct.pack("<I", word) * (16 * KIB), 0)
    use = region.use()

    assert (use.used_bytes, use.entries) == (64 * KIB, 64 * KIB // 512)
    assert all(0 <= getattr(use.counts, name) < 2**32 for name in SharedCounts.__slots__)
