"""
Envoy's attributes as Proxy-Wasm properties. Pure.

ext_proc sends attributes as a ``google.protobuf.Struct`` with one entry per name of its configuration. A Struct knows
no integers, timestamps or durations; the ABI tells a guest each property in the encoding of its type. So the type is
looked up by name (``envoy/.../attributes.rst``), and what the table does not know is taken for what it looks like.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from sandboxd.channel.pairs import Pair, encode
from sandboxd.policy.model import Section
from sandboxd.policy.redact import Redactor, property_section

_INTEGERS = frozenset(
    {
        "request.size",
        "request.total_size",
        "response.code",
        "response.flags",
        "response.grpc_status",
        "response.size",
        "response.total_size",
        "connection.id",
        "connection_id",
        "source.port",
        "destination.port",
        "upstream.port",
        "upstream.request_attempt_count",
        "xds.listener_direction",
        "listener_direction",
    }
)
_TIMES = frozenset({"request.time"})
_DURATIONS = frozenset({"request.duration", "response.backend_latency", "upstream.cx_pool_ready_duration"})
_SEGMENT = re.compile(r"\.?([A-Za-z_][A-Za-z0-9_]*)|\[(?:'([^']*)'|\"([^\"]*)\")\]")
_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)")
_DURATION = re.compile(r"(-?)(\d{1,12})(?:\.(\d{1,9}))?s")
_MAX_DEPTH = 8

Value = Any
"""A ``google.protobuf.Value``; not typed, so that this module needs no protobuf import."""


def path_of(name: str) -> tuple[str, ...] | None:
    """
    Return the segments of an attribute's name, None if it is an expression that is none.

    ``request.path`` gives two, ``xds.route_metadata.filter_metadata['a.b']`` four: what is quoted is never split.
    """
    segments = []
    position = 0
    while position < len(name):
        found = _SEGMENT.match(name, position)
        if found is None or (position == 0) != (found[0][0] not in ".["):
            return None
        segments.append(found[1] or found[2] or found[3] or "")
        position = found.end()
    return tuple(segments) or None


def properties(fields: Mapping[str, Value], redactor: Redactor, unknown: list[str]) -> list[Pair]:
    """
    Return the properties that the plugin may see, as pairs of path and value.

    Args:
        fields: ``attributes["envoy.filters.http.ext_proc"].fields``.
        redactor: the plugin's redaction.
        unknown: collects names that could not be told as properties.
    """
    pairs: list[Pair] = []
    for name, value in fields.items():
        path = path_of(name)
        if path is None:
            unknown.append(name)
        elif redactor.property_visible(path):
            pairs.extend(_leaves(path, value, redactor, 0))
    return pairs


def metadata(namespace: str, content: Value, redactor: Redactor) -> list[Pair]:
    """
    Return a connection's dynamic metadata as pairs of path and value; each leaf by its own path.

    Args:
        namespace: any text; one segment of the path.
        content: a ``google.protobuf.Struct``.
        redactor: the plugin's redaction.
    """
    pairs: list[Pair] = []
    for key, value in content.fields.items():
        path = ("metadata", "filter_metadata", namespace, key)
        if redactor.property_visible(path):
            pairs.extend(_leaves(path, value, redactor, 0))
    return pairs


def _leaves(path: tuple[str, ...], value: Value, redactor: Redactor, depth: int) -> Iterator[Pair]:
    kind = value.WhichOneof("kind")
    section = property_section(path)
    if kind == "struct_value" and section is not None:
        yield _joined(path), _header_map(value.struct_value.fields, redactor, section)
    elif kind == "struct_value":
        # Metadata and other messages: a guest walks into them by path, so each leaf is told by its own.
        if depth < _MAX_DEPTH:
            for key, inner in value.struct_value.fields.items():
                if redactor.property_visible((*path, key)):
                    yield from _leaves((*path, key), inner, redactor, depth + 1)
    elif kind == "list_value":
        items = [(_scalar("", item), b"") for item in value.list_value.values if _is_scalar(item)]
        yield _joined(path), encode(items)
    elif kind in ("string_value", "number_value", "bool_value"):
        yield _joined(path), _scalar(".".join(path), value)


def _header_map(fields: Mapping[str, Value], redactor: Redactor, section: Section) -> bytes:
    headers = [(name.encode(), value.string_value.encode()) for name, value in fields.items()]
    return encode(redactor.view(headers, section))


def _joined(path: tuple[str, ...]) -> bytes:
    return "\0".join(path).encode()


def _is_scalar(value: Value) -> bool:
    return value.WhichOneof("kind") in ("string_value", "number_value", "bool_value")


def _scalar(name: str, value: Value) -> bytes:
    match value.WhichOneof("kind"):
        case "bool_value":
            return b"\1" if value.bool_value else b"\0"
        case "number_value":
            return _number(name, value.number_value)
        case _:
            return _text(name, value.string_value)


def _number(name: str, number: float) -> bytes:
    if name in _INTEGERS and number.is_integer() and abs(number) < 2**63:
        return struct.pack("<q", int(number))
    return struct.pack("<d", number)


def _text(name: str, text: str) -> bytes:
    if name in _INTEGERS and re.fullmatch(r"-?\d{1,18}", text):  # Structs tell large integers as text
        return struct.pack("<q", int(text))
    nanoseconds = _time_ns(text) if name in _TIMES else _duration_ns(text) if name in _DURATIONS else None
    if nanoseconds is not None and abs(nanoseconds) < 2**63:
        return struct.pack("<q", nanoseconds)
    return text.encode()


def _duration_ns(text: str) -> int | None:
    found = _DURATION.fullmatch(text)
    if found is None:
        return None
    nanoseconds = int(found[2]) * 1_000_000_000 + int((found[3] or "").ljust(9, "0"))
    return -nanoseconds if found[1] else nanoseconds


def _time_ns(text: str) -> int | None:
    found = _TIME.fullmatch(text)
    if found is None:
        return None
    try:
        moment = datetime.fromisoformat(found[1] + found[3].replace("Z", "+00:00"))
    except ValueError:
        return None
    seconds = int((moment - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds())
    return seconds * 1_000_000_000 + int((found[2] or "").ljust(9, "0"))
