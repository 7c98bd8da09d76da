"""
The compiled policy that the daemon hands over at attach, read back into the rules of `sandboxd.policy`. Pure.

The reverse of `sandboxd.policy.compile`; the layout is that of ``docs/attach.md``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from sandboxd.channel.completions import EventLimits
from sandboxd.errors import PeerError
from sandboxd.policy import compile as form
from sandboxd.policy.capabilities import DataNeeds
from sandboxd.policy.model import (
    FailurePolicy,
    HeaderRule,
    PluginLimits,
    PropertyRule,
    RedactionPolicy,
    RedactMode,
    Section,
    WritePolicy,
)
from sandboxd.policy.redact import MAX_KEY_BYTES, MIN_KEY_BYTES, Redactor
from sandboxd.policy.write_rules import WriteRules

MAX_BYTES = 16 * 1024 * 1024

_HEAD = struct.Struct("<4sI")
_ENTRY = struct.Struct("<II")
_PATTERN = struct.Struct("<HBB")
_MODES = {number: mode for mode, number in form.MODES.items()}
_FAILURES = {number: policy for policy, number in form.FAILURES.items()}
_REQUIRED = frozenset(
    {form.TENANT, form.PLUGIN, form.KEY, form.NEEDS, form.LIMITS, form.FAILURE, form.WRITE, *form.REDACT.values()}
)
_KNOWN = _REQUIRED | {form.DENIED_HEADERS, form.ALLOWED_HEADERS, form.PROPERTIES, form.IMPORTS}
_CALLBACK_BITS = {
    7: "proxy_on_request_trailers",
    8: "proxy_on_response_trailers",
    9: "proxy_on_request_body",
    10: "proxy_on_response_body",
    13: "proxy_on_new_connection",
    14: "proxy_on_downstream_data",
    15: "proxy_on_upstream_data",
    16: "proxy_on_downstream_connection_close",
    17: "proxy_on_upstream_connection_close",
}


@dataclass(frozen=True, slots=True)
class Compiled:
    """What a client has to know of one version of one plugin."""

    tenant: str
    plugin: str
    needs: DataNeeds
    limits: PluginLimits
    """Only what a compiled policy holds; the rest are defaults."""
    failure: FailurePolicy
    write: WritePolicy
    redactor: Redactor = field(repr=False)
    rules: WriteRules = field(repr=False)
    imports: tuple[str, ...] = ()

    @property
    def event_limits(self) -> EventLimits:
        """What one event may bring."""
        asked = self.limits
        return EventLimits.of(asked.body_buffer_bytes, asked.log_lines_per_event, asked.log_bytes_per_event)


def without_policy(tenant: str, plugin: str, failure: FailurePolicy) -> Compiled:
    """Return what holds while the daemon has not handed a policy over: nothing is shown, ``failure`` answers."""
    needs = DataNeeds(frozenset(), False, False, False, False, False, False, False)
    write = WritePolicy()
    redactor = Redactor(RedactionPolicy(), bytes(MIN_KEY_BYTES))
    return Compiled(tenant, plugin, needs, PluginLimits(), failure, write, redactor, WriteRules(write))


def parse(data: bytes) -> Compiled:
    """
    Read a compiled policy.

    Raises:
        PeerError: it is malformed; names the entry.
    """
    entries = dict(_entries(data))
    missing = _REQUIRED - entries.keys()
    if missing:
        raise PeerError(f"compiled policy without entry {min(missing)}")
    key = entries[form.KEY]
    if not MIN_KEY_BYTES <= len(key) <= MAX_KEY_BYTES:
        raise PeerError(f"compiled policy: key of {len(key)} bytes")
    write = _write(entries)
    limits = _limits(entries[form.LIMITS])
    return Compiled(
        tenant=_text(form.TENANT, entries[form.TENANT]),
        plugin=_text(form.PLUGIN, entries[form.PLUGIN]),
        needs=_needs(_numbers(form.NEEDS, entries[form.NEEDS], 1)[0]),
        limits=limits,
        failure=_failure(entries[form.FAILURE]),
        write=write,
        redactor=Redactor(_redaction(entries), key),
        rules=WriteRules(write, limits.body_buffer_bytes),
        imports=tuple(_text(form.IMPORTS, entries.get(form.IMPORTS, b"")).split("\0")[:-1]),
    )


def _entries(data: bytes) -> Iterator[tuple[int, bytes]]:
    if len(data) < _HEAD.size or _HEAD.unpack_from(data) != (form.MAGIC, form.VERSION):
        raise PeerError("compiled policy with another magic or version")
    seen = set()
    position = _HEAD.size
    while position < len(data):
        if position + _ENTRY.size > len(data):
            raise PeerError("compiled policy ends within the head of an entry")
        tag, length = _ENTRY.unpack_from(data, position)
        position += _ENTRY.size
        if tag in seen or tag not in _KNOWN:
            raise PeerError(f"compiled policy with {'a second' if tag in seen else 'an unknown'} entry {tag}")
        if length + -length % 8 > len(data) - position:
            raise PeerError(f"compiled policy: entry {tag} is longer than the rest")
        seen.add(tag)
        yield tag, data[position : position + length]
        position += length + -length % 8


def _text(tag: int, content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise PeerError(f"compiled policy: entry {tag} is not UTF-8") from None


def _numbers(tag: int, content: bytes, count: int) -> tuple[int, ...]:
    if len(content) != 8 * count:
        raise PeerError(f"compiled policy: entry {tag} has {len(content)} bytes, not {8 * count}")
    return struct.unpack(f"<{count}Q", content)


def _needs(bits: int) -> DataNeeds:
    if bits >> 18:
        raise PeerError(f"compiled policy: unknown needs {bits:#x}")
    callbacks = frozenset(name for bit, name in _CALLBACK_BITS.items() if bits >> bit & 1)
    return DataNeeds(callbacks, *(bool(bits >> bit & 1) for bit in (*range(7), 11, 12)))


def _limits(content: bytes) -> PluginLimits:
    body, lines, log_bytes, time_ns, streams, pause_ns = _numbers(form.LIMITS, content, 6)
    return PluginLimits(
        body_buffer_bytes=body,
        log_lines_per_event=lines,
        log_bytes_per_event=log_bytes,
        time_per_event_ns=time_ns,
        open_streams=streams,
        time_per_pause_ns=pause_ns,
    )


def _failure(content: bytes) -> FailurePolicy:
    number, status = _numbers(form.FAILURE, content, 2)
    if number not in _FAILURES or not 200 <= status <= 599:
        raise PeerError(f"compiled policy: failure {number} with status {status}")
    return FailurePolicy(_FAILURES[number], status)


def _write(entries: Mapping[int, bytes]) -> WritePolicy:
    switches, count, one_bytes, all_bytes = _numbers(form.WRITE, entries[form.WRITE], 4)
    if switches >> 4:
        raise PeerError(f"compiled policy: unknown write bits {switches:#x}")
    allowed = entries.get(form.ALLOWED_HEADERS)
    return WritePolicy(
        deny_headers=_names(form.DENIED_HEADERS, entries.get(form.DENIED_HEADERS, b"")),
        allow_headers=None if allowed is None else _names(form.ALLOWED_HEADERS, allowed),
        local_response=bool(switches & 1),
        body=bool(switches & 2),
        properties=bool(switches & 4),
        max_headers=count,
        max_header_bytes=one_bytes,
        max_headers_bytes=all_bytes,
        header_maps=bool(switches & 8),
    )


def _redaction(entries: Mapping[int, bytes]) -> RedactionPolicy:
    rules = {section: _rules(tag, entries[tag]) for section, tag in form.REDACT.items()}
    return RedactionPolicy(
        rules[Section.REQUEST_HEADERS],
        rules[Section.REQUEST_TRAILERS],
        rules[Section.RESPONSE_HEADERS],
        rules[Section.RESPONSE_TRAILERS],
        tuple(
            PropertyRule(tuple(name.split("\0")), _shown(mode))
            for name, mode, _ in _patterns(form.PROPERTIES, entries.get(form.PROPERTIES, b""))
        ),
    )


def _shown(mode: int) -> bool:
    if mode > 1:
        raise PeerError(f"compiled policy: entry {form.PROPERTIES} with mode {mode}")
    return bool(mode)


def _rules(tag: int, content: bytes) -> tuple[HeaderRule, ...]:
    return tuple(HeaderRule(_pattern(name, start), _mode(tag, mode)) for name, mode, start in _patterns(tag, content))


def _mode(tag: int, mode: int) -> RedactMode:
    if mode not in _MODES:
        raise PeerError(f"compiled policy: entry {tag} with mode {mode}")
    return _MODES[mode]


def _names(tag: int, content: bytes) -> tuple[str, ...]:
    return tuple(_pattern(name, start) for name, _, start in _patterns(tag, content))


def _pattern(name: str, start: bool) -> str:
    return f"{name}*" if start else name


def _patterns(tag: int, content: bytes) -> Iterator[tuple[str, int, bool]]:
    position = 0
    while position < len(content):
        if position + _PATTERN.size > len(content):
            raise PeerError(f"compiled policy: entry {tag} ends within a pattern")
        length, mode, start = _PATTERN.unpack_from(content, position)
        position += _PATTERN.size
        if start > 1 or length > len(content) - position:
            raise PeerError(f"compiled policy: entry {tag} with a bad pattern")
        yield _text(tag, content[position : position + length]), mode, bool(start)
        position += length
