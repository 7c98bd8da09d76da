"""TCP connections: data, pauses, edits, closes, and what is not theirs."""

from __future__ import annotations

import pytest

from tests.hostcore.driver import (
    AS_SUBMITTED,
    CLOSE,
    CLOSE_STREAM,
    END,
    OK,
    OUT_OF_ORDER,
    REQUEST_HEADERS,
    STREAM_OVER,
    Driver,
    Outcome,
)
from tests.hostcore.guest_wat import OUT, guest

NEW, DOWN, UP, DOWN_CLOSE, UP_CLOSE = range(16, 21)
MARKERS = ["proxy_abi_version_0_2_0", "proxy_abi_version_0_2_1"]
GET, SET = "proxy_get_buffer_bytes", "proxy_set_buffer_bytes"
PAUSED, UP_PAUSED, STOPPED = 1, 2, 16
LOCAL = (1).to_bytes(4, "little")


def connect(vm: Driver) -> tuple[int, Outcome]:
    """Open a connection."""
    stream = vm.open()
    return stream, vm.event(NEW, stream)


def effects(outcome: Outcome) -> list[tuple[int, int, bytes]]:
    """Kind, flags and payload of each."""
    return [(effect.kind, effect.flags, effect.payload) for effect in outcome.effects]


@pytest.mark.parametrize("marker", ["proxy_abi_version_0_1_0", *MARKERS])
def test_data_goes_on_as_it_came(marker: str) -> None:
    """Both directions, to their ends; closes; the stream's end."""
    said = [("proxy_log", 2, "seen")]
    names = ["new_connection", "downstream_data", "upstream_data"]
    closes = ["downstream_connection_close", "upstream_connection_close"]
    with Driver(guest(dict.fromkeys([*names, *closes, "done", "log", "delete"], said), marker=marker)) as vm:
        stream, opened = connect(vm)
        down = vm.event(DOWN, stream, b"hello")
        up = vm.event(UP, stream, b"", END)
        last = vm.event(DOWN, stream, b"!", END)
        closed = [vm.event(kind, stream, LOCAL) for kind in (DOWN_CLOSE, UP_CLOSE)]
        over = vm.event(CLOSE, stream)

    assert opened.code == OK
    assert effects(down) == [(DOWN, AS_SUBMITTED, b"")]
    assert effects(up) == [(UP, AS_SUBMITTED | END, b"")]
    assert effects(last) == [(DOWN, AS_SUBMITTED | END, b"")]
    assert all(outcome.code == OK and outcome.effects == [] for outcome in closed)
    heard = [outcome.logs for outcome in (opened, down, up, last, *closed, over)]
    assert [len([log for log in logs if log.payload == b"seen"]) for logs in heard] == [1, 1, 1, 1, 1, 1, 3]


def test_without_callbacks_everything_goes_on() -> None:
    """Also when they are not granted."""
    module = guest({"downstream_data": (1, [])})
    with Driver(module, denied=["proxy_on_downstream_data"]) as vm:
        stream, _ = connect(vm)
        assert effects(vm.event(DOWN, stream, b"x")) == [(DOWN, AS_SUBMITTED, b"")]


def test_paused_data_accumulates_and_can_be_edited() -> None:
    """The next callback sees all of it; a resume passes on what is there by then."""
    callbacks = {
        "downstream_data": (1, [(GET, 2, 0, 100, OUT), (SET, 2, 0, 0, ">")]),
        "upstream_data": [("proxy_continue_stream", 2), (GET, 3, 0, 100, OUT), (SET, 3, 1, 1, "..")],
    }
    with Driver(guest(callbacks)) as vm:
        stream, _ = connect(vm)
        first = vm.event(DOWN, stream, b"one")
        second = vm.event(DOWN, stream, b"two", END)
        up = vm.event(UP, stream, b"abc")

    assert (first.effects, first.state) == ([], PAUSED)
    assert second.reports[0] == b"\x00>onetwo"
    assert effects(up) == [(UP, 0, b"a..c"), (DOWN, END, b">>onetwo")]
    assert up.reports[1] == b"\x00abc"


def test_pause_at_the_new_connection_holds_data_back_unseen() -> None:
    """Until it is resumed; then the callback comes."""
    callbacks = {
        "new_connection": (1, []),
        "downstream_data": [(GET, 2, 0, 100, OUT)],
        "upstream_data": [("proxy_continue_stream", 2)],
    }
    with Driver(guest(callbacks)) as vm:
        stream, opened = connect(vm)
        held = [vm.event(DOWN, stream, data) for data in (b"a", b"b")]
        up = vm.event(UP, stream, b"x")

    assert opened.state == PAUSED | STOPPED
    assert all(outcome.effects == [] and outcome.reports == [] for outcome in held)
    assert effects(up) == [(UP, AS_SUBMITTED, b""), (DOWN, 0, b"ab")]
    assert b"\x00ab" in up.reports
    assert up.state == 0


def test_upstream_is_resumed_as_well() -> None:
    """Envoy cannot; here it can."""
    callbacks = {"upstream_data": (1, []), "downstream_data": [("proxy_continue_stream", 3)]}
    with Driver(guest(callbacks)) as vm:
        stream, _ = connect(vm)
        assert vm.event(UP, stream, b"late").state == UP_PAUSED
        down = vm.event(DOWN, stream, b"x")

    assert effects(down) == [(DOWN, AS_SUBMITTED, b""), (UP, 0, b"late")]
    assert down.reports == [b"\x00"]


def test_closing() -> None:
    """proxy_close_stream of either side; later events are not shown."""
    for side in (2, 3):
        with Driver(guest({"downstream_data": [("proxy_close_stream", side)]})) as vm:
            stream, _ = connect(vm)
            outcome = vm.event(DOWN, stream, b"x")
            after = vm.event(DOWN, stream, b"y")

        assert outcome.one(CLOSE_STREAM).arg == side
        assert after.code == STREAM_OVER


def test_held_data_is_bounded() -> None:
    """More than the limit: the connection is closed."""
    with Driver(guest({"downstream_data": (1, [])}), limits={"body_buffer_bytes": 1000}) as vm:
        stream, _ = connect(vm)
        assert vm.event(DOWN, stream, b"x" * 900).effects == []
        outcome = vm.event(DOWN, stream, b"x" * 200)

    assert outcome.one(CLOSE_STREAM).arg == 2
    assert outcome.notes == [5]


def test_connections_and_exchanges_do_not_mix() -> None:
    """Events of the other sort, bad close types, a second connection: out of order. Their functions have no effect."""
    calls = [
        ("proxy_get_header_map_value", 0, "a", OUT),
        ("proxy_send_local_response", 200, b"", b"", b"", -1),
        ("proxy_continue_stream", 0),
        (GET, 0, 0, 9, OUT),
        (SET, 0, 0, 0, "x"),
        ("proxy_call_foreign_function", "clear_route_cache", b"", OUT),
    ]
    http = [("proxy_continue_stream", 2), ("proxy_continue_stream", 3), (GET, 2, 0, 9, OUT), (SET, 3, 0, 0, "x")]
    with Driver(guest({"downstream_data": calls, "request_headers": http})) as vm:
        stream, _ = connect(vm)
        assert vm.event(NEW, stream).code == OUT_OF_ORDER
        assert vm.headers(stream).code == OUT_OF_ORDER
        for bad in (b"", b"\x03\0\0\0", b"\x01"):
            assert vm.event(DOWN_CLOSE, stream, bad).code == OUT_OF_ORDER
        data = vm.event(DOWN, stream, b"x", END)
        assert vm.event(DOWN, stream, b"y").code == OUT_OF_ORDER
        exchange, outcome = vm.request(end=False)
        mixed = [vm.event(kind, exchange, LOCAL).code for kind in (NEW, DOWN, UP, DOWN_CLOSE, UP_CLOSE)]

    assert [report[0] for report in data.reports] == [2, 0, 0, 0, 2, 0]
    assert effects(data) == [(DOWN, AS_SUBMITTED | END, b"")]
    assert [report[0] for report in outcome.reports] == [0, 12, 0, 2]
    assert outcome.kinds == [REQUEST_HEADERS]
    assert mixed == [OUT_OF_ORDER] * 5
