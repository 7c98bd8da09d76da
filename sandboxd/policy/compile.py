"""
A plugin's policy as bytes, for clients that are not Python: what to hide, what may be written, what a failure means.

Pure. The layout is that of ``docs/attach.md``; ``clients/c/policy.c`` reads it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from sandboxd.policy.capabilities import DataNeeds
from sandboxd.policy.model import (
    HeaderRule,
    OnFailure,
    PluginPolicy,
    PropertyRule,
    RedactMode,
    Section,
)
from sandboxd.policy.redact import MAX_KEY_BYTES, MIN_KEY_BYTES

MAGIC = b"SBXP"
VERSION = 1

TENANT, PLUGIN, KEY, NEEDS, LIMITS, FAILURE, WRITE, DENIED_HEADERS, ALLOWED_HEADERS = range(1, 10)
REDACT = {
    Section.REQUEST_HEADERS: 10,
    Section.REQUEST_TRAILERS: 11,
    Section.RESPONSE_HEADERS: 12,
    Section.RESPONSE_TRAILERS: 13,
}
PROPERTIES, IMPORTS = 14, 15

MODES = {
    RedactMode.SHOW: 0,
    RedactMode.DROP: 1,
    RedactMode.MASK: 2,
    RedactMode.HASH: 3,
    RedactMode.PRESENCE: 4,
}
FAILURES = {OnFailure.CLOSED: 0, OnFailure.OPEN: 1, OnFailure.RELOAD: 2}

_HEAD = struct.Struct("<4sI")
_ENTRY = struct.Struct("<II")
_PATTERN = struct.Struct("<HBB")


def compile_policy(
    tenant: str, plugin: PluginPolicy, needs: DataNeeds, key: bytes, imports: Iterable[str] = ()
) -> bytes:
    """
    Return the compiled policy of one plugin.

    Args:
        tenant: the tenant's name.
        plugin: the policy.
        needs: what the plugin can read.
        key: the tenant's redaction key, 16 to 64 bytes.
        imports: names of the guest's imports, by index.
    """
    if not MIN_KEY_BYTES <= len(key) <= MAX_KEY_BYTES:
        raise ValueError(f"a redaction key has {MIN_KEY_BYTES} to {MAX_KEY_BYTES} bytes, not {len(key)}")
    write, asked = plugin.write, plugin.limits
    switches = write.local_response | write.body << 1 | write.properties << 2 | write.header_maps << 3
    entries = [
        (TENANT, tenant.encode()),
        (PLUGIN, plugin.name.encode()),
        (KEY, key),
        (NEEDS, _numbers(_needs(needs))),
        (
            LIMITS,
            _numbers(
                asked.body_buffer_bytes,
                asked.log_lines_per_event,
                asked.log_bytes_per_event,
                asked.time_per_event_ns,
                asked.open_streams,
                plugin.time_per_pause_ns,
            ),
        ),
        (FAILURE, _numbers(FAILURES[plugin.failure.policy], plugin.failure.status)),
        (WRITE, _numbers(switches, write.max_headers, write.max_header_bytes, write.max_headers_bytes)),
        (DENIED_HEADERS, _names(write.deny_headers)),
        *((number, _rules(plugin.redact.rules(section))) for section, number in REDACT.items()),
        (PROPERTIES, _paths(plugin.redact.properties)),
        (IMPORTS, b"".join(name.encode() + b"\0" for name in imports)),
    ]
    if write.allow_headers is not None:
        entries.append((ALLOWED_HEADERS, _names(write.allow_headers)))
    return _HEAD.pack(MAGIC, VERSION) + b"".join(_entry(tag, content) for tag, content in entries)


def _entry(tag: int, content: bytes) -> bytes:
    return _ENTRY.pack(tag, len(content)) + content + bytes(-len(content) % 8)


def _numbers(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}Q", *values)


def _needs(needs: DataNeeds) -> int:
    bits = (
        needs.request_headers,
        needs.request_body,
        needs.request_trailers,
        needs.response_headers,
        needs.response_body,
        needs.response_trailers,
        needs.properties,
        "proxy_on_request_trailers" in needs.callbacks,
        "proxy_on_response_trailers" in needs.callbacks,
        "proxy_on_request_body" in needs.callbacks,
        "proxy_on_response_body" in needs.callbacks,
        needs.downstream_data,
        needs.upstream_data,
        "proxy_on_new_connection" in needs.callbacks,
        "proxy_on_downstream_data" in needs.callbacks,
        "proxy_on_upstream_data" in needs.callbacks,
        "proxy_on_downstream_connection_close" in needs.callbacks,
        "proxy_on_upstream_connection_close" in needs.callbacks,
    )
    return sum(1 << index for index, bit in enumerate(bits) if bit)


def _pattern(pattern: str, mode: int) -> bytes:
    name = pattern.removesuffix("*").encode()
    return _PATTERN.pack(len(name), mode, pattern.endswith("*")) + name


def _names(patterns: Iterable[str]) -> bytes:
    return b"".join(_pattern(pattern.lower(), 1) for pattern in patterns)


def _rules(rules: tuple[HeaderRule, ...]) -> bytes:
    """Exact names, the last of several rules for one; then prefixes, longest first: the first that fits decides."""
    exact = {rule.pattern: rule for rule in rules if not rule.pattern.endswith("*")}
    prefixes = [rule for rule in rules if rule.pattern.endswith("*")]
    prefixes.sort(key=lambda rule: len(rule.pattern), reverse=True)
    return b"".join(_pattern(rule.pattern, MODES[rule.mode]) for rule in [*exact.values(), *prefixes])


def _paths(rules: tuple[PropertyRule, ...]) -> bytes:
    paths = {rule.path: rule.shown for rule in rules}
    parts = []
    for path, shown in paths.items():
        name = "\0".join(path).encode()
        parts.append(_PATTERN.pack(len(name), shown, 0) + name)
    return b"".join(parts)
