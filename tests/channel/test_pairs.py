"""The pairs codec: the ABI's own vector, round trips, and what has to be refused."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxd.channel import pairs
from sandboxd.channel.errors import PairsError

VECTOR = bytes.fromhex("0200000001000000010000000100000002000000610031006200323200")
MAPS = st.lists(st.tuples(st.binary(max_size=20), st.binary(max_size=40)), max_size=20)


def test_vector_of_the_abi() -> None:
    assert pairs.encode([(b"a", b"1"), (b"b", b"22")]) == VECTOR
    assert pairs.decode(VECTOR) == [(b"a", b"1"), (b"b", b"22")]
    assert pairs.encoded_bytes([(b"a", b"1"), (b"b", b"22")]) == len(VECTOR)


def test_the_empty_map_is_no_bytes_and_may_be_a_count() -> None:
    assert pairs.encode([]) == b""
    assert pairs.decode(b"") == []
    assert pairs.decode(b"\0\0\0\0") == []


@given(MAPS)
@settings(max_examples=1000, deadline=None)
def test_round_trip(entries: list[tuple[bytes, bytes]]) -> None:
    assert pairs.decode(pairs.encode(entries)) == entries


@pytest.mark.parametrize(
    "data",
    [
        b"\0",
        b"\1\0\0\0",
        b"\0\0\0\0\0",
        VECTOR[:-1],
        VECTOR + b"\0",
        VECTOR[:-1] + b"x",
        VECTOR[:21] + b"x" + VECTOR[22:],
        struct.pack("<I", 0xFFFFFFFF),
        struct.pack("<III", 1, 0xFFFFFFFF, 0xFFFFFFFF),
        struct.pack("<III", 1, 0, 1) + b"\0\0",
    ],
    ids=lambda data: data.hex()[:24],
)
def test_malformed(data: bytes) -> None:
    with pytest.raises(PairsError):
        pairs.decode(data)


def test_bounds() -> None:
    many = [(b"k", b"v")] * 1024
    assert len(pairs.decode(pairs.encode(many))) == 1024
    with pytest.raises(PairsError, match="1025 entries"):
        pairs.decode(pairs.encode([*many, (b"k", b"v")]))
    with pytest.raises(PairsError, match="bytes"):
        pairs.decode(pairs.encode([(b"k", b"v" * 1024 * 1024)]))
    with pytest.raises(PairsError, match="2 entries"):
        pairs.decode(VECTOR, max_count=1)


@given(st.binary(max_size=200))
@settings(max_examples=5000, deadline=None)
def test_any_bytes(data: bytes) -> None:
    try:
        entries = pairs.decode(data)
    except PairsError:
        return
    assert pairs.encode(entries) == data or data == b"\0\0\0\0"


@pytest.mark.long
@given(MAPS, st.integers(0, 2**20), st.binary(min_size=1, max_size=4))
@settings(max_examples=5000, deadline=None)
def test_damaged_maps(entries: list[tuple[bytes, bytes]], where: int, what: bytes) -> None:
    data = bytearray(pairs.encode(entries) or b"\0\0\0\0")
    start = where % len(data)
    data[start : start + len(what)] = what
    try:
        found = pairs.decode(bytes(data))
    except PairsError:
        return
    assert pairs.encode(found) == bytes(data) or bytes(data) == b"\0\0\0\0"
