"""The channel as hostcore keeps it: full and broken rings, fragments, sleeping, restarts, configuration."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import replace

import pytest

from sandboxd.errors import InternalError
from sandboxd.supervisor.spinning import SPIN_ALONE
from sandboxd.vm.config_blob import encode
from sandboxd.vm.hostcore_answers import POLL_YIELD
from sandboxd.vm.traps import GuestFailure
from tests.hostcore.driver import (
    CLOSE,
    END,
    LOG,
    MORE,
    OK,
    OPEN,
    OUT_OF_ORDER,
    REQUEST_BODY,
    REQUEST_HEADERS,
    RESPONSE_HEADERS,
    START_NS,
    UNKNOWN_STREAM,
    VERDICT,
    VM_STARTED,
    Driver,
    Record,
    encode_pairs,
    outcome,
)
from tests.hostcore.guest_wat import OUT, guest

SQ_TAIL, SQ_HEAD, CQ_TAIL, CQ_HEAD, VM_NEED_WAKE, VM_WANTS_SPACE, CLIENT_NEED_WAKE = (
    64,
    128,
    192,
    256,
    320,
    324,
    384,
)
SLEEP, WAKE, NO_SPACE, PROTOCOL = 1, 2, 4, 16
LOOKS_AT_ONCE = 512
"""As in poll.c."""
QUIET = guest({})
LOUD = guest({"request_headers": [("loop", 100, ("proxy_log", 2, b"x" * 4000))]})


def test_sleeping_and_waking() -> None:
    """vm_need_wake is set when poll says so; the client is woken once, when it sleeps and there is news."""
    with Driver(QUIET) as vm:
        assert vm.vm.poll(0) == SLEEP
        assert vm.word(VM_NEED_WAKE) == 1
        vm.set_word(CLIENT_NEED_WAKE, 1)
        assert vm.vm.poll(0) == SLEEP
        vm.submit(OPEN, 1)
        vm.submit(REQUEST_HEADERS, 1, b"", END)
        assert vm.vm.poll(0) == SLEEP | WAKE
        assert vm.word(CLIENT_NEED_WAKE) == 0
        vm.submit(CLOSE, 1)
        assert vm.vm.poll(0) == SLEEP
        vm.set_word(CLIENT_NEED_WAKE, 1)
        vm.submit(OPEN, 2)
        vm.submit(REQUEST_HEADERS, 2, b"", END)
        assert vm.vm.poll(1000) == WAKE  # at once: the client waits for what was just answered
        assert vm.vm.poll(100) == SLEEP


def test_looking_in_vain_costs_less_and_less_but_is_tried_again() -> None:
    """Halved each time, whole again every 16th time, and after an event that came while it looked."""
    looks = 64 * LOOKS_AT_ONCE
    with Driver(QUIET) as vm:
        taken = [yields(vm, looks) for _ in range(20)]
        assert taken[:8] == [63, 31, 15, 7, 3, 1, 0, 0]
        assert taken[14:18] == [0, 0, 63, 31]


def test_looking_alone_ends_with_the_second_stream() -> None:
    """Which may need the CPU; and begins again after many that came one by one."""
    alone = 8 * LOOKS_AT_ONCE | SPIN_ALONE
    with Driver(QUIET) as vm:
        vm.submit(OPEN, 1)
        vm.vm.poll(0)
        assert yields(vm, alone) == 7
        vm.submit(OPEN, 2)
        vm.vm.poll(0)
        assert yields(vm, alone) == 0
        for stream in (1, 2):
            vm.submit(CLOSE, stream)
        for stream in range(3, 67):
            vm.submit(OPEN, stream)
            vm.vm.poll(0)
            assert stream == 66 or yields(vm, alone) == 0
            vm.submit(CLOSE, stream)
        vm.vm.poll(0)
        assert yields(vm, alone) > 0


def test_looking_goes_on_after_the_cpu_was_given_away() -> None:
    """An event that comes then is run, and the client is not woken for nothing."""
    with Driver(QUIET) as vm:
        assert vm.vm.poll(8 * LOOKS_AT_ONCE) == POLL_YIELD
        assert vm.word(VM_NEED_WAKE) == 0, "it does not sleep"
        vm.submit(OPEN, 1)
        seq = vm.submit(REQUEST_HEADERS, 1, b"", END)
        assert vm.vm.poll(8 * LOOKS_AT_ONCE) == POLL_YIELD
        assert [record.seq for record in vm.take() if record.kind == VERDICT] == [seq]
        vm.set_word(CLIENT_NEED_WAKE, 1)
        assert vm.vm.poll(8 * LOOKS_AT_ONCE) == POLL_YIELD
        assert vm.word(CLIENT_NEED_WAKE) == 1


def yields(vm: Driver, spin: int) -> int:
    """Return how often the CPU is given away while the VM looks for an event that does not come."""
    count = 0
    while (bits := vm.vm.poll(spin)) == POLL_YIELD:
        count += 1
    assert bits & SLEEP
    return count


def test_a_full_completion_ring_waits_for_the_client() -> None:
    """Nothing is lost, order is kept, and nothing new is taken meanwhile."""
    with Driver(LOUD) as vm:
        vm.submit(OPEN, 1)
        seq = vm.submit(REQUEST_HEADERS, 1, b"", END)
        vm.submit(OPEN, 2)
        later = vm.submit(REQUEST_HEADERS, 2, b"", END)
        records: list[Record] = []
        full = 0
        for _ in range(200):
            bits = vm.vm.poll(0)
            if bits & NO_SPACE:
                full += 1
                assert vm.word(VM_WANTS_SPACE) == 1
                assert vm.word(VM_NEED_WAKE) == 1
                assert vm.vm.poll(0) & NO_SPACE
            records += vm.take(3)
            if bits & SLEEP and vm.word(CQ_TAIL) == vm.word(CQ_HEAD):
                break
        assert vm.word(VM_WANTS_SPACE) == 0
        assert vm.status().heap_used_bytes < 200_000

    assert full > 10
    for number in (seq, later):
        assert len(outcome(records, number).logs) == 100
    assert [record.seq for record in records] == sorted(record.seq for record in records)


def test_output_that_does_not_fit_in_the_heap_ends_the_vm() -> None:
    """A client that takes nothing cannot make it grow without end."""
    calls = [("loop", 3000, ("proxy_log", 2, b"x" * 8000))]
    limits = {"log_bytes_per_event": 1 << 30, "log_lines_per_event": 1 << 30, "heap_bytes": 4 << 20}
    with Driver(guest({"request_headers": calls}), limits=limits) as vm:
        vm.submit(OPEN, 1)
        vm.submit(REQUEST_HEADERS, 1, b"", END)
        with pytest.raises(GuestFailure):
            vm.vm.poll(0)
        assert vm.status().violation == 3
        assert vm.status().heap_peak_bytes <= 4 << 20


@pytest.mark.parametrize(
    ("offset", "value"),
    [(SQ_TAIL, 65536 + 8), (SQ_TAIL, 4), (SQ_TAIL, 0xFFFF_FFF8)],
)
def test_broken_counters_of_the_submission_ring(offset: int, value: int) -> None:
    """PROTOCOL, again and again."""
    with Driver(QUIET) as vm:
        vm.set_word(offset, value)
        assert vm.vm.poll(0) & PROTOCOL
        assert vm.vm.poll(0) & PROTOCOL


@pytest.mark.parametrize(
    ("size", "kind", "length"),
    [
        (0, 1, 0),
        (24, 1, 0),
        (36, 1, 0),
        (48, 1, 0),
        (65536, 1, 0),
        (32, 1, 1),
        (40, 1, 0),
        (8, 0, 0),
        (65528, 0, 0),
    ],
)
def test_broken_records(size: int, kind: int, length: int) -> None:
    """Sizes that do not fit the record, the ring or what was published; a PAD that does not reach the end."""
    with Driver(QUIET) as vm:
        struct.pack_into("<IHHQIIQ", vm.shared, 4096, size, kind, 0, 1, 1, length, 0)
        vm.set_word(SQ_TAIL, 40)
        assert vm.vm.poll(0) & PROTOCOL


def test_a_broken_completion_counter_ends_the_vm() -> None:
    """The client claims to have read what was never written."""
    with Driver(LOUD) as vm:
        vm.set_word(CQ_HEAD, 0x4000_0000)
        vm.submit(OPEN, 1)
        vm.submit(REQUEST_HEADERS, 1, b"", END)
        with pytest.raises(GuestFailure):
            vm.vm.poll(0)
        assert vm.status().violation == 4


def test_counters_wrap() -> None:
    """More than 2^32 bytes go through a ring."""
    start = 0xFFFF_FF00
    with Driver(QUIET, start=False) as vm:
        for offset in (SQ_TAIL, SQ_HEAD, CQ_TAIL, CQ_HEAD):
            vm.set_word(offset, start)
        vm.vm.start()
        vm.take()
        for _ in range(30):
            stream, answer = vm.request()
            assert answer.code == OK
            assert vm.event(CLOSE, stream).code == OK
        assert vm.word(SQ_TAIL) < start
        assert vm.word(CQ_TAIL) < start


def test_fragments_of_two_streams_interleave() -> None:
    """Each event is one for the guest, whichever way it came."""
    with Driver(guest({"request_body": [("proxy_get_buffer_bytes", 0, 0, 999, OUT)]})) as vm:
        vm.request(end=False)
        vm.request(end=False)
        for piece, flags in ((b"a", MORE), (b"b", MORE), (b"c", END)):
            for stream in (1, 2):
                vm.put(REQUEST_BODY, flags, stream, 100 + stream, vm.now, piece * stream)
        vm.vm.poll(0)
        records = vm.take()

    assert outcome(records, 101).reports == [b"\0abc"]
    assert outcome(records, 102).reports == [b"\0aabbcc"]


def test_an_event_that_is_never_finished() -> None:
    """Another event in its place: both are answered as out of order, or the new one runs."""
    with Driver(guest({"request_body": [("proxy_get_buffer_bytes", 0, 0, 999, OUT)]})) as vm:
        vm.request(end=False)
        vm.put(REQUEST_BODY, MORE, 1, 101, vm.now, b"lost")
        vm.put(REQUEST_BODY, END, 1, 102, vm.now, b"found")
        vm.put(REQUEST_BODY, MORE, 99, 103, vm.now, b"nobody's")
        vm.put(REQUEST_BODY, END, 99, 103, vm.now, b"nobody's")
        vm.vm.poll(0)
        records = vm.take()

    assert outcome(records, 101).code == OUT_OF_ORDER
    assert outcome(records, 102).reports == [b"\0found"]
    assert outcome(records, 103).code == UNKNOWN_STREAM


def test_a_stream_opened_in_pieces() -> None:
    """More attributes than one record holds."""
    path = b"a\0long"
    value = bytes(range(256)) * 200
    calls = [("proxy_get_property", path, OUT)]
    with Driver(guest({"request_headers": calls})) as vm:
        stream = vm.open({path: value, b"other": b""})
        answer = vm.headers(stream)

    assert answer.reports[0][:8192] == (b"\0" + value)[:8192]


def test_a_new_vm_skips_what_was_meant_for_the_old_one() -> None:
    """VM_STARTED with its generation comes first; the event that killed the old VM does not come again."""
    with Driver(guest({"response_headers": [("trap",)]})) as vm:
        stream, _ = vm.request()
        vm.submit(RESPONSE_HEADERS, stream, b"")
        vm.submit(OPEN, 7)
        with pytest.raises(GuestFailure):
            vm.vm.poll(0)
        vm.take()
        with Driver(QUIET, channel=vm.fds, generation=2) as again:
            assert [(record.kind, record.arg, record.seq) for record in again.start_records] == [(VM_STARTED, 2, 0)]
            assert again.vm.poll(0) == SLEEP
            assert again.take() == []
            again.seq, again.last_stream = 50, 7
            assert again.event(CLOSE, stream).code == UNKNOWN_STREAM
            assert again.headers(7).code == UNKNOWN_STREAM
            assert again.request()[1].code == OK


def test_what_was_submitted_before_the_first_vm_is_run() -> None:
    """The client need not wait; not even if the first VM never came so far."""
    for generation in (1, 2):
        with Driver(QUIET, start=False, generation=generation) as vm:
            vm.submit(OPEN, 1)
            seq = vm.submit(REQUEST_HEADERS, 1, encode_pairs([]), END)
            vm.vm.start()
            vm.vm.poll(0)
            records = vm.take()
            assert records[0].kind == VM_STARTED
            assert outcome(records, seq).code == OK


def test_logs_of_a_start_that_traps_arrive() -> None:
    """They say why."""
    with Driver(guest({"vm_start": [("proxy_log", 5, "panicked"), ("trap",)]}), start=False) as vm:
        with pytest.raises(GuestFailure):
            vm.vm.start()
        records = vm.take()

    assert next(record.payload for record in records if record.kind == LOG) == b"panicked"


def test_a_thousand_streams_leave_nothing_behind() -> None:
    """Memory and contexts are given back."""
    with Driver(guest({"request_headers": [("proxy_set_property", "a", "b")]})) as vm:
        used = []
        for _ in range(4):
            for _ in range(250):
                stream, _ = vm.request(end=False)
                vm.event(REQUEST_BODY, stream, b"x" * 5000, END)
                vm.event(CLOSE, stream)
            used.append(vm.status().heap_used_bytes)

    assert used[0] == used[-1]


def configured(vm: Driver, change: dict[int, bytes | None]) -> None:
    """Give hostcore a blob with some entries replaced or left out."""
    blob = encode(vm.config, entropy=hashlib.sha256(b"").digest(), start_time_ns=START_NS)
    entries: dict[int, bytes] = {}
    while blob:
        tag, length = struct.unpack_from("<II", blob)
        entries[tag] = blob[8 : 8 + length]
        blob = blob[8 + length + -length % 8 :]
    entries = {tag: data for tag, data in (entries | change).items() if data is not None}
    vm.vm.configure(
        b"".join(struct.pack("<II", tag, len(data)) + data + bytes(-len(data) % 8) for tag, data in entries.items())
    )


@pytest.mark.parametrize(
    ("tag", "data"),
    [
        (1, None), (7, None), (15, None), (7, bytes(80)), (7, b"short"), (8, b"1"), (9, b"x" * 31),
        (11, b"\1\0\0\0"), (6, b"\1"), (13, b"\4\0\0\0"), (13, b"\0\0\0\0"), (15, struct.pack("<I", 65537)),
        (16, b""), (99, b"x"), (15, struct.pack("<I", 1 << 23)),
    ],
)  # fmt: skip
def test_a_bad_configuration_names_its_entry(tag: int, data: bytes | None) -> None:
    """Missing, malformed or unknown."""
    with Driver(QUIET, start=False) as vm, pytest.raises(InternalError, match=f"entry {tag}$"):
        configured(vm, {tag: data})


def test_a_truncated_configuration() -> None:
    """An entry that ends after the blob."""
    with Driver(QUIET, start=False) as vm, pytest.raises(InternalError, match="entry 0"):
        vm.vm.configure(struct.pack("<II", 1, 100) + bytes(8))


def test_a_large_ring() -> None:
    """The largest that the window has room for."""
    with Driver(LOUD, ring_bytes=4 << 20) as vm:
        _, answer = vm.request()
        assert len(answer.logs) == 100
        assert replace(answer.logs[0], seq=0).kind == LOG
        assert vm.vm.poll(0) == SLEEP
        assert [record for record in vm.take() if record.kind == VERDICT] == []
