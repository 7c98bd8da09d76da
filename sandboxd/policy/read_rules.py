"""The ``redact`` and ``write`` parts of a policy file. Pure; used by `sandboxd.policy.read_plugin` alone."""

from __future__ import annotations

import re

from sandboxd import limits
from sandboxd.policy.model import (
    DEFAULT_HEADER_RULES,
    DEFAULT_PROPERTY_RULES,
    HeaderRule,
    PropertyRule,
    RedactionPolicy,
    RedactMode,
    Section,
    WritePolicy,
)
from sandboxd.yaml_nodes import Value

_PATTERN = re.compile(r":?[a-z0-9!#$%&'+.^_`|~-]+\*?|\*|:\*")
_PATTERN_FORM = "a header name, or a beginning with * at its end, such as x-internal-*"


def header_pattern(value: Value, text: str) -> str:
    """Check and lower-case a header name or pattern."""
    pattern = text.lower()
    if not _PATTERN.fullmatch(pattern) or len(pattern) > limits.MAX_HEADER_NAME_BYTES:
        raise value.fail(f"{text[:70]!r} is not a header pattern", (_PATTERN_FORM,))
    return pattern


# --- redact ---------------------------------------------------------------------------------------


def read_redaction(value: Value | None) -> RedactionPolicy:
    """Read ``redact``; the defaults stay unless a rule names the very header or property."""
    if value is None:
        return RedactionPolicy()
    section = value.section((*Section, "properties"))
    properties = section.get("properties")
    headers = {key.value: _header_rules(section.get(key)) for key in Section}
    return RedactionPolicy(**headers, properties=_property_rules(properties) if properties else DEFAULT_PROPERTY_RULES)


def _header_rules(value: Value | None) -> tuple[HeaderRule, ...]:
    """Read ``{name: mode}``, or a list of names to drop."""
    if value is None:
        return DEFAULT_HEADER_RULES
    rules = {rule.pattern: rule for rule in DEFAULT_HEADER_RULES}
    seen: dict[str, Value] = {}
    for text, mode, place in _header_entries(value):
        pattern = header_pattern(place, text)
        if pattern in seen:
            raise place.fail(f"{pattern} is given twice, first in line {seen[pattern].line}")
        seen[pattern] = place
        rules[pattern] = HeaderRule(pattern, mode)
    return tuple(rules.values())


def _header_entries(value: Value) -> list[tuple[str, RedactMode, Value]]:
    if value.is_sequence():
        return [(item.string(), RedactMode.DROP, item) for item in value.items(most=limits.MAX_RULES)]
    entries = value.mapping()
    if len(entries) > limits.MAX_RULES:
        raise value.fail(f"has {len(entries)} entries, at most {limits.MAX_RULES} are allowed")
    return [(name, mode.choice(RedactMode), mode) for name, mode in entries.items()]


def _property_rules(value: Value) -> tuple[PropertyRule, ...]:
    """Read a list of paths to drop, or ``{path: drop|show}``."""
    rules = {rule.path: rule for rule in DEFAULT_PROPERTY_RULES}
    if value.is_sequence():
        found = [_property_item(item) for item in value.items(most=limits.MAX_RULES)]
    else:
        found = [_property_rule(path, mode) for path, mode in value.mapping().items()]
    rules.update((rule.path, rule) for rule in found)
    return tuple(rules.values())


def _property_item(value: Value) -> PropertyRule:
    """Read ``a.b.c``, ``[a, b.with.dots, c]`` or ``{path: ..., mode: ...}``."""
    if not value.is_mapping():
        return PropertyRule(_property_path(value))
    section = value.section(("path", "mode"))
    return PropertyRule(_property_path(section.need("path")), shown=_shown(section.need("mode")))


def _property_rule(path: str, mode: Value) -> PropertyRule:
    return PropertyRule(_checked_path(mode, tuple(path.split("."))), shown=_shown(mode))


def _property_path(value: Value) -> tuple[str, ...]:
    if value.is_sequence():
        segments = tuple(item.string() for item in value.items(most=limits.MAX_PROPERTY_SEGMENTS))
    else:
        segments = tuple(value.string().split("."))
    return _checked_path(value, segments)


def _checked_path(value: Value, segments: tuple[str, ...]) -> tuple[str, ...]:
    if not segments or not all(segments) or any("\0" in segment for segment in segments):
        raise value.fail("a property path has no empty segment and no NUL", ("a.b.c", "[a, b.with.dots, c]"))
    if len(segments) > limits.MAX_PROPERTY_SEGMENTS:
        raise value.fail(f"a property path has at most {limits.MAX_PROPERTY_SEGMENTS} segments")
    return segments


def _shown(value: Value) -> bool:
    return value.choice((RedactMode.DROP, RedactMode.SHOW)) is RedactMode.SHOW


# --- write ----------------------------------------------------------------------------------------


def read_write(value: Value | None) -> WritePolicy:
    """Read ``write``. An empty ``allow_headers`` allows no header at all."""
    default = WritePolicy()
    if value is None:
        return default
    switches = ("local_response", "body", "properties")
    section = value.section(
        ("deny_headers", "allow_headers", *switches, "max_headers", "max_header_bytes", "max_headers_bytes")
    )
    deny, allow = section.get("deny_headers"), section.get("allow_headers")
    local_response, body, properties = (section.get(key) for key in switches)
    count, one, total = (section.get(key) for key in ("max_headers", "max_header_bytes", "max_headers_bytes"))
    return WritePolicy(
        deny_headers=_patterns(deny) if deny else (),
        allow_headers=_patterns(allow) if allow else None,
        local_response=local_response.boolean() if local_response else default.local_response,
        body=body.boolean() if body else default.body,
        properties=properties.boolean() if properties else default.properties,
        max_headers=count.integer(0, limits.MAX_WRITTEN_HEADERS) if count else default.max_headers,
        max_header_bytes=one.size(0, limits.MAX_HEADER_BYTES) if one else default.max_header_bytes,
        max_headers_bytes=(total.size(0, limits.MAX_WRITTEN_HEADERS_BYTES) if total else default.max_headers_bytes),
    )


def _patterns(value: Value) -> tuple[str, ...]:
    return tuple(header_pattern(item, item.string()) for item in value.items(most=limits.MAX_RULES))
