"""Attributes with values that no proxy of ours sends: they are told as what they look like, and end nothing."""

from __future__ import annotations

import struct

import pytest
from google.protobuf import struct_pb2

from sandboxd.channel.pairs import Pair
from sandboxd.front import attributes
from tests.support.front_rig import plugin

NO_TIME = "9999-12-31T23:59:59Z"


def told(name: str, value: float | str) -> list[Pair]:
    """Return the properties that an attribute makes."""
    fields = struct_pb2.Struct()
    fields.update({name: value})
    return attributes.properties(fields.fields, plugin("redact: {properties: {'*': show}}").redactor, [])


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf"), 1e300, 0.5])
def test_numbers_that_are_no_integers(number: float) -> None:
    """As a double, in place of the 64 bits of an integer."""
    ((_, value),) = told("response.code", number)
    assert value == struct.pack("<d", number)


def test_an_integer() -> None:
    """The twin."""
    assert told("response.code", 200.0) == [(b"response\0code", struct.pack("<q", 200))]


@pytest.mark.parametrize(
    ("name", "text"),
    [("request.time", NO_TIME), ("request.duration", "999999999999s"), ("request.duration", "-999999999999.5s")],
)
def test_times_past_64_bits(name: str, text: str) -> None:
    """As text."""
    ((_, value),) = told(name, text)
    assert value == text.encode()


def test_a_time_and_a_duration() -> None:
    """The twins."""
    assert told("request.time", "1970-01-01T00:00:01Z")[0][1] == struct.pack("<q", 1_000_000_000)
    assert told("request.duration", "-1.5s")[0][1] == struct.pack("<q", -1_500_000_000)
