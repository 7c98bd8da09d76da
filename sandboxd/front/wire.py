"""
Writing protobuf by hand: the few field kinds that replies are made of.

A reply is a handful of bytes round data that exists already; building it through message objects costs several times
as much as the rest of an event. The tests read everything that is written here with Envoy's own messages. Pure.
"""

from __future__ import annotations

from functools import lru_cache

_SHORT = [bytes((n,)) for n in range(128)]


def varint(number: int) -> bytes:
    """Return a non-negative number as a base-128 varint."""
    if number < 128:
        return _SHORT[number]
    out = bytearray()
    while number >= 128:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


@lru_cache(maxsize=64)
def _tag(number: int) -> bytes:
    return varint(number << 3 | 2)


def field(number: int, data: bytes) -> bytes:
    """Return a length-delimited field: bytes, text or a message that is written already."""
    length = len(data)
    return _tag(number) + (_SHORT[length] if length < 128 else varint(length)) + data


def flag(number: int) -> bytes:
    """Return a bool field that is true, or an enum field of value 1."""
    return varint(number << 3) + b"\1"


def number_field(number: int, value: int) -> bytes:
    """Return an integer field (int32, uint32, enum) that is not negative."""
    return varint(number << 3) + varint(value)
