"""Shared data that is kept elsewhere: what is asked, and what becomes of every kind of answer."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from sandboxd.supervisor.questions import GET, MAX_KEY_BYTES, MAX_VALUE_BYTES, SET, Question, answer, read_question
from sandboxd.vm.config_blob import Flag
from tests.hostcore.driver import Driver
from tests.hostcore.guest_wat import OUT_CAS, guest

GET_DATA, SET_DATA = "proxy_get_shared_data", "proxy_set_shared_data"
WILD = 0xFFFF0000 - (1 << 32)


def ran(calls: list[tuple[Any, ...]], reply: bytes, **more: Any) -> tuple[list[bytes], list[Question]]:
    """The guest's reports and what was asked."""
    asked: list[Question] = []

    def ask(data: bytes) -> bytes:
        asked.append(read_question(data))
        return reply

    config = {"flags": Flag.REMOTE_SHARED, "limits": {"log_message_bytes": 1 << 17}, "ring_bytes": 1 << 20}
    with Driver(guest({"request_headers": calls}), ask=ask, **{**config, **more}) as vm:
        return vm.request()[1].reports, asked


def test_questions_and_answers() -> None:
    """Keys, values and numbers go out as they are, and come back so."""
    calls = [(GET_DATA, "key", OUT_CAS), (SET_DATA, "other", b"\0value", 7), (SET_DATA, "", "", 0)]
    reports, asked = ran(calls, answer(0, 0xFFFFFFFF, b"found\0"))

    assert reports == [b"\0found\0" + b"\xff" * 4, b"\0", b"\0"]
    assert asked == [Question(GET, 0, b"key", b""), Question(SET, 7, b"other", b"\0value"), Question(SET, 0, b"", b"")]


@pytest.mark.parametrize(
    ("reply", "status"),
    [(answer(1), 1), (answer(8, 5), 8), (answer(10), 10), (b"", 10), (bytes(7), 10), (b"x" * 60_000, 10)],
)
def test_answers_that_are_none(reply: bytes, status: int) -> None:
    """Refusals are passed on; nothing, too little and too much are failures."""
    reports, _ = ran([(GET_DATA, "key", 64, 68, 72), (SET_DATA, "key", "value", 0)], reply)

    assert [report[0] for report in reports] == [status, status]


def test_the_largest_value_fits() -> None:
    """Both ways; a larger one, or a longer key, is answered without asking."""
    value, key = b"v" * MAX_VALUE_BYTES, b"k" * MAX_KEY_BYTES
    reports, asked = ran([(SET_DATA, key, value, 1), (GET_DATA, key, OUT_CAS)], answer(0, 3, value))
    assert asked[0] == Question(SET, 1, key, value)
    assert reports[1] == b"\0" + value + struct.pack("<I", 3)

    calls = [(SET_DATA, "k", value + b"v", 0), (SET_DATA, key + b"k", "", 0), (GET_DATA, key + b"k", 64, 68, 72)]
    reports, asked = ran(calls, answer(0))
    assert ([report[0] for report in reports], asked) == ([10, 10, 1], [])


def test_wild_addresses_ask_nothing() -> None:
    """They are looked at first."""
    calls = [(GET_DATA, WILD, 5, 64, 68, 72), (GET_DATA, "k", 64, 68, WILD), (SET_DATA, "k", WILD, 5, 0)]
    reports, asked = ran(calls, answer(0))
    assert ([report[0] for report in reports], asked) == ([6, 6, 6], [])


def test_without_the_flag_nobody_is_asked() -> None:
    """The region is."""
    reports, asked = ran([(GET_DATA, "key", 64, 68, 72)], answer(0), flags=Flag(0))
    assert ([report[0] for report in reports], asked) == ([1], [])
