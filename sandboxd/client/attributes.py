"""A program's attributes as Proxy-Wasm properties: hidden ones left out, each in the encoding of its type. Pure."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

from sandboxd.channel.pairs import Pair, encode
from sandboxd.policy.redact import Redactor, property_section

Name = str | tuple[str, ...]
"""A path: segments, or a text whose segments are parted by dots."""
Value = str | bytes | bool | int | float | Sequence[Pair]
"""Pairs are for header maps, such as ``request.headers``."""


def properties(attributes: Mapping[Name, Value], redactor: Redactor) -> bytes:
    """
    Return what the plugin may see of the attributes, encoded for ``STREAM_OPEN``.

    Raises:
        ValueError: a value has no encoding; names the attribute.
    """
    pairs: list[Pair] = []
    for name, value in attributes.items():
        path = tuple(name.split(".")) if isinstance(name, str) else name
        if redactor.property_visible(path):
            pairs.append(("\0".join(path).encode(), _encoded(path, value, redactor)))
    return encode(pairs)


def _encoded(path: tuple[str, ...], value: Value, redactor: Redactor) -> bytes:
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape")
    if isinstance(value, bytes):
        return value
    if isinstance(value, bool):
        return b"\1" if value else b"\0"
    if isinstance(value, float):
        return struct.pack("<d", value)
    if isinstance(value, int):
        if not -(1 << 63) <= value < 1 << 63:
            raise ValueError(f"attribute {'.'.join(path)}: {value} does not fit 64 bits")
        return struct.pack("<q", value)
    section = property_section(path)
    if section is None:
        raise ValueError(f"attribute {'.'.join(path)}: only header maps may be pairs")
    return encode(redactor.view(list(value), section))
