"""Shared queues: names, items, notices, bounds."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from sandboxd.channel.memfd import create_shared_region
from sandboxd.vm.hostcore_answers import Delivered
from sandboxd.vm.instance import SharedRegion
from sandboxd.vm.messages import Delivery, DeliveryKind, RequestKind
from tests.hostcore.driver import Driver
from tests.hostcore.guest_wat import OUT, OUT_WORD, guest

REGISTER, RESOLVE = "proxy_register_shared_queue", "proxy_resolve_shared_queue"
ENQUEUE, DEQUEUE = "proxy_enqueue_shared_queue", "proxy_dequeue_shared_queue"
MARKERS = ["proxy_abi_version_0_1_0", "proxy_abi_version_0_2_0", "proxy_abi_version_0_2_1"]
QUEUES = Delivery(DeliveryKind.QUEUES)
SIZE = 1 << 20
NEXT = 8
"""Where a block has the number of the next one."""
WILD = 0xFFFF0000 - (1 << 32)


@pytest.fixture
def region() -> Iterator[int]:
    """A fresh region."""
    fd = create_shared_region(SIZE)
    yield fd
    os.close(fd)


def seen(fd: int, number: int) -> SharedRegion:
    """The region as the VM of that number has it."""
    return SharedRegion(fd, SIZE, number)


def identifier(report: bytes) -> int:
    """The id in a report of `OUT_WORD`."""
    assert report[0] == 0
    return int.from_bytes(report[1:5], "little")


@pytest.mark.parametrize("marker", MARKERS)
def test_items_come_out_in_order(region: int, marker: str) -> None:
    """Empty, one, several, an empty item, empty again; an id that nobody gave."""
    steps = [
        (REGISTER, "q", OUT_WORD),
        (REGISTER, "other", OUT_WORD),
        (REGISTER, "q", OUT_WORD),
        (DEQUEUE, 1, OUT),
        (ENQUEUE, 1, "first"),
        (ENQUEUE, 1, b""),
        (ENQUEUE, 1, "third" * 1000),
        (DEQUEUE, 1, OUT),
        (DEQUEUE, 1, OUT),
        (DEQUEUE, 1, OUT),
        (DEQUEUE, 1, OUT),
        (ENQUEUE, 3, "x"),
        (DEQUEUE, 3, OUT),
        (ENQUEUE, 0, "x"),
    ]
    with Driver(guest({"request_headers": steps}, marker=marker), shared=seen(region, 1)) as vm:
        reports = vm.request()[1].reports

    assert [identifier(report) for report in reports[:3]] == [1, 2, 1]
    assert reports[3:] == [
        b"\x07", b"\x00", b"\x00", b"\x00", b"\x00first", b"\x00", b"\x00" + b"third" * 1000, b"\x07", b"\x01", b"\x01",
        b"\x01",
    ]  # fmt: skip


def test_resolve_finds_queues_of_the_tenants_other_vm_ids_alone(region: int) -> None:
    """By vm_id and name; an id works only for those who resolved it."""
    other = create_shared_region(SIZE)
    consumer = guest({"vm_start": [(REGISTER, "q", OUT_WORD)], "request_headers": [(DEQUEUE, 1, OUT)]})
    steps = [
        (ENQUEUE, 1, "guessed"),
        (RESOLVE, "a", "nope", OUT_WORD),
        (RESOLVE, b"", "q", OUT_WORD),
        (RESOLVE, "a", "q", OUT_WORD),
        (ENQUEUE, 1, "sent"),
    ]
    with ExitStack() as stack:
        receiver = stack.enter_context(Driver(consumer, shared=seen(region, 1), vm_id="a"))
        sender = stack.enter_context(Driver(guest({"request_headers": steps}), shared=seen(region, 2), vm_id="b"))
        foreign = stack.enter_context(Driver(guest({"request_headers": steps}), shared=seen(other, 1), vm_id="b"))

        assert [report[0] for report in foreign.request()[1].reports] == [1, 1, 1, 1, 1]
        assert [report[0] for report in sender.request()[1].reports] == [1, 1, 1, 0, 0]
        assert receiver.request()[1].reports == [b"\x00sent"]
    os.close(other)


def test_every_item_is_announced_once_to_the_last_that_registered(region: int) -> None:
    """The worker is asked to tell the consumer; a consumer that was replaced is told nothing more."""
    consumer = guest({"vm_start": [(REGISTER, "q", OUT_WORD)], "queue_ready": [(DEQUEUE, 1, OUT)]})
    sender = guest(
        {"vm_start": [(RESOLVE, b"", "q", OUT_WORD)], "request_headers": [("loop", 3, (ENQUEUE, 1, "item"))]}
    )
    with ExitStack() as stack:
        first = stack.enter_context(Driver(consumer, shared=seen(region, 11)))
        second = stack.enter_context(Driver(consumer, shared=seen(region, 12)))
        sending = stack.enter_context(Driver(sender, shared=seen(region, 13)))
        assert first.status().queues_watched == second.status().queues_watched == 1

        sending.request()
        asked = sending.requests()
        result, records = second.turn(QUEUES)
        silent = second.turn(QUEUES)
        replaced = first.turn(QUEUES)

    assert [(request.kind, request.call_id) for request in asked] == [(RequestKind.QUEUE_NOTIFY, 12)]
    assert result is Delivered.DONE
    assert [record.payload for record in records] == [b"\x00item"] * 3
    assert all(record.seq == 0 for record in records)
    assert silent == replaced == (Delivered.DONE, [])


def test_many_items_are_announced_in_several_turns(region: int) -> None:
    """A flood of items must not keep the VM from its streams."""
    module = guest(
        {
            "vm_start": [(REGISTER, "q", OUT_WORD)],
            "request_headers": [("loop", 100, (ENQUEUE, 1, "x"))],
            "queue_ready": [(DEQUEUE, 1, OUT)],
        }
    )
    with Driver(module, shared=seen(region, 1)) as vm:
        vm.request()
        vm.requests()
        turns = [vm.turn(QUEUES) for _ in range(4)]

    assert [result for result, _ in turns] == [Delivered.AGAIN] * 3 + [Delivered.DONE]
    assert sum(len(records) for _, records in turns) == 100


def test_bounds(region: int) -> None:
    """A full queue answers NOT_FOUND, which every SDK survives; as many queues as the table has."""
    steps = [
        (REGISTER, "q", OUT_WORD),
        *[(ENQUEUE, 1, "x")] * 4,
        (DEQUEUE, 1, OUT),
        (ENQUEUE, 1, "x"),
        (ENQUEUE, 1, 0, 65521),
        *[(REGISTER, f"q{n}", OUT_WORD) for n in range(70)],
        (REGISTER, 0, 1025, OUT_WORD),
    ]
    with Driver(guest({"request_headers": steps}), shared=seen(region, 1), limits={"queue_items": 3}) as vm:
        reports = vm.request()[1].reports

    assert [report[0] for report in reports[1:8]] == [0, 0, 0, 1, 0, 0, 1]
    registered = [report[0] for report in reports[8:]]
    assert registered == [0] * 63 + [10] * 8


def test_wild_pointers_and_denied_calls(region: int) -> None:
    """Statuses, and nothing else."""
    wild = [
        (REGISTER, WILD, 4, 64),
        (REGISTER, "q", WILD),
        (REGISTER, "q", OUT_WORD),
        (RESOLVE, WILD, 4, "q", OUT_WORD),
        (RESOLVE, b"", WILD, 4, OUT_WORD),
        (RESOLVE, b"", "q", WILD),
        (ENQUEUE, 1, WILD, 4),
        (ENQUEUE, 1, "x"),
        (DEQUEUE, 1, WILD, 64),
        (DEQUEUE, 1, 64, WILD),
    ]
    with Driver(guest({"request_headers": wild}), shared=seen(region, 1)) as vm:
        assert [report[0] for report in vm.request()[1].reports] == [6, 6, 0, 6, 6, 6, 6, 0, 6, 6]
    names = [REGISTER, RESOLVE, ENQUEUE, DEQUEUE]
    denied = [(REGISTER, "q", OUT_WORD), (RESOLVE, b"", "q", OUT_WORD), (ENQUEUE, 1, "x"), (DEQUEUE, 1, OUT_WORD, 64)]
    with Driver(guest({"request_headers": denied}), shared=seen(region, 2), denied=names) as vm:
        assert [report[0] for report in vm.request()[1].reports] == [10] * 4


def test_without_a_region_there_are_no_queues() -> None:
    """The statuses that the SDKs expect."""
    steps = [(REGISTER, "q", OUT_WORD), (RESOLVE, b"", "q", OUT_WORD), (ENQUEUE, 1, "x"), (DEQUEUE, 1, OUT)]
    with Driver(guest({"request_headers": steps})) as vm:
        assert [report[0] for report in vm.request()[1].reports] == [10, 1, 1, 1]


@pytest.mark.parametrize("queue_items", [100, 1])
def test_queue_of_a_dead_holder_is_mended(region: int, queue_items: int) -> None:
    """Items that were whole stay, in order; the count is right again. The mender's own limit counts for nothing."""
    steps = [(REGISTER, "q", OUT_WORD), *[(ENQUEUE, 1, f"item {n}") for n in range(3)]]
    with Driver(guest({"request_headers": steps}), shared=seen(region, 1)) as vm:
        vm.request()
    queues_at = 4096 + 2048 * 16
    os.pwrite(region, struct.pack("<II", 0, 77), queues_at + 8)  # tail and count, half done
    os.pwrite(region, struct.pack("<II", 0xFFFFFFFF, 3), 64)
    take = [(REGISTER, "q", OUT_WORD), *[(DEQUEUE, 1, OUT)] * 3, (ENQUEUE, 1, "last"), *[(DEQUEUE, 1, OUT)] * 2]
    limits = {"queue_items": queue_items}
    with Driver(guest({"request_headers": take}), shared=seen(region, 2), limits=limits) as vm:
        reports = vm.request()[1].reports

    assert reports[1:] == [b"\x00item 0", b"\x00item 1", b"\x00item 2", b"\x00", b"\x00last", b"\x07"]


def test_a_queue_that_goes_in_a_circle_is_mended(region: int) -> None:
    """Each item comes once, then there are no more."""
    steps = [(REGISTER, "q", OUT_WORD), *[(ENQUEUE, 1, f"item {n}") for n in range(2)]]
    with Driver(guest({"request_headers": steps}), shared=seen(region, 1)) as vm:
        vm.request()
    head, tail = struct.unpack("<II", os.pread(region, 8, 4096 + 2048 * 16 + 4))
    os.pwrite(region, struct.pack("<I", head), tail + NEXT)
    os.pwrite(region, struct.pack("<II", 0xFFFFFFFF, 3), 64)
    take = [(REGISTER, "q", OUT_WORD), (ENQUEUE, 1, "last"), *[(DEQUEUE, 1, OUT)] * 4]
    with Driver(guest({"request_headers": take}), shared=seen(region, 2)) as vm:
        reports = vm.request()[1].reports

    assert reports[1:] == [b"\x00", b"\x00item 0", b"\x00item 1", b"\x00last", b"\x07"]


FULL = 3


@pytest.mark.parametrize(
    "words",
    [
        {4: 0, 8: 0, 12: FULL},  # items that are not there
        {4: 0, 12: 2},  # no first one, but a last one
        {4: 8, 12: 2},  # one that is no block
        {8: 0, 12: 2},  # no last one
        {12: 2},  # more than there are
    ],
    ids=str,
)
def test_a_queue_that_somebody_has_spoilt_works_again(region: int, words: dict[int, int]) -> None:
    """What was in it may be lost, what comes then is not: a VM that slept on the lock writes what is long past."""
    begin = [(REGISTER, "q", OUT_WORD), (ENQUEUE, 1, "old")]
    with Driver(guest({"request_headers": begin}), shared=seen(region, 1)) as vm:
        vm.request()
    for offset, value in words.items():
        os.pwrite(region, struct.pack("<I", value), 4096 + 2048 * 16 + offset)
    drain = [(DEQUEUE, 1, OUT)] * FULL
    steps = [(REGISTER, "q", OUT_WORD), *drain, *[(ENQUEUE, 1, f"new {n}") for n in range(FULL)], *drain, *drain]
    with Driver(guest({"request_headers": steps}), shared=seen(region, 2), limits={"queue_items": FULL}) as vm:
        reports = vm.request()[1].reports

    assert reports[1] in (b"\x07", b"\x00old")
    assert reports[2:4] == [b"\x07"] * 2
    assert reports[4:7] == [b"\x00"] * FULL
    assert reports[7:] == [b"\x00new 0", b"\x00new 1", b"\x00new 2", *[b"\x07"] * FULL]


@pytest.mark.parametrize("head", [0, 8])
def test_a_spoilt_queue_can_be_written_to_at_once(region: int, head: int) -> None:
    """Nobody has to take from it first."""
    begin = [(REGISTER, "q", OUT_WORD), (ENQUEUE, 1, "old")]
    with Driver(guest({"request_headers": begin}), shared=seen(region, 1)) as vm:
        vm.request()
    os.pwrite(region, struct.pack("<I", head), 4096 + 2048 * 16 + 4)
    steps = [(REGISTER, "q", OUT_WORD), (ENQUEUE, 1, "new"), (DEQUEUE, 1, OUT), (DEQUEUE, 1, OUT)]
    with Driver(guest({"request_headers": steps}), shared=seen(region, 2)) as vm:
        reports = vm.request()[1].reports

    assert reports[1:] == [b"\x00", b"\x00new", b"\x07"]
