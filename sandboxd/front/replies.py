"""
``ProcessingResponse`` messages, written from what a plugin changed. Pure.

Field numbers are those of ``envoy/service/ext_proc/v3/external_processor.proto`` and
``envoy/config/core/v3/base.proto``. Concatenated protobuf messages merge, so what goes with a reply (dynamic metadata,
a mode override) is simply appended to it.
"""

from __future__ import annotations

from collections.abc import Iterable

from sandboxd.channel import layout
from sandboxd.front.wire import field, flag, number_field
from sandboxd.policy.redact import HeaderDiff
from sandboxd.policy.write_rules import LocalResponse

_RESPONSE_FIELD = {
    layout.REQUEST_HEADERS: 1,
    layout.RESPONSE_HEADERS: 2,
    layout.REQUEST_BODY: 3,
    layout.RESPONSE_BODY: 4,
    layout.REQUEST_TRAILERS: 5,
    layout.RESPONSE_TRAILERS: 6,
}
"""Field of ProcessingResponse that answers each kind of event."""

_IMMEDIATE_RESPONSE = 7
_MODE_OVERRIDE = 9

UNCHANGED = {kind: field(number, b"") for kind, number in _RESPONSE_FIELD.items()}
"""The answer "go on, nothing changed" to each kind of event."""

MAX_STREAMED_CHUNK_BYTES = 64 * 1024
"""What Envoy's documentation recommends for one chunk of FULL_DUPLEX_STREAMED."""

# HeaderValueOption carries its mode twice: ``append`` for Envoy before 1.31, ``append_action`` for those after.
_APPEND = field(2, flag(1))
_OVERWRITE = field(2, b"") + number_field(3, 2)


def _option(name: bytes, value: bytes, mode: bytes) -> bytes:
    return field(1, field(1, field(1, name) + field(3, value)) + mode)


def header_mutation(changes: HeaderDiff) -> bytes:
    """Return a HeaderMutation. Envoy removes first and sets afterwards, in order."""
    parts = [field(2, name) for name in changes.removed]
    for name, values in changes.set:
        parts.append(_option(name, values[0], _OVERWRITE))
        parts.extend(_option(name, value, _APPEND) for value in values[1:])
    parts.extend(_option(name, value, _APPEND) for name, value in changes.added)
    return b"".join(parts)


def common(
    kind: int, *, changes: HeaderDiff | None, body: bytes | None = None, clear_route_cache: bool = False
) -> bytes:
    """
    Return the answer to headers or to a body.

    Args:
        kind: the event that is answered.
        changes: header mutation; empty ones still make the field present, which Envoy wants for a cleared route cache.
        body: the new body or chunk, None for the one that was sent.
        clear_route_cache: choose the route again.
    """
    response = b""
    if changes is not None or clear_route_cache:
        response = field(2, header_mutation(changes) if changes else b"")
    if body is not None:
        # An empty ``body`` in a oneof is present, but clear_body says it without doubt.
        response += field(3, field(1, body) if body else flag(2))
    if clear_route_cache:
        response += flag(5)
    return field(_RESPONSE_FIELD[kind], field(1, response) if response else b"")


def streamed_body(kind: int, body: bytes, end_of_stream: bool) -> list[bytes]:
    """Return the answers of FULL_DUPLEX_STREAMED that hand these bytes on."""
    step = MAX_STREAMED_CHUNK_BYTES
    pieces = [body[start : start + step] for start in range(0, len(body), step)]
    if not pieces:
        pieces = [b""] if end_of_stream else []
    last = len(pieces) - 1
    return [_streamed(kind, piece, end_of_stream and index == last) for index, piece in enumerate(pieces)]


def _streamed(kind: int, piece: bytes, end: bool) -> bytes:
    streamed = (field(1, piece) if piece else b"") + (flag(2) if end else b"")
    return field(_RESPONSE_FIELD[kind], field(1, field(3, field(3, streamed))))


def trailers(kind: int, changes: HeaderDiff) -> bytes:
    """Return the answer to trailers."""
    return field(_RESPONSE_FIELD[kind], field(1, header_mutation(changes))) if changes else UNCHANGED[kind]


def immediate(response: LocalResponse) -> bytes:
    """Return the answer that ends the exchange with a response of the plugin."""
    parts = [field(1, number_field(1, response.status))]
    if response.headers:
        parts.append(field(2, header_mutation(HeaderDiff(added=response.headers))))
    if response.body:
        parts.append(field(3, response.body))
    if response.grpc_status is not None:
        parts.append(field(4, number_field(1, response.grpc_status)))
    if response.details:
        parts.append(field(5, response.details.encode()))
    return field(_IMMEDIATE_RESPONSE, b"".join(parts))


def mode_override(request_body_mode: int, response_body_mode: int) -> bytes:
    """Return what, appended to a headers reply, asks for other body modes. Headers and trailers stay as they are."""
    mode = b""
    if request_body_mode:
        mode += number_field(3, request_body_mode)
    if response_body_mode:
        mode += number_field(4, response_body_mode)
    return field(_MODE_OVERRIDE, mode)


IGNORED_BY_DEFAULT = frozenset({b":method", b":scheme", b":authority", b"host"})


def ignored_writes(changes: HeaderDiff) -> Iterable[bytes]:
    """
    Yield the names of the changes that Envoy drops unless its ``mutation_rules`` say otherwise.

    Source: ``envoy/config/common/mutation_rules/v3/mutation_rules.proto``: routing headers and ``x-envoy-*`` are not
    written, headers that begin with a colon and ``host`` are not removed.
    """
    for name in changes.removed:
        if name.startswith((b":", b"x-envoy-")) or name == b"host":
            yield name
    for name in [name for name, _ in changes.set] + [name for name, _ in changes.added]:
        if name in IGNORED_BY_DEFAULT or name.startswith(b"x-envoy-"):
            yield name
