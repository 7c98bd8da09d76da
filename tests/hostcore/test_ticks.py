"""Timers: periods, and what a tick does to streams that wait."""

from __future__ import annotations

import pytest

from sandboxd.limits import MS_NS
from sandboxd.vm.hostcore_answers import POLL_INBOX, Delivered
from sandboxd.vm.messages import Delivery, DeliveryKind
from tests.hostcore.driver import (
    CLOSE_STREAM,
    LOCAL_RESPONSE,
    LOG,
    NOTE,
    REQUEST_BODY,
    REQUEST_HEADERS,
    START_NS,
    Driver,
    Record,
)
from tests.hostcore.guest_wat import OUT_WORD, guest

TICK = Delivery(DeliveryKind.TICK)
PERIOD = "proxy_set_tick_period_milliseconds"
MARKERS = ["proxy_abi_version_0_1_0", "proxy_abi_version_0_2_0", "proxy_abi_version_0_2_1"]


def texts(records: list[Record]) -> list[bytes]:
    """The guest's reports."""
    return [record.payload for record in records if record.kind == LOG]


def ticking(*calls: tuple[object, ...], period_ms: int = 10, marker: str = MARKERS[2]) -> str:
    """A guest that sets its period when it starts, and makes the calls at each tick."""
    return guest({"vm_start": [(PERIOD, period_ms)], "tick": [("proxy_log", 2, "tick"), *calls]}, marker=marker)


@pytest.mark.parametrize("marker", MARKERS)
def test_tick_comes_when_it_is_due_and_not_before(marker: str) -> None:
    """In every version of the ABI; the next one is a period after the last."""
    with Driver(ticking(marker=marker)) as vm:
        assert vm.status().next_tick_ns == START_NS + 10 * MS_NS

        early = vm.turn(TICK, after_ns=9 * MS_NS)
        due = vm.turn(TICK, after_ns=1 * MS_NS)
        again = vm.turn(TICK, after_ns=1 * MS_NS)

        assert early == (Delivered.DONE, [])
        assert b"tick" in texts(due[1])
        assert all(record.seq == 0 for record in due[1])
        assert again == (Delivered.DONE, [])
        assert vm.status().next_tick_ns == START_NS + 20 * MS_NS


def test_period_has_a_minimum_and_zero_stops() -> None:
    """The policy's minimum; a stopped timer never ticks."""
    module = guest({"vm_start": [(PERIOD, 1)], "tick": [(PERIOD, 0)]})
    with Driver(module, limits={"min_tick_ms": 50}) as vm:
        assert vm.status().next_tick_ns == START_NS + 50 * MS_NS

        assert vm.turn(TICK, after_ns=50 * MS_NS)[1]

        assert vm.status().next_tick_ns == 0
        assert vm.turn(TICK, after_ns=10**12) == (Delivered.DONE, [])


def test_longest_period_does_not_overflow() -> None:
    """2^32 - 1 milliseconds."""
    with Driver(ticking(period_ms=0xFFFFFFFF - (1 << 32))) as vm:
        assert vm.status().next_tick_ns == START_NS + 0xFFFFFFFF * MS_NS


def test_denied_timer_is_reported_and_never_ticks() -> None:
    """The ABI's answer for a call that is not granted."""
    module = guest({"request_headers": [(PERIOD, 5)], "tick": []})
    with Driver(module, denied=[PERIOD]) as vm:
        _, outcome = vm.request()

        assert outcome.reports == [b"\x0a"]
        assert vm.status().next_tick_ns == 0


def test_tick_that_is_not_granted_is_not_armed() -> None:
    """Without the callback there is nothing to call."""
    with Driver(ticking(), denied=["proxy_on_tick"]) as vm:
        assert vm.status().next_tick_ns == 0
        assert vm.turn(TICK, after_ns=10**9) == (Delivered.DONE, [])


def test_wall_clock_that_goes_back_delays_a_tick_by_a_period_at_most() -> None:
    """An hour back must not mean an hour without ticks."""
    with Driver(ticking()) as vm:
        vm.turn(TICK, after_ns=-3600 * 10**9)

        assert vm.status().next_tick_ns == vm.now + 10 * MS_NS


def test_poll_comes_back_for_a_tick_under_load() -> None:
    """The events' own clock says that the tick is due; no event is lost over it."""
    with Driver(ticking(period_ms=1)) as vm:
        vm.submit(1, 1)
        vm.submit(REQUEST_HEADERS, 1, b"")
        vm.submit(1, 2)
        first = vm.vm.poll(0)
        second = vm.vm.poll(0)

        assert first & POLL_INBOX
        assert second & POLL_INBOX
        assert vm.vm.deliver(TICK.encode(vm.now)) is Delivered.DONE
        assert not vm.vm.poll(0) & POLL_INBOX


def test_tick_resumes_a_paused_stream() -> None:
    """Headers and the body that came meanwhile go on, outside any event, the bytes with them."""
    calls = [("proxy_set_effective_context", 2), ("proxy_continue_stream", 0)]
    module = guest({"vm_start": [(PERIOD, 10)], "request_headers": (1, []), "tick": calls})
    with Driver(module) as vm:
        stream, outcome = vm.request(end=False)
        assert outcome.effects == []
        vm.event(REQUEST_BODY, stream, b"body", 2)

        _, records = vm.turn(TICK, after_ns=10 * MS_NS)

        effects = [(r.kind, r.stream_id, r.seq, r.payload) for r in records if r.kind < LOG]
        assert effects == [(REQUEST_HEADERS, stream, 0, b""), (REQUEST_BODY, stream, 0, b"body")]


def test_tick_answers_a_paused_stream() -> None:
    """A local response from a tick; later events of the stream get STREAM_OVER."""
    answer = ("proxy_send_local_response", 503, "late", "slow", b"", -1)
    module = guest(
        {
            "vm_start": [(PERIOD, 10)],
            "request_headers": (1, []),
            "tick": [("proxy_set_effective_context", 2), answer],
        }
    )
    with Driver(module) as vm:
        stream, _ = vm.request(end=False)
        _, records = vm.turn(TICK, after_ns=10 * MS_NS)
        after = vm.event(REQUEST_BODY, stream, b"x", 2)

    (response,) = [record for record in records if record.kind == LOCAL_RESPONSE]
    assert response.stream_id == stream
    assert b"slow" in response.payload
    assert after.code == 4


def test_tick_resets_a_stream_and_a_second_close_is_a_note() -> None:
    """proxy_close_stream by effective context."""
    module = guest(
        {
            "vm_start": [(PERIOD, 10)],
            "request_headers": (1, []),
            "tick": [("proxy_set_effective_context", 2), ("proxy_close_stream", 0)],
        }
    )
    with Driver(module) as vm:
        stream, _ = vm.request()
        first = vm.turn(TICK, after_ns=10 * MS_NS)[1]
        second = vm.turn(TICK, after_ns=10 * MS_NS)[1]

    assert [r.stream_id for r in first if r.kind == CLOSE_STREAM] == [stream]
    assert [r.kind for r in second if r.kind != LOG] == [NOTE]


def test_route_cache_is_cleared_once_per_turn() -> None:
    """Outside events as inside."""
    name = ("proxy_call_foreign_function", "clear_route_cache", b"", 0, 0)
    module = guest(
        {
            "vm_start": [(PERIOD, 10)],
            "request_headers": (1, []),
            "tick": [("proxy_set_effective_context", 2), name, name],
        }
    )
    with Driver(module) as vm:
        vm.request()
        turns = [vm.turn(TICK, after_ns=10 * MS_NS)[1] for _ in range(2)]

    assert [[r.kind for r in turn if r.kind < LOG] for turn in turns] == [[10], [10]]


def test_logs_of_ticks_are_bounded_by_time() -> None:
    """The limit of one event holds for a tenth of a second of ticks."""
    module = guest({"vm_start": [(PERIOD, 1)], "tick": [("loop", 5, ("proxy_log", 2, "x"))]})
    with Driver(module, limits={"log_lines_per_event": 12}) as vm:
        lines = [len(texts(vm.turn(TICK, after_ns=MS_NS)[1])) for _ in range(4)]
        later = len(texts(vm.turn(TICK, after_ns=100 * MS_NS)[1]))

    assert lines == [5, 5, 2, 0]
    assert later == 5


def test_time_in_a_tick_is_the_workers() -> None:
    """Not that of the last event."""
    module = guest({"vm_start": [(PERIOD, 1)], "tick": [("proxy_get_current_time_nanoseconds", OUT_WORD)]})
    with Driver(module) as vm:
        (report,) = texts(vm.turn(TICK, after_ns=5 * MS_NS)[1])

    assert int.from_bytes(report[1:], "little") == START_NS + 5 * MS_NS


def test_malformed_delivery_is_refused() -> None:
    """A bug of the worker's is an error and not a wild access."""
    with Driver(ticking()) as vm:
        good = TICK.encode(START_NS)
        for bad in (b"", good[:-1], good + b"x", good[:24] + b"\xff" * 8, b"\x63" + good[1:]):
            assert vm.vm.deliver(bad) is Delivered.MALFORMED
