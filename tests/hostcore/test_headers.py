"""Header maps: what each host function does and answers, when a map is available, and limits."""

from __future__ import annotations

import struct

import pytest

from sandboxd.vm.config_blob import Flag
from tests.hostcore.driver import (
    CLOSE,
    END,
    MODIFIED,
    OUT_OF_ORDER,
    REQUEST,
    REQUEST_BODY,
    REQUEST_HEADERS,
    REQUEST_TRAILERS,
    RESPONSE_HEADERS,
    Driver,
    encode_pairs,
)
from tests.hostcore.guest_wat import OUT, OUT_WORD, guest

GET, ADD, REPLACE = (
    "proxy_get_header_map_value",
    "proxy_add_header_map_value",
    "proxy_replace_header_map_value",
)
REMOVE, PAIRS, SET = (
    "proxy_remove_header_map_value",
    "proxy_get_header_map_pairs",
    "proxy_set_header_map_pairs",
)
SIZE = "proxy_get_header_map_size"


def test_an_unchanged_map_goes_on_without_a_payload() -> None:
    """The proxy's copy is good enough."""
    with Driver(guest({"request_headers": [(GET, 0, ":path", OUT)]})) as vm:
        _, outcome = vm.request()

    (effect,) = outcome.effects
    assert (effect.kind, effect.flags, effect.payload) == (REQUEST_HEADERS, END, b"")
    assert outcome.reports == [b"\0/a?b=c"]
    assert (outcome.code, outcome.state) == (0, 0)


def test_edits_keep_order_and_duplicates() -> None:
    """Add appends, replace keeps the first place and drops the rest, remove drops all; names are lowered."""
    calls = [
        (ADD, 0, "X-New", "1"),
        (ADD, 0, "x-new", "2"),
        (REPLACE, 0, "User-Agent", "other"),
        (REMOVE, 0, "X-DUP"),
        (REPLACE, 0, "x-two", "one"),
        (GET, 0, "X-NEW", OUT),
        (GET, 0, "x-dup", OUT),
        (REMOVE, 0, "x-absent"),
    ]
    with Driver(guest({"request_headers": calls})) as vm:
        _, outcome = vm.request((b"x-dup", b"a"), (b"x-two", b"a"), (b"x-two", b"b"), (b"x-dup", b"b"))

    assert outcome.one(REQUEST_HEADERS).pairs == [
        *REQUEST[:4],
        (b"user-agent", b"other"),
        (b"x-two", b"one"),
        (b"x-new", b"1"),
        (b"x-new", b"2"),
    ]
    assert outcome.reports[5:] == [b"\0" + b"1", b"\1", b"\0"]
    assert outcome.one(REQUEST_HEADERS).flags == END | MODIFIED


def test_values_hold_any_bytes() -> None:
    """No NUL, no encoding rule stands in the way."""
    value = bytes(range(256))
    with Driver(guest({"request_headers": [(ADD, 0, "x-bytes", value), (GET, 0, "x-bytes", OUT)]})) as vm:
        _, outcome = vm.request()

    assert outcome.reports[1] == b"\0" + value
    assert outcome.one(REQUEST_HEADERS).pairs[-1] == (b"x-bytes", value)


def test_every_length_crosses_the_membrane() -> None:
    """Short and long copies are done differently; each byte arrives, and none beyond."""
    texts = [bytes((length * 7 + index) % 26 + 97 for index in range(length)) for length in range(1, 140)]
    calls = [call for text in texts for call in [(REPLACE, 0, b"K" + text.upper(), text), (GET, 0, b"k" + text, OUT)]]
    with Driver(guest({"request_headers": calls})) as vm:
        _, outcome = vm.request()

    assert outcome.reports[1::2] == [b"\0" + text for text in texts]
    assert outcome.one(REQUEST_HEADERS).pairs[5:] == [(b"k" + text, text) for text in texts]


def test_pairs_in_and_out() -> None:
    """The whole map, before and after it is replaced as a whole."""
    new = encode_pairs([(b":Path", b"/new"), (b"B", b"1"), (b"b", b"2"), (b"", b"")])
    with Driver(
        guest({"request_headers": [(PAIRS, 0, OUT), (SET, 0, new), (PAIRS, 0, OUT), (SIZE, 0, OUT_WORD)]})
    ) as vm:
        _, outcome = vm.request()

    lowered = [(b":path", b"/new"), (b"b", b"1"), (b"b", b"2"), (b"", b"")]
    assert outcome.reports[0] == b"\0" + encode_pairs(REQUEST)
    assert outcome.reports[2] == b"\0" + encode_pairs(lowered)
    assert outcome.reports[3] == b"\0" + struct.pack("<II", 13, 0)
    assert outcome.one(REQUEST_HEADERS).pairs == lowered


@pytest.mark.parametrize("empty", [b"", b"\0", b"\0\0\0\0"])
def test_the_empty_map_has_three_forms(empty: bytes) -> None:
    """C++, the specification and Rust write it differently; it reads as address 0 and size 0."""
    with Driver(guest({"request_headers": [(SET, 0, empty), (PAIRS, 0, OUT)]})) as vm:
        _, outcome = vm.request()

    assert outcome.reports == [b"\0", b"\0"]
    assert outcome.one(REQUEST_HEADERS).pairs == []
    assert outcome.one(REQUEST_HEADERS).flags & MODIFIED


def test_an_empty_entry_in_an_empty_map() -> None:
    """Nothing is a text too: there is room for it."""
    with Driver(guest({"request_headers": [(SET, 0, b""), (ADD, 0, "", ""), (PAIRS, 0, OUT)]})) as vm:
        _, outcome = vm.request()

    assert outcome.reports[1:] == [b"\0", b"\0" + encode_pairs([(b"", b"")])]


@pytest.mark.parametrize(
    "bad",
    [
        b"\1",
        b"\1\0\0\0",
        b"\1\0\0\0\1\0\0\0\0\0\0\0a",
        b"\1\0\0\0\1\0\0\0\0\0\0\0aX\0",
        b"\1\0\0\0\xff\xff\xff\xff\0\0\0\0a\0\0",
        b"\1\0\0\0\1\0\0\0\0\0\0\0a\0\0\0",
        b"\xff\xff\xff\xff" + bytes(32),
        encode_pairs([(b"a", b"b")] * 1025),
    ],
)
def test_malformed_pairs_are_a_bad_argument(bad: bytes) -> None:
    """The map stays as it was."""
    with Driver(guest({"request_headers": [(SET, 0, bad)]})) as vm:
        _, outcome = vm.request()

    assert outcome.reports == [b"\2"]
    assert not outcome.one(REQUEST_HEADERS).flags & MODIFIED


def test_a_map_is_bounded() -> None:
    """1024 entries, 1 MiB; what does not fit is refused and what is there survives."""
    calls = [("loop", 2000, (ADD, 0, "x", "y")), (ADD, 0, "x", "y"), (GET, 0, ":path", OUT)]
    large = [("loop", 40, (ADD, 0, "x", b"v" * 60_000)), (ADD, 0, "x", b"v" * 60_000)]
    with Driver(guest({"request_headers": calls, "response_headers": large})) as vm:
        stream, outcome = vm.request()
        assert outcome.reports == [b"\2", b"\0/a?b=c"]
        assert len(outcome.one(REQUEST_HEADERS).pairs) == 1024
        answer = vm.headers(stream, kind=RESPONSE_HEADERS)

    assert answer.reports == [b"\2"]


def test_many_replacements_do_not_grow_the_map() -> None:
    """Text of old values is reclaimed."""
    calls = [("loop", 20_000, (REPLACE, 0, "x-a", b"v" * 900)), (GET, 0, "x-a", OUT)]
    with Driver(guest({"request_headers": calls}), limits={"heap_bytes": 2 << 20}) as vm:
        _, outcome = vm.request()
        assert vm.status().heap_peak_bytes < 200_000

    assert outcome.reports == [b"\0" + b"v" * 900]


UNAVAILABLE = [(GET, 2, "a", OUT), (PAIRS, 2, OUT), (ADD, 2, "a", "b"), (REMOVE, 2, "a"), (SIZE, 2, OUT_WORD)]


def test_an_unavailable_map_answers_as_envoy() -> None:
    """BAD_ARGUMENT, except that all its pairs are none."""
    with Driver(guest({"request_headers": UNAVAILABLE})) as vm:
        _, outcome = vm.request()

    assert outcome.reports == [b"\2", b"\0", b"\2", b"\2", b"\2" + bytes(8)]
    assert outcome.notes == []


def test_an_unavailable_map_answers_leniently_if_asked() -> None:
    """Statuses on which no Rust guest traps, and a note."""
    with Driver(guest({"request_headers": UNAVAILABLE}), flags=Flag.LENIENT_MAPS) as vm:
        _, outcome = vm.request()

    assert outcome.reports == [b"\1", b"\0", b"\0", b"\0", b"\0" + bytes(8)]
    assert outcome.notes == [3]


def test_abi_0_1_0_reads_an_absent_header_as_empty() -> None:
    """NOT_FOUND came with 0.2.0."""
    text = guest({"vm_start": [(GET, 0, "x", OUT)]}, marker="proxy_abi_version_0_1_0")
    with Driver(text, flags=Flag.LENIENT_MAPS) as vm:
        assert [record.payload for record in vm.start_records if record.kind == 12] == [b"\0"]


def test_an_unknown_map_is_a_bad_argument() -> None:
    """Maps 0 to 7 exist; leniency does not invent more."""
    calls = [
        (GET, 8, "a", OUT),
        (PAIRS, 99, OUT),
        (ADD, 8, "a", "b"),
        (SET, 0xFFFF_FFFF, b""),
        (REMOVE, 8, "a"),
    ]
    with Driver(guest({"request_headers": calls}), flags=Flag.LENIENT_MAPS) as vm:
        _, outcome = vm.request()

    assert outcome.reports == [b"\2"] * 5


def test_released_headers_are_out_of_reach_but_in_the_log() -> None:
    """After they have gone on they can be read in proxy_on_log only, and written nowhere."""
    calls = [(GET, 0, ":path", OUT), (ADD, 0, "a", "b")]
    with Driver(
        guest(
            {
                "request_headers": [(ADD, 0, "x-mine", "1")],
                "response_headers": calls,
                "log": [*calls, (GET, 0, "x-mine", OUT), (GET, 2, ":status", OUT)],
            }
        )
    ) as vm:
        stream, _ = vm.request()
        answer = vm.headers(stream, kind=RESPONSE_HEADERS)
        end = vm.event(CLOSE, stream)

    assert answer.reports == [b"\2", b"\2"]
    assert end.reports == [b"\0/a?b=c", b"\2", b"\0" + b"1", b"\0" + b"200"]


def test_trailers() -> None:
    """Seen, changed, and sent on after the body."""
    calls = [(GET, 1, "grpc-status", OUT), (ADD, 1, "x-t", "1")]
    with Driver(guest({"request_trailers": calls})) as vm:
        stream, _ = vm.request(end=False)
        vm.event(REQUEST_BODY, stream, b"body")
        outcome = vm.event(REQUEST_TRAILERS, stream, encode_pairs([(b"grpc-status", b"0")]))

    assert outcome.reports == [b"\0" + b"0", b"\0"]
    assert outcome.one(REQUEST_TRAILERS).pairs == [(b"grpc-status", b"0"), (b"x-t", b"1")]


def test_trailers_can_be_added_where_the_body_ends() -> None:
    """The end then stands in the trailers, not in the body."""
    with Driver(guest({"request_body": [(ADD, 1, "x-t", "1"), (GET, 1, "x-t", OUT)]})) as vm:
        stream, _ = vm.request(end=False)
        before = vm.event(REQUEST_BODY, stream, b"a")
        outcome = vm.event(REQUEST_BODY, stream, b"b", END)

    assert before.reports == [b"\2", b"\2"]
    assert outcome.kinds == [REQUEST_BODY, REQUEST_TRAILERS]
    assert not outcome.effects[0].flags & END
    assert outcome.effects[1].pairs == [(b"x-t", b"1")]


def test_a_malformed_map_from_the_client_is_out_of_order() -> None:
    """A bug on the client's side is an answer, and the stream lives."""
    with Driver(guest({"request_headers": [(PAIRS, 0, OUT)]})) as vm:
        stream = vm.open()
        assert vm.event(REQUEST_HEADERS, stream, b"\1\0\0\0\1").code == OUT_OF_ORDER
        assert vm.event(REQUEST_TRAILERS, stream, b"").code == OUT_OF_ORDER
        outcome = vm.headers(stream)

    assert (outcome.code, outcome.reports) == (0, [b"\0" + encode_pairs(REQUEST)])


def test_wild_pointers() -> None:
    """Every range is checked in 64 bits; nothing traps and nothing is read."""
    top = 64 * 65536
    calls = [
        (GET, 0, 0xFFFF_FFFF, 2, OUT),
        (GET, 0, top - 4, 5, OUT),
        (GET, 0, 1, 0xFFFF_FFFF, OUT),
        (ADD, 0, "k", top, 1),
        (SET, 0, top - 1, 0x8000_0000),
        (GET, 0, ":path", 0xFFFF_FFFC, top - 3),
        (PAIRS, 0, top, top),
        (GET, 0, top, 0, OUT),
    ]
    with Driver(guest({"request_headers": calls})) as vm:
        _, outcome = vm.request()

    assert outcome.reports == [b"\6"] * 7 + [b"\1"]
    assert not outcome.one(REQUEST_HEADERS).flags & MODIFIED


@pytest.mark.parametrize("address", [0, 64 * 65536 - 2, 0xFFFF_FFF0])
def test_an_allocator_that_gives_no_room(address: int) -> None:
    """Address 0 and a block past the memory's end are invalid memory accesses."""
    with Driver(guest({"request_headers": [(GET, 0, ":path", OUT)], "memory_allocate": (address, [])})) as vm:
        _, outcome = vm.request()

    assert outcome.reports == [b"\6"]
