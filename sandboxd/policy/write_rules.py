"""
What may leave a plugin: every change and local response that a worker names is checked here. Pure.

The worker is hostile. Nothing here raises, whatever the input; what is not legal or not allowed is left out
and returned as a `Refusal`, for a metric and a log line. Header names come back lower case and legal (RFC
9110 tokens), values without control characters and without white space around them.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable
from dataclasses import dataclass

from sandboxd import limits
from sandboxd.policy.model import Section, WritePolicy
from sandboxd.policy.redact import NO_CHANGE, HeaderDiff, Headers

_TOKEN = re.compile(rb"[a-z0-9!#$%&'*+.^_`|~-]+")
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_PSEUDO_VALUES = {
    b":method": re.compile(rb"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}"),
    b":path": re.compile(rb"\*|/[\x21-\x22\x24-\x7e\x80-\xff]*"),  # neither white space nor a fragment
    b":authority": re.compile(rb"[A-Za-z0-9._~!$&'()*+,;=:%\[\]-]+"),  # a host and port, no user information
    b":scheme": re.compile(rb"https?"),
    b":status": re.compile(rb"[2-5][0-9][0-9]"),  # a final response cannot be made an interim one
}
_PSEUDO_NAMES = {
    Section.REQUEST_HEADERS: frozenset({b":method", b":path", b":authority", b":scheme"}),
    Section.RESPONSE_HEADERS: frozenset({b":status"}),
    Section.REQUEST_TRAILERS: frozenset[bytes](),
    Section.RESPONSE_TRAILERS: frozenset[bytes](),
}
_CONNECTION_NAMES = frozenset(
    {b"connection", b"http2-settings", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"}
)
"""Headers of one hop: they frame messages, so they are the proxy's alone (request smuggling)."""
_CONTENT_LENGTH = re.compile(rb"[0-9]{1,18}")
_SHOWN_NAME_CHARS = 64


class Reason(enum.StrEnum):
    """Why something was left out; the value is a metric label."""

    NAME = "illegal_name"
    VALUE = "illegal_value"
    PSEUDO = "illegal_pseudo_header"
    CONNECTION = "connection_header"
    DENIED = "denied_by_policy"
    TOO_MANY = "too_many"
    TOO_LARGE = "too_large"
    STATUS = "illegal_status"
    GRPC_STATUS = "illegal_grpc_status"
    PATH = "illegal_path"


@dataclass(frozen=True, slots=True)
class Refusal:
    """One thing left out."""

    reason: Reason
    name: str
    """What it was: a header's name or a word such as ``body``; printable, at most 64 characters."""


@dataclass(frozen=True, slots=True)
class LocalResponse:
    """A local response as it may leave."""

    status: int
    """200 to 599."""
    details: str
    """Printable, without white space, at most `limits.MAX_DETAILS_BYTES`; may be empty."""
    headers: tuple[tuple[bytes, bytes], ...]
    """To be added to the generated ones; no pseudo-header, no content-length."""
    body: bytes
    grpc_status: int | None
    """0 to 16, None if the plugin gave none."""


_TEXT = ((b"content-type", b"text/plain"),)
_OVER_LIMIT = {
    answer.details.encode(): answer
    for answer in (
        LocalResponse(413, "request_payload_too_large", _TEXT, b"Payload Too Large", None),
        LocalResponse(500, "response_payload_too_large", _TEXT, b"Internal Server Error", None),
    )
}
"""By details: what hostcore answers on its own when more of a body is held than the policy allows."""


class WriteRules:
    """
    The write rules of one plugin, prepared for use on every event.

    Args:
        policy: the rules.
        body_bytes: the largest body that the plugin may leave behind (its ``body_buffer``).
    """

    def __init__(self, policy: WritePolicy, body_bytes: int = limits.DEFAULT_BODY_BUFFER_BYTES) -> None:
        self._policy = policy
        self._body_bytes = body_bytes
        self._denied = _Patterns(policy.deny_headers)
        self._allowed = None if policy.allow_headers is None else _Patterns(policy.allow_headers)

    # --- headers ---

    def headers(self, changes: HeaderDiff, section: Section) -> tuple[HeaderDiff, list[Refusal]]:
        """Return the changes that may be made to a header map, and what was left out of them."""
        if not changes:
            return NO_CHANGE, []
        if not self._policy.header_maps:
            named = (*changes.removed, *(name for name, _ in changes.set), *(name for name, _ in changes.added))
            return NO_CHANGE, [_refusal(Reason.DENIED, name) for name in named]
        refusals: list[Refusal] = []
        room = _Room(self._policy)
        removed = [name.lower() for name in changes.removed if self._may_remove(name, room, refusals)]
        replaced = []
        for name, values in changes.set:
            entries = [(name, value) for value in values]
            if kept := self._kept(entries, section, room, refusals, whole=True):
                replaced.append((kept[0][0], tuple(value for _, value in kept)))
        # An added pseudo-header would stand beside the one that is there: it can only be set.
        beside = [entry for entry in changes.added if not _is_pseudo(entry[0])]
        refusals += [_refusal(Reason.PSEUDO, name) for name, _ in changes.added if _is_pseudo(name)]
        added = self._kept(beside, section, room, refusals, whole=False)
        return HeaderDiff(tuple(removed), tuple(replaced), tuple(added)), refusals

    def _may_remove(self, name: bytes, room: _Room, refusals: list[Refusal]) -> bool:
        lower = name.lower()
        reason = Reason.PSEUDO if _is_pseudo(lower) else self._name_problem(lower) or room.take(len(lower))
        if reason is not None:
            refusals.append(_refusal(reason, name))
        return reason is None

    def _kept(
        self, entries: Headers, section: Section, room: _Room, refusals: list[Refusal], *, whole: bool
    ) -> Headers:
        """Return the entries that may stay; with ``whole``, all of one name or none of them."""
        kept: Headers = []
        if whole and entries and _is_pseudo(entries[0][0]) and len(entries) != 1:
            refusals.append(_refusal(Reason.PSEUDO, entries[0][0]))
            return []
        for name, value in entries:
            lower, trimmed = name.lower(), value.strip(b" \t")
            reason = self._entry_problem(lower, trimmed, section) or room.take(len(lower) + len(trimmed))
            if reason is None:
                kept.append((lower, trimmed))
                continue
            refusals.append(_refusal(reason, name))
            if whole:
                return []
        return kept

    def _entry_problem(self, name: bytes, value: bytes, section: Section) -> Reason | None:
        if _is_pseudo(name):
            if name not in _PSEUDO_NAMES[section] or not _PSEUDO_VALUES[name].fullmatch(value):
                return Reason.PSEUDO
        elif not _VALUE.fullmatch(value) or not _legal_special(name, value):
            return Reason.VALUE
        return self._name_problem(name)

    def _name_problem(self, name: bytes) -> Reason | None:
        if len(name) > limits.MAX_HEADER_NAME_BYTES:
            return Reason.TOO_LARGE
        if not _TOKEN.fullmatch(name.removeprefix(b":")):
            return Reason.NAME
        if name in _CONNECTION_NAMES:
            return Reason.CONNECTION
        if self._denied.match(name) or (self._allowed is not None and not self._allowed.match(name)):
            return Reason.DENIED
        return None

    # --- the rest ---

    def local_response(
        self,
        status: int,
        details: bytes,
        headers: Iterable[tuple[bytes, bytes]],
        body: bytes,
        grpc_status: int,
    ) -> tuple[LocalResponse | None, list[Refusal]]:
        """
        Return the local response that may be sent; None if the policy allows none.

        A plugin that asked to stop a request must not see it pass: an illegal status becomes 500, and an
        illegal header or a body that is too large is left out. A caller that gets None must stop the stream
        too. The answers to a body over its limit, which are not the plugin's own, may be sent always, and as
        they are written here alone.

        Args:
            status: HTTP status as the plugin gave it.
            details: response code details, any bytes.
            headers: pairs to add.
            body: the body, any bytes.
            grpc_status: 0 to 16, or anything else for none (the ABI uses -1).
        """
        refusals: list[Refusal] = []
        if not self._policy.local_response:
            generated = _OVER_LIMIT.get(details)
            if generated is None or (generated.status, generated.body) != (status, body):
                refusals.append(Refusal(Reason.DENIED, "local_response"))
            return generated, refusals
        if not 200 <= status <= 599:
            refusals.append(Refusal(Reason.STATUS, "local_response"))
            status = 500
        if len(body) > limits.MAX_LOCAL_RESPONSE_BODY_BYTES:
            refusals.append(Refusal(Reason.TOO_LARGE, "local_response"))
            body = b""
        kept = self._local_headers(headers, refusals)
        grpc = grpc_status if 0 <= grpc_status <= 16 else None
        return LocalResponse(status, safe_details(details), tuple(kept), bytes(body), grpc), refusals

    def _local_headers(self, headers: Iterable[tuple[bytes, bytes]], refusals: list[Refusal]) -> Headers:
        entries = [(name, value) for name, value in headers if name.lower() != b"content-length"]
        # No pseudo-header is legal here: `:status` is given as a number.
        return self._kept(entries, Section.RESPONSE_TRAILERS, _Room(self._policy), refusals, whole=False)

    def body(self, length: int) -> Refusal | None:
        """Return why a changed body of that many bytes may not leave; None if it may."""
        if not self._policy.body:
            return Refusal(Reason.DENIED, "body")
        return Refusal(Reason.TOO_LARGE, "body") if length > self._body_bytes else None

    def property(self, path: bytes, value: bytes) -> Refusal | None:
        """Return why a property may not be written; None if it may. Segments are separated by NUL."""
        if not self._policy.properties:
            return Refusal(Reason.DENIED, "property")
        if len(path) > limits.MAX_PROPERTY_PATH_BYTES or len(value) > limits.MAX_PROPERTY_VALUE_BYTES:
            return Refusal(Reason.TOO_LARGE, "property")
        segments = path.removesuffix(b"\0").split(b"\0")
        if not all(segments) or len(segments) > limits.MAX_PROPERTY_SEGMENTS or not _is_text(path):
            return Refusal(Reason.PATH, "property")
        return None


def safe_details(details: bytes) -> str:
    """Return details as one printable word: Envoy's log format separates fields by white space."""
    text = details[: limits.MAX_DETAILS_BYTES].decode("ascii", "replace")
    return re.sub(r"[^\x21-\x7e]", "_", text)


class _Patterns:
    """Names and beginnings of names."""

    def __init__(self, patterns: tuple[str, ...]) -> None:
        lower = [pattern.lower().encode() for pattern in patterns]
        self._exact = frozenset(pattern for pattern in lower if not pattern.endswith(b"*"))
        self._starts = tuple(pattern[:-1] for pattern in lower if pattern.endswith(b"*"))

    def match(self, name: bytes) -> bool:
        return name in self._exact or name.startswith(self._starts)


class _Room:
    """What is left of the policy's counts and sizes for one event."""

    def __init__(self, policy: WritePolicy) -> None:
        self._one = policy.max_header_bytes
        self._count = policy.max_headers
        self._bytes = policy.max_headers_bytes

    def take(self, size: int) -> Reason | None:
        """Use room for one change; return why there is none."""
        if self._count < 1:
            return Reason.TOO_MANY
        if size > min(self._one, self._bytes):
            return Reason.TOO_LARGE
        self._count -= 1
        self._bytes -= size
        return None


def _is_pseudo(name: bytes) -> bool:
    return name.startswith(b":")


def _legal_special(name: bytes, value: bytes) -> bool:
    if name == b"content-length":
        return _CONTENT_LENGTH.fullmatch(value) is not None
    if name == b"te":
        return value.lower() == b"trailers"
    return name != b"host" or _PSEUDO_VALUES[b":authority"].fullmatch(value) is not None


def _is_text(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _refusal(reason: Reason, name: bytes) -> Refusal:
    shown = name[:_SHOWN_NAME_CHARS].decode("ascii", "replace")
    return Refusal(reason, re.sub(r"[^\x21-\x7e]", "?", shown))
