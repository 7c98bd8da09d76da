"""WASI functions, the log, clocks and randomness."""

from __future__ import annotations

import struct

import pytest

from sandboxd.vm.config_blob import Flag
from sandboxd.vm.traps import GuestFailure
from tests.hostcore.driver import LOG, LOGS_DROPPED, START_NS, TRUNCATED, Driver, Outcome
from tests.hostcore.guest_wat import OUT_WORD, OUT_WORDS, guest

TEXT_AT = 0x10000
"""Where guest_wat lays out the texts of the calls, in order."""


def ran(calls: list[tuple[object, ...]], **config: object) -> Outcome:
    """Run the calls in a request callback."""
    with Driver(guest({"request_headers": calls}), **config) as vm:  # type: ignore[arg-type]
        return vm.request()[1]


def words(*values: int) -> bytes:
    """32-bit words."""
    return struct.pack(f"<{len(values)}I", *values)


def output(fd: int, text: bytes, count: int = 1) -> list[bytes]:
    """What the log shows after one fd_write of a text, as many vectors of it as asked."""
    # Texts are laid out in the order of their use: proxy_log's empty text, then ours.
    vectors = words(TEXT_AT, len(text)) * count
    calls = [
        ("proxy_log", 0, text),
        ("fd_write", fd, TEXT_AT + len(text), count, OUT_WORD),
        ("proxy_log", 0, vectors),
    ]
    outcome = ran(calls)
    return [log.payload for log in outcome.logs if log.arg in (2, 4)] + [outcome.reports[2]]


def test_standard_output_is_the_log() -> None:
    """Lines, info for fd 1 and error for fd 2; what has no end goes out with the callback."""
    assert output(1, b"one\ntwo\n\nthree") == [b"one", b"two", b"three", b"\0" + struct.pack("<Q", 14)]
    assert output(2, b"oops\n") == [b"oops", b"\0" + struct.pack("<Q", 5)]
    assert output(1, b"ab", 3) == [b"ababab", b"\0" + struct.pack("<Q", 6)]
    assert output(3, b"x")[-1][:1] == b"\x08"


def test_vectors_are_bounded() -> None:
    """Too many are invalid; overlapping ones cannot amplify past the cap of a call."""
    assert output(1, b"x", 1025)[-1][:1] == b"\x1c"
    lines = output(1, b"y" * 8000 + b"\n", 100)
    assert lines[-1][:1] == b"\0"
    assert struct.unpack("<Q", lines[-1][1:])[0] == 65536


def test_levels_and_lengths() -> None:
    """Below the lowest level nothing is sent; long messages are cut and marked; level 6 is a bad argument."""
    calls = [
        ("proxy_log", 0, "t"),
        ("proxy_log", 3, b"w" * 9000),
        ("proxy_log", 6, "x"),
        ("proxy_get_log_level", OUT_WORD),
    ]
    with Driver(guest({"request_headers": calls}), log_level=3) as vm:
        _, outcome = vm.request()

    (log,) = outcome.logs
    assert (log.arg, log.flags, log.payload) == (3, TRUNCATED, b"w" * 8192)
    statuses = ran(calls).reports
    assert b"\2" in statuses
    assert statuses[-1] == b"\0" + bytes(8)


@pytest.mark.parametrize("limits", [{"log_lines_per_event": 5}, {"log_bytes_per_event": 5 * 6}])
def test_a_flood_of_logs_is_cut(limits: dict[str, int]) -> None:
    """The rest is counted, per event."""
    with Driver(guest({"request_headers": [("loop", 100, ("proxy_log", 2, "a line"))]}), limits=limits) as vm:
        _, first = vm.request()
        _, second = vm.request()

    for outcome in (first, second):
        assert len(outcome.logs) == 5
        assert outcome.one(LOGS_DROPPED).arg == 95


def test_one_instant_per_event() -> None:
    """The event's time, however often it is asked; the monotonic clock moves a little."""
    calls = [
        ("proxy_get_current_time_nanoseconds", OUT_WORD),
        ("clock_time_get", 0, 0, OUT_WORD),
        ("clock_time_get", 1, 0, OUT_WORD),
        ("clock_time_get", 1, 0, OUT_WORD),
        ("clock_time_get", 2, 0, OUT_WORD),
    ]
    with Driver(guest({"request_headers": calls})) as vm:
        _, outcome = vm.request()
        now = vm.now
    times = [struct.unpack("<Q", report[1:])[0] for report in outcome.reports]

    assert times[:4] == [now, now, now + 1000, now + 2000]
    assert outcome.reports[4][:1] == b"\x3a"
    assert now > START_NS


def test_a_live_clock_is_asked_each_time() -> None:
    """Only if the policy grants it."""
    calls = [("clock_time_get", 1, 0, OUT_WORD), ("clock_time_get", 0, 0, OUT_WORD)]
    outcome = ran(calls, flags=Flag.LIVE_CLOCK)
    wall = struct.unpack("<Q", outcome.reports[1][1:])[0]

    assert wall > START_NS
    assert wall != START_NS + 2_000_000


def test_sleeping_moves_the_clock() -> None:
    """One event per clock subscription, and the time is past it."""
    subscription = struct.pack("<QB7xI4xQQH6x", 0xABCD, 0, 1, 5_000_000_000, 0, 0)
    calls = [
        ("proxy_log", 0, subscription),
        ("clock_time_get", 1, 0, OUT_WORD),
        ("poll_oneoff", TEXT_AT, 0x200, 1, OUT_WORD),
        ("clock_time_get", 1, 0, OUT_WORD),
        ("proxy_log", 1, 0x200, 32),
        ("poll_oneoff", TEXT_AT, 0x200, 0, OUT_WORD),
    ]
    outcome = ran(calls)
    before, after = (struct.unpack("<Q", outcome.reports[index][1:])[0] for index in (2, 4))

    assert after - before >= 5_000_000_000
    assert outcome.reports[3] == b"\0" + struct.pack("<Q", 1)
    (event,) = [log.payload for log in outcome.logs if log.arg == 1]
    assert event == struct.pack("<QHB21x", 0xABCD, 0, 0)
    assert outcome.reports[-1][:1] == b"\x1c"


def test_the_environment() -> None:
    """Only what the policy sets, as NAME=VALUE."""
    calls = [
        ("environ_sizes_get", OUT_WORDS),
        ("environ_get", 0x200, 0x300),
        ("proxy_log", 1, 0x200, 8),
        ("proxy_log", 1, 0x300, 11),
        ("args_sizes_get", OUT_WORDS),
    ]
    outcome = ran(calls, environment=(("A", "1"), ("BC", "23")))
    logs = [log.payload for log in outcome.logs if log.arg == 1]

    assert outcome.reports[0] == b"\0" + words(2, 10)
    assert logs == [words(0x300, 0x304), b"A=1\0BC=23\0\0"]
    assert outcome.reports[-1] == b"\0" + words(0, 0)


def test_honest_errnos() -> None:
    """What SDK runtimes insist on, and no pretence for the rest."""
    calls = [
        ("fd_prestat_get", 3, 0x200),
        ("fd_readdir", 3, 0x200, 8, 0, OUT_WORD),
        ("path_open", 3, 0, "x", 0, 0, 0, 0, OUT_WORD),
        ("sched_yield",),
        ("fd_close", 1),
        ("fd_close", 7),
        ("fd_fdstat_get", 1, 0x200),
        ("fd_fdstat_get", 0, 0x200),
        ("random_get", 0x200, 65537),
        ("random_get", 0xFFFF_FFF0, 32),
        ("random_get", 0x200, 0),
        ("fd_prestat_get", 0xFFFF_FFFF, 0xFFFF_FFFF),
    ]
    assert [report[0] for report in ran(calls).reports] == [8, 54, 44, 0, 0, 8, 0, 8, 28, 21, 0, 8]


def test_randomness_differs_by_seed_and_by_call() -> None:
    """Two reads differ; the same seed gives the same numbers, which the tests' driver relies on."""
    calls = [("random_get", 0x200, 32), ("proxy_log", 1, 0x200, 32)] * 2
    first, second = (log.payload for log in ran(calls).logs if log.arg == 1)
    again = [log.payload for log in ran(calls).logs if log.arg == 1]

    assert first != second
    assert len(set(first)) > 8
    assert again == [first, second]


def test_randomness_is_chacha20() -> None:
    """The first vector of RFC 8439, A.1: key, counter and nonce 0; its first half became the next key."""
    outcome = ran([("random_get", 0x200, 32), ("proxy_log", 1, 0x200, 32)], entropy=bytes(32))
    (log,) = (log for log in outcome.logs if log.arg == 1)

    assert log.payload.hex() == "da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586"


def test_proc_exit_flushes_the_last_line() -> None:
    """A runtime's dying words have no newline."""
    text = b"fatal: it is over"
    vectors = words(TEXT_AT, len(text))
    calls = [
        ("proxy_log", 0, text),
        ("proxy_log", 0, vectors),
        ("fd_write", 2, TEXT_AT + len(text), 1, OUT_WORD),
        ("proc_exit", 2),
    ]
    with Driver(guest({"request_headers": calls})) as vm:
        vm.submit(1, 1)
        vm.submit(2, 1)
        with pytest.raises(GuestFailure):
            vm.vm.poll(0)
        said = [record.payload for record in vm.take() if record.kind == LOG and record.arg == 4]
        assert vm.status().exit_code == 2

    assert said == [text]
