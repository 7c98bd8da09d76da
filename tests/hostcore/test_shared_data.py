"""Shared data: the ABI's answers, several VMs at once, holders that die, and regions that a foe has written to."""

from __future__ import annotations

import mmap
import os
import random
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from sandboxd.channel.memfd import create_shared_region
from sandboxd.vm.instance import SharedRegion
from tests.hostcore.driver import Driver
from tests.hostcore.guest_wat import OUT_CAS, guest
from tests.support.counter import counter_wat

GET, SET = "proxy_get_shared_data", "proxy_set_shared_data"
MARKERS = ["proxy_abi_version_0_1_0", "proxy_abi_version_0_2_0", "proxy_abi_version_0_2_1"]
SIZE = 1 << 20
LOCK_AT, HEAP_NEXT_AT, FREE_AT, COUNTERS_AT = 64, 132, 144, 256
REPAIRS_AT = COUNTERS_AT + 4 * 3
WILD = 0xFFFF0000 - (1 << 32)


@dataclass
class Region:
    """A region and its bytes."""

    fd: int
    size: int
    bytes: mmap.mmap

    def seen_by(self, number: int) -> SharedRegion:
        """As the VM of that number has it."""
        return SharedRegion(self.fd, self.size, number)

    def word(self, at: int) -> int:
        """A word of it."""
        return int(struct.unpack_from("<I", self.bytes, at)[0])


@pytest.fixture(params=[SIZE])
def region(request: pytest.FixtureRequest) -> Iterator[Region]:
    """A fresh region."""
    fd = create_shared_region(request.param)
    with mmap.mmap(fd, request.param) as shared:
        yield Region(fd, request.param, shared)
    os.close(fd)


def calls(vm: Driver) -> list[bytes]:
    """Run one request and return what the guest reported."""
    return vm.request()[1].reports


@pytest.mark.parametrize("marker", MARKERS)
def test_values_and_numbers(region: Region, marker: str) -> None:
    """Absent, set, read with its number, set with the right and the wrong one, empty values; in every ABI version."""
    steps = [
        (GET, "k", OUT_CAS),
        (SET, "k", "value", 7),  # absent: any number will do
        (GET, "k", OUT_CAS),
        (SET, "k", "other", 99),
        (SET, "k", "longer than before " * 20, 1),
        (GET, "k", OUT_CAS),
        (SET, "k", b"", 0),
        (GET, "k", OUT_CAS),
        (SET, b"", b"empty key", 0),
        (GET, b"", OUT_CAS),
    ]
    with Driver(guest({"request_headers": steps}, marker=marker), shared=region.seen_by(1)) as vm:
        reports = calls(vm)

    assert reports == [
        b"\x01" + bytes(4),
        b"\x00",
        b"\x00value" + struct.pack("<I", 1),
        b"\x08",
        b"\x00",
        b"\x00" + b"longer than before " * 20 + struct.pack("<I", 2),
        b"\x00",
        b"\x00" + struct.pack("<I", 3),
        b"\x00",
        b"\x00empty key" + struct.pack("<I", 4),
    ]


def test_vms_share_by_vm_id(region: Region) -> None:
    """The same vm_id sees the value, another one does not; the empty one is one as well."""
    writer, reader = guest({"request_headers": [(SET, "k", "v", 0)]}), guest({"request_headers": [(GET, "k", OUT_CAS)]})
    with ExitStack() as stack:
        ids = [("a", writer), ("a", reader), ("b", reader), ("", reader)]
        drivers = [
            stack.enter_context(Driver(module, shared=region.seen_by(number), vm_id=vm_id))
            for number, (vm_id, module) in enumerate(ids, 1)
        ]
        reports = [calls(vm) for vm in drivers]

    assert [report[0][:2] for report in reports] == [b"\x00", b"\x00v", b"\x01\x00", b"\x01\x00"]


def test_values_outlive_the_vm(region: Region) -> None:
    """A VM that starts anew finds them."""
    with Driver(guest({"request_headers": [(SET, "k", "v", 0)]}), shared=region.seen_by(1)) as vm:
        calls(vm)
    with Driver(guest({"request_headers": [(GET, "k", OUT_CAS)]}), shared=region.seen_by(1)) as vm:
        assert calls(vm)[0][:2] == b"\x00v"


def test_without_a_region_nothing_is_shared() -> None:
    """The statuses that the SDKs expect."""
    with Driver(guest({"request_headers": [(GET, "k", OUT_CAS), (SET, "k", "v", 0)]})) as vm:
        assert [report[0] for report in calls(vm)] == [1, 10]


def test_denied(region: Region) -> None:
    """The ABI's answer for a call that is not granted."""
    module = guest({"request_headers": [(GET, "k", OUT_CAS), (SET, "k", "v", 0)]})
    with Driver(module, shared=region.seen_by(1), denied=[GET, SET]) as vm:
        assert [report[0] for report in calls(vm)] == [10, 10]
    assert region.bytes[:] == bytes(SIZE)


def test_wild_pointers_change_nothing(region: Region) -> None:
    """Each of the addresses past the end in its turn."""
    wild = [
        (SET, WILD, 8, "v", 0),
        (SET, "k", WILD, 8, 0),
        (GET, WILD, 8, 64, 68, 72),
        (SET, "k", "v", 0),
        (GET, "k", WILD, 68, 72),
        (GET, "k", 64, WILD, 72),
        (GET, "k", 64, 68, WILD),
    ]
    with Driver(guest({"request_headers": wild}), shared=region.seen_by(1)) as vm:
        assert [report[0] for report in calls(vm)] == [6, 6, 6, 0, 6, 6, 6]


def test_limits(region: Region) -> None:
    """Too long a value or key; a full table; a full heap. What was there stays readable."""
    steps = [
        (SET, "big", 0, 65521, 0),
        (SET, "big", 0, 65520, 0),
        (SET, 0, 1025, "v", 0),
        (SET, "small", "v", 0),
        *[(SET, f"big {n}", 0, 60000, 0) for n in range(20)],
        (GET, "small", OUT_CAS),
        *[(SET, f"key {n}", b"", 0) for n in range(2000)],
        (SET, "small", "w", 0),
        (GET, "small", OUT_CAS),
    ]
    with Driver(guest({"request_headers": steps}), shared=region.seen_by(1)) as vm:
        reports = calls(vm)

    assert [report[0] for report in reports[:4]] == [10, 0, 10, 0]
    filled = [report[0] for report in reports[4:24]]
    assert filled[:10] == [0] * 10
    assert filled[-1] == 10
    assert reports[24][:2] == b"\x00v"
    keys = [report[0] for report in reports[25:2025]]
    assert keys[0] == 0
    assert keys[-1] == 10
    assert reports[2025] == b"\x00"
    assert reports[2026][:2] == b"\x00w"


def test_blocks_are_used_again(region: Region) -> None:
    """A value that is set for ever, in changing sizes, needs no more room after a while."""
    steps = [("loop", 2000, (SET, "k", "v" * size, 0)) for size in (1, 100, 3000, 40000)]
    with Driver(guest({"request_headers": steps * 2}), shared=region.seen_by(1)) as vm:
        calls(vm)
        used = region.word(HEAP_NEXT_AT)
        calls(vm)

        assert region.word(HEAP_NEXT_AT) == used


def counter(region: Region) -> int:
    """The counter's value, read by one more VM."""
    with Driver(guest({"request_headers": [(GET, "counter", OUT_CAS)]}), shared=region.seen_by(999)) as vm:
        report = calls(vm)[0]
    assert report[0] == 0
    return int.from_bytes(report[1:9], "little")


def test_counts_are_exact_under_eight_vms(region: Region) -> None:
    """Read, add one, write with the number that was read; again if another was quicker."""
    times, vms = 20_000, 8
    with Driver(guest({"request_headers": [(SET, "counter", bytes(8), 0)]}), shared=region.seen_by(100)) as vm:
        calls(vm)
    module = counter_wat(times)
    failures: list[BaseException] = []

    def run(number: int) -> None:
        try:
            with Driver(module, shared=region.seen_by(number)) as vm:
                vm.request()
        except BaseException as error:
            failures.append(error)

    Driver(module, shared=region.seen_by(99)).close()  # compiles
    threads = [threading.Thread(target=run, args=(number,)) for number in range(1, vms + 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert not failures
    assert counter(region) == times * vms


@pytest.mark.parametrize("dead", [0xFFFFFFFF, 77])
def test_lock_of_a_dead_holder_is_taken_and_what_it_left_is_repaired(region: Region, dead: int) -> None:
    """Marked dead by its worker, or silent for a while; its half-done blocks come back, values stay."""
    with Driver(
        guest({"request_headers": [(SET, "k", "v" * 100, 0), (SET, "l", "w", 0)]}), shared=region.seen_by(1)
    ) as vm:
        calls(vm)
        used = region.word(HEAP_NEXT_AT)
        # As if it had died after it took a fresh block.
        struct.pack_into("<II", region.bytes, used, 3, 0)
        struct.pack_into("<I", region.bytes, HEAP_NEXT_AT, used + 256)
        struct.pack_into("<II", region.bytes, LOCK_AT, dead, 5)
        calls(vm)

    assert region.word(REPAIRS_AT) == 1
    assert region.word(LOCK_AT) == 0
    assert region.word(FREE_AT + 4 * 3) == used
    with Driver(guest({"request_headers": [(GET, "k", OUT_CAS), (GET, "l", OUT_CAS)]}), shared=region.seen_by(2)) as vm:
        reports = calls(vm)
    assert [report[:-4] for report in reports] == [b"\x00" + b"v" * 100, b"\x00w"]


def test_vm_that_ends_inside_an_update_gives_the_lock_back(region: Region) -> None:
    """The worker closes a VM that trapped; the next one need not wait."""
    vm = Driver(guest({"request_headers": []}), shared=region.seen_by(5))
    struct.pack_into("<I", region.bytes, LOCK_AT, 5)
    vm.close()

    assert region.word(LOCK_AT) == 0xFFFFFFFF


def test_lock_that_is_never_given_back_costs_a_bounded_wait(region: Region) -> None:
    """A foe of the same tenant takes it again and again: the call fails, reading goes on."""
    stop = threading.Event()

    def foe() -> None:
        stamp = 0
        while not stop.is_set():
            stamp += 1
            struct.pack_into("<II", region.bytes, LOCK_AT, 66, stamp & 0xFFFFFFFF)
            stop.wait(0.0005)

    with Driver(guest({"request_headers": [(SET, "k", "v", 0)]}), shared=region.seen_by(1)) as vm:
        calls(vm)
        thread = threading.Thread(target=foe)
        thread.start()
        try:
            assert calls(vm) == [b"\x0a"]
            with Driver(guest({"request_headers": [(GET, "k", OUT_CAS)]}), shared=region.seen_by(2)) as reader:
                assert calls(reader)[0][:2] == b"\x00v"
        finally:
            stop.set()
            thread.join()


STEPS = [(SET, f"k{n}", f"value {n}" * n, 0) for n in range(10)] + [(GET, f"k{n}", OUT_CAS) for n in range(10)]


@pytest.mark.parametrize("seed", range(8))
def test_foe_that_writes_everywhere_harms_no_vm(region: Region, seed: int) -> None:
    """Any status the ABI has, never a trap."""
    chance = random.Random(seed)
    with Driver(guest({"request_headers": STEPS}), shared=region.seen_by(1)) as vm:
        vm.request()
        for _ in range(30):
            for _ in range(chance.randrange(1, 60)):
                at = chance.choice(
                    [chance.randrange(64, 320), chance.randrange(4096, 48000), chance.randrange(SIZE - 8)]
                )
                value = chance.choice([0, 0xFFFFFFFF, chance.randrange(1 << 32), chance.randrange(SIZE), 11, 0x50000])
                if at // 4 != LOCK_AT // 4:
                    struct.pack_into("<I", region.bytes, at & ~3, value)
            if chance.random() < 0.3:
                struct.pack_into("<I", region.bytes, LOCK_AT, 0xFFFFFFFF)
            _, outcome = vm.request()
            assert {report[0] for report in outcome.reports} <= {0, 1, 8, 10}
