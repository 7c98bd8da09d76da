"""The state machine of a stream: pauses, buffering, resuming, bodies, order of events."""

from __future__ import annotations

import pytest

from sandboxd.vm.config_blob import Flag
from tests.hostcore.driver import (
    AS_SUBMITTED,
    CLOSE,
    CLOSE_STREAM,
    END,
    LIMIT,
    LOCAL_RESPONSE,
    OK,
    OUT_OF_ORDER,
    REQUEST_BODY,
    REQUEST_HEADERS,
    REQUEST_TRAILERS,
    RESPONSE_BODY,
    RESPONSE_HEADERS,
    STREAM_OVER,
    UNKNOWN_STREAM,
    Driver,
    encode_pairs,
)
from tests.hostcore.guest_wat import OUT, OUT_WORDS, guest

READ = "proxy_get_buffer_bytes"
WRITE = "proxy_set_buffer_bytes"
CONTINUE = "proxy_continue_stream"
ALL = 0x7FFF_FFFF
PAUSED, RESPONSE_PAUSED, HELD, RESPONSE_HELD, ALL_STOPPED = 1, 2, 4, 8, 16
READ_ALL = (READ, 0, 0, ALL, OUT)
TRAILERS = encode_pairs([(b"t", b"1")])


def test_a_body_that_nobody_touches_is_not_copied_back() -> None:
    """AS_SUBMITTED, with the end where it was."""
    with Driver(guest({"request_body": [READ_ALL]})) as vm:
        stream, _ = vm.request(end=False)
        first = vm.event(REQUEST_BODY, stream, b"one")
        last = vm.event(REQUEST_BODY, stream, b"", END)

    assert first.reports == [b"\0one"]
    assert [(e.kind, e.flags, e.payload) for e in first.effects] == [(REQUEST_BODY, AS_SUBMITTED, b"")]
    assert last.one(REQUEST_BODY).flags == AS_SUBMITTED | END


def test_pause_in_the_body_accumulates() -> None:
    """The next callback sees the total, and what goes on is all of it, once."""
    with Driver(guest({"request_body": (1, [READ_ALL])})) as vm:
        stream, _ = vm.request(end=False)
        first = vm.event(REQUEST_BODY, stream, b"one ")
        second = vm.event(REQUEST_BODY, stream, b"two", END)

    assert (first.effects, first.state) == ([], PAUSED)
    assert second.reports == [b"\0one two"]
    assert (second.effects, second.state) == ([], PAUSED)


@pytest.mark.parametrize(
    ("action", "seen", "sent"),
    [
        (1, b"onetwo", b"onetwo"),
        (2, b"two", b"onetwo"),
        (3, b"two", b""),
        (4, b"two", b""),
        (99, b"two", b""),
    ],
)
def test_the_three_pauses_of_a_body(action: int, seen: bytes, sent: bytes) -> None:
    """Buffer, watermark (kept, not shown again), no buffer (dropped)."""
    resume = {"response_headers": [(CONTINUE, 0)]}
    with Driver(guest({"request_body": (action, [READ_ALL]), **resume})) as vm:
        stream, _ = vm.request(end=False)
        vm.event(REQUEST_BODY, stream, b"one")
        outcome = vm.event(REQUEST_BODY, stream, b"two")
        resumed = vm.headers(stream, kind=RESPONSE_HEADERS)

    assert outcome.reports == [b"\0" + seen]
    bodies = [effect.payload for effect in resumed.effects if effect.kind == REQUEST_BODY]
    assert b"".join(bodies) == sent


def test_pause_in_headers_stops_everything() -> None:
    """Body and trailers are not shown before the resume; then they are, within the event that resumed."""
    with Driver(
        guest(
            {
                "request_headers": (1, []),
                "request_body": [READ_ALL],
                "request_trailers": [("proxy_get_header_map_value", 1, "t", OUT)],
                "response_headers": [(CONTINUE, 0), ("proxy_log", 2, "resuming")],
            }
        )
    ) as vm:
        stream, first = vm.request(end=False)
        body = vm.event(REQUEST_BODY, stream, b"one ")
        vm.event(REQUEST_BODY, stream, b"two")
        trailers = vm.event(REQUEST_TRAILERS, stream, TRAILERS)
        resumed = vm.headers(stream, kind=RESPONSE_HEADERS)

    assert (first.effects, first.state) == ([], PAUSED | HELD | ALL_STOPPED)
    assert (body.reports, body.effects, body.state) == ([], [], PAUSED | HELD | ALL_STOPPED)
    assert (trailers.reports, trailers.effects) == ([], [])
    assert resumed.kinds == [RESPONSE_HEADERS, REQUEST_HEADERS, REQUEST_BODY, REQUEST_TRAILERS]
    assert resumed.effects[2].payload == b"one two"
    assert resumed.reports[-2:] == [b"\0one two", b"\0" + b"1"]
    assert resumed.state == 0


def test_continue_inside_the_pausing_callback() -> None:
    """The pause applies first, the resume after the callback."""
    with Driver(guest({"request_headers": (1, [(CONTINUE, 0)])})) as vm:
        _, outcome = vm.request()

    assert (outcome.kinds, outcome.state) == ([REQUEST_HEADERS], 0)
    assert outcome.effects[0].flags == END


def test_true_stop_iteration() -> None:
    """With the opt-in the body is shown while the headers are held; releasing it releases them, changed."""
    calls = {
        "request_headers": (1, []),
        "request_body": [READ_ALL, ("proxy_add_header_map_value", 0, "x-late", "1")],
    }
    with Driver(guest(calls), flags=Flag.ALLOW_ON_HEADERS_STOP_ITERATION) as vm:
        stream, first = vm.request(end=False)
        outcome = vm.event(REQUEST_BODY, stream, b"one", END)

    assert first.state == PAUSED | HELD
    assert outcome.reports == [b"\0one", b"\0"]
    assert outcome.kinds == [REQUEST_HEADERS, REQUEST_BODY]
    assert outcome.effects[0].pairs[-1] == (b"x-late", b"1")
    assert outcome.effects[1].flags == AS_SUBMITTED | END


def test_trailers_release_what_the_body_held() -> None:
    """Continue from the trailers callback releases everything; a pause there holds it."""
    with Driver(guest({"request_body": (1, [])})) as vm:
        stream, _ = vm.request(end=False)
        vm.event(REQUEST_BODY, stream, b"held")
        outcome = vm.event(REQUEST_TRAILERS, stream, TRAILERS)
    with Driver(guest({"request_trailers": (1, []), "response_headers": [(CONTINUE, 0)]})) as vm:
        stream, _ = vm.request(end=False)
        paused = vm.event(REQUEST_TRAILERS, stream, TRAILERS)
        resumed = vm.headers(stream, kind=RESPONSE_HEADERS)

    assert outcome.kinds == [REQUEST_BODY, REQUEST_TRAILERS]
    assert outcome.effects[0].payload == b"held"
    assert (paused.effects, paused.state) == ([], PAUSED)
    assert resumed.kinds == [RESPONSE_HEADERS, REQUEST_TRAILERS]


def test_continue_and_end_stream_is_continue() -> None:
    """Envoy has no branch for it; 3, 4 and anything unknown stop everything."""
    for action, state in ((2, 0), (3, PAUSED | HELD | ALL_STOPPED), (77, PAUSED | HELD | ALL_STOPPED)):
        with Driver(guest({"request_headers": (action, [])})) as vm:
            _, outcome = vm.request()
        assert outcome.state == state


@pytest.mark.parametrize(
    ("start", "size", "data", "result"),
    [
        (0, 0, "<", b"<hello"),
        (0, 2, "<", b"<llo"),
        (0, ALL, "all", b"all"),
        (0, 0xFFFF_FFFF, "", b""),
        (5, 0, ">", b"hello>"),
        (ALL, 3, ">", b"hello>"),
        (0xFFFF_FFFF, 0xFFFF_FFFF, ">", b"hello>"),
        (1, 3, "--", b"h--o"),
        (1, 0, "--", b"h--ello"),
        (2, 0xFFFF_FFFF, "LLO!", b"heLLO!"),
    ],
)
def test_edits_of_a_body(start: int, size: int, data: str, result: bytes) -> None:
    """The specification's rule for start and size, with 64-bit arithmetic."""
    with Driver(guest({"request_body": [(WRITE, 0, start, size, data), READ_ALL]})) as vm:
        stream, _ = vm.request(end=False)
        outcome = vm.event(REQUEST_BODY, stream, b"hello", END)

    assert outcome.reports == [b"\0", b"\0" + result]
    assert (outcome.one(REQUEST_BODY).payload, outcome.one(REQUEST_BODY).flags) == (result, END)


def test_reads_of_a_body_and_its_status() -> None:
    """Clamped at both ends; other buffers are empty or not found."""
    calls = [
        (READ, 0, 1, 3, OUT),
        (READ, 0, 5, 1, OUT),
        (READ, 0, 99, 0xFFFF_FFFF, OUT),
        ("proxy_get_buffer_status", 0, OUT_WORDS),
        (READ, 1, 0, ALL, OUT),
        (READ, 4, 0, ALL, OUT),
        (READ, 7, 0, ALL, OUT),
        (READ, 9, 0, ALL, OUT),
        (WRITE, 1, 0, 0, "x"),
        (WRITE, 6, 0, 0, "x"),
    ]
    with Driver(guest({"request_body": calls})) as vm:
        stream, _ = vm.request(end=False)
        outcome = vm.event(REQUEST_BODY, stream, b"hello", END)

    assert outcome.reports == [
        b"\0ell", b"\0", b"\0", b"\0\5" + bytes(7), b"\0", b"\1", b"\1", b"\2", b"\2", b"\2",
    ]  # fmt: skip


def test_a_body_over_the_limit_is_answered() -> None:
    """413 for a request, 500 for a response, with a note; 64 KiB more than was allowed is never kept."""
    limits = {"body_buffer_bytes": 1000}
    with Driver(guest({"request_body": (1, [])}), limits=limits) as vm:
        stream, _ = vm.request(end=False)
        vm.event(REQUEST_BODY, stream, b"a" * 900)
        outcome = vm.event(REQUEST_BODY, stream, b"a" * 101)
        later = vm.event(REQUEST_BODY, stream, b"a")
    with Driver(guest({"response_headers": (1, [])}), limits=limits) as vm:
        stream, _ = vm.request()
        vm.headers(stream, kind=RESPONSE_HEADERS, end=False)
        response = vm.event(RESPONSE_BODY, stream, b"a" * 1001)

    assert (outcome.kinds, outcome.notes, later.code) == ([LOCAL_RESPONSE], [5], STREAM_OVER)
    assert outcome.effects[0].payload[:2] == (413).to_bytes(2, "little")
    assert (response.kinds, response.notes) == ([LOCAL_RESPONSE], [5])
    assert response.effects[0].payload[:2] == (500).to_bytes(2, "little")


def test_a_response_body_over_the_limit_after_its_headers_went() -> None:
    """Nothing but a reset is left."""
    with Driver(guest({"response_body": (1, [])}), limits={"body_buffer_bytes": 10}) as vm:
        stream, _ = vm.request()
        vm.headers(stream, kind=RESPONSE_HEADERS, end=False)
        outcome = vm.event(RESPONSE_BODY, stream, b"a" * 11)

    assert outcome.kinds == [CLOSE_STREAM]
    assert 5 in outcome.notes


def test_a_guest_cannot_grow_a_body_past_the_limit() -> None:
    """The edit is refused, the body goes on as it was."""
    with Driver(
        guest({"request_body": [(WRITE, 0, ALL, 0, b"x" * 600), (WRITE, 0, ALL, 0, b"x" * 600)]}),
        limits={"body_buffer_bytes": 1000},
    ) as vm:
        stream, _ = vm.request(end=False)
        outcome = vm.event(REQUEST_BODY, stream, b"hello", END)

    assert outcome.reports == [b"\0", b"\2"]
    assert len(outcome.one(REQUEST_BODY).payload) == 605


def test_closing_a_stream() -> None:
    """CLOSE_STREAM after the callback; what comes later is not shown."""
    with Driver(guest({"request_headers": [("proxy_close_stream", 1)], "request_body": [READ_ALL]})) as vm:
        stream, outcome = vm.request(end=False)
        body = vm.event(REQUEST_BODY, stream, b"x", END)
        end = vm.event(CLOSE, stream)

    assert outcome.kinds == [REQUEST_HEADERS, CLOSE_STREAM]
    assert outcome.one(CLOSE_STREAM).arg == 1
    assert (body.code, body.reports) == (STREAM_OVER, [])
    assert end.code == OK


def test_events_out_of_order() -> None:
    """Each has its verdict, and none harms the stream."""
    with Driver(guest({})) as vm:
        assert vm.event(REQUEST_HEADERS, 77, encode_pairs([])).code == UNKNOWN_STREAM
        assert vm.event(CLOSE, 77).code == UNKNOWN_STREAM
        stream = vm.open()
        assert vm.event(REQUEST_BODY, stream, b"x").code == OUT_OF_ORDER
        assert vm.event(REQUEST_TRAILERS, stream, TRAILERS).code == OUT_OF_ORDER
        assert vm.event(11, stream).code == OUT_OF_ORDER
        assert vm.event(17, stream).code == OUT_OF_ORDER
        assert vm.event(21, stream).code == OUT_OF_ORDER
        assert vm.event(999, stream).code == OUT_OF_ORDER
        assert vm.headers(stream).code == OK
        assert vm.headers(stream).code == OUT_OF_ORDER
        assert vm.event(REQUEST_BODY, stream, b"x").code == OUT_OF_ORDER
        assert vm.event(CLOSE, stream).code == OK
        assert vm.event(CLOSE, stream).code == UNKNOWN_STREAM


def test_too_many_streams() -> None:
    """The stream is not opened; its first event says so, and others go on."""
    with Driver(guest({}), limits={"open_streams": 2}) as vm:
        first, _ = vm.request()
        vm.request()
        third, refused = vm.request()
        assert vm.event(CLOSE, first).code == OK
        fourth, accepted = vm.request()

    assert refused.code == LIMIT
    assert accepted.code == OK
    assert (third, fourth) == (3, 4)


def test_one_stream_resumes_another() -> None:
    """The effect carries the other stream's id, and comes before the verdict of the event."""
    calls = {
        "request_headers": (1, []),
        "response_headers": [
            ("proxy_set_effective_context", 2),
            (CONTINUE, 0),
            ("proxy_set_effective_context", 99),
        ],
    }
    with Driver(guest(calls)) as vm:
        waiting, _ = vm.request()
        other, _ = vm.request()
        outcome = vm.headers(other, kind=RESPONSE_HEADERS)

    assert outcome.reports == [b"\0", b"\0", b"\2"]
    assert [(effect.kind, effect.stream_id) for effect in outcome.effects] == [
        (RESPONSE_HEADERS, other),
        (REQUEST_HEADERS, waiting),
    ]


def test_continue_without_a_pause_is_a_note() -> None:
    """OK for the guest, no effect."""
    with Driver(guest({"request_headers": [(CONTINUE, 0), (CONTINUE, 1), (CONTINUE, 3), (CONTINUE, 4)]})) as vm:
        _, outcome = vm.request()

    assert outcome.reports == [b"\0", b"\0", b"\x0c", b"\2"]
    assert (outcome.kinds, outcome.notes) == ([REQUEST_HEADERS], [7])


@pytest.mark.parametrize("size", [0, 1, 16_351, 16_352, 16_353, 100_000, 900_000])
def test_bodies_of_any_size_through_a_small_ring(size: int) -> None:
    """Cut into fragments both ways; held, and released when the request ends."""
    body = bytes(index % 251 for index in range(size))
    with Driver(guest({"request_body": [(WRITE, 0, ALL, 0, "!")]}), limits={"body_buffer_bytes": 2 << 20}) as vm:
        stream, _ = vm.request(end=False)
        outcome = vm.event(REQUEST_BODY, stream, body, END)
        untouched = vm.headers(stream, kind=RESPONSE_HEADERS, end=False)
        passed = vm.event(RESPONSE_BODY, stream, body, END)

    assert outcome.one(REQUEST_BODY).payload == body + b"!"
    assert untouched.code == OK
    assert passed.one(RESPONSE_BODY).flags == AS_SUBMITTED | END
