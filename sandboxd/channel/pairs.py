"""
Proxy-Wasm's layout of a header map, "pairs".

``u32 count; count x {u32 key length, u32 value length}; count x {key, NUL, value, NUL}``, little-endian. Order is kept,
keys may repeat, keys and values may hold any byte. This is the hot path of every event.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import chain

from sandboxd.channel.errors import PairsError
from sandboxd.limits import MAX_PAIRS_BYTES, MAX_PAIRS_COUNT

Pair = tuple[bytes, bytes]

_U32 = struct.Struct("<I")


@lru_cache(maxsize=256)
def _lengths(count: int) -> struct.Struct:
    return struct.Struct(f"<{2 * count}I")


@lru_cache(maxsize=256)
def _head(count: int) -> struct.Struct:
    return struct.Struct(f"<{2 * count + 1}I")


def encode(pairs: Sequence[Pair]) -> bytes:
    """Serialise a map; the empty map is no bytes at all."""
    if not pairs:
        return b""
    count = len(pairs)
    flat = list(chain.from_iterable(pairs))
    head = _head(count).pack(count, *map(len, flat))
    flat.append(b"")  # the join then ends with a NUL
    return head + b"\0".join(flat)


def encoded_bytes(pairs: Iterable[Pair]) -> int:
    """Return the size of a map that has at least one entry, as `encode` would make it."""
    return 4 + sum(10 + len(key) + len(value) for key, value in pairs)


def decode(data: bytes, max_count: int = MAX_PAIRS_COUNT, max_bytes: int = MAX_PAIRS_BYTES) -> list[Pair]:
    """
    Read a map that an untrusted side wrote.

    Raises:
        PairsError: anything but exactly one well-formed map within the bounds.
    """
    if not data:
        return []
    if len(data) > max_bytes:
        raise PairsError(f"map of {len(data)} bytes, at most {max_bytes} are allowed")
    if len(data) < 4:
        raise PairsError("map shorter than its count")
    (count,) = _U32.unpack_from(data)
    if count > max_count:
        raise PairsError(f"map of {count} entries, at most {max_count} are allowed")
    start = 4 + 8 * count
    if start > len(data):
        raise PairsError("map shorter than its table of lengths")
    lengths = _lengths(count).unpack_from(data, 4)
    if start + sum(lengths) + 2 * count != len(data):
        raise PairsError("lengths of the map do not add up to its size")
    parts = _split(data, start, lengths)
    return list(zip(parts[::2], parts[1::2], strict=True))


def _split(data: bytes, start: int, lengths: tuple[int, ...]) -> list[bytes]:
    """Cut the strings apart; ``lengths`` are known to add up."""
    if not lengths:
        return []
    # Strings without NUL, nearly all of them: splitting at every NUL is right if it gives just these lengths.
    parts = data[start:].split(b"\0")
    del parts[-1]
    if tuple(map(len, parts)) == lengths and data[-1] == 0:
        return parts
    parts = []
    for length in lengths:
        end = start + length
        if data[end] != 0:
            raise PairsError("string of the map without its NUL")
        parts.append(data[start:end])
        start = end + 1
    return parts
