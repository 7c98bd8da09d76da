"""
What a plugin sees of a header map, and what its changes to that view mean for the proxy's own map. Pure.

A view is taken before bytes reach the worker. When the plugin is done, only the difference between its view
before and after is applied to the proxy's map: a header that it never saw survives even a rewrite of the map.

Headers are lists of ``(name, value)`` in bytes, in the proxy's order; repeated names are repeated entries.
"""

from __future__ import annotations

import hashlib
from collections import deque
from dataclasses import dataclass
from typing import TypeAlias

from sandboxd.policy.model import HeaderRule, PropertyRule, RedactionPolicy, RedactMode, Section

Headers: TypeAlias = list[tuple[bytes, bytes]]

_SHOW = RedactMode.SHOW

MASK = b"***"
PRESENT = b"present"
MIN_KEY_BYTES = 16
MAX_KEY_BYTES = hashlib.blake2b.MAX_KEY_SIZE

_HEADER_PROPERTIES: dict[tuple[str, ...], Section] = {
    ("request", "headers"): Section.REQUEST_HEADERS,
    ("response", "headers"): Section.RESPONSE_HEADERS,
    ("response", "trailers"): Section.RESPONSE_TRAILERS,
}
"""Properties that are header maps; the next segment of the path is a header's name."""

_HEADER_ALIASES: dict[tuple[str, ...], tuple[Section, bytes]] = {
    ("request", "path"): (Section.REQUEST_HEADERS, b":path"),
    ("request", "url_path"): (Section.REQUEST_HEADERS, b":path"),
    ("request", "query"): (Section.REQUEST_HEADERS, b":path"),
    ("request", "host"): (Section.REQUEST_HEADERS, b":authority"),
    ("request", "scheme"): (Section.REQUEST_HEADERS, b":scheme"),
    ("request", "method"): (Section.REQUEST_HEADERS, b":method"),
    ("request", "referer"): (Section.REQUEST_HEADERS, b"referer"),
    ("request", "useragent"): (Section.REQUEST_HEADERS, b"user-agent"),
    ("request", "id"): (Section.REQUEST_HEADERS, b"x-request-id"),
    ("response", "code"): (Section.RESPONSE_HEADERS, b":status"),
    ("response", "grpc_status"): (Section.RESPONSE_TRAILERS, b"grpc-status"),
}
"""Properties whose value is one header's: a header that is hidden must not come in through them."""


# --- what differs ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HeaderDiff:
    """
    Changes to a header map, to be applied in this order: removed, set, added. Names are lower case.

    A name is in one of the three alone.
    """

    removed: tuple[bytes, ...] = ()
    """Names whose every value goes."""
    set: tuple[tuple[bytes, tuple[bytes, ...]], ...] = ()
    """Names whose values are replaced by these, in this order. Never without a value."""
    added: tuple[tuple[bytes, bytes], ...] = ()
    """Entries appended behind the values that a name has, hidden ones included."""

    def __bool__(self) -> bool:
        return bool(self.removed or self.set or self.added)


NO_CHANGE = HeaderDiff()


def diff(before_view: Headers, after_view: Headers) -> HeaderDiff:
    """
    Return what a plugin changed in its view.

    Values that only grew at the end are additions, so values that the view does not show stay. A
    pseudo-header has one value: any change of it sets it. The order among different names means nothing and
    is not compared.
    """
    if before_view is after_view or before_view == after_view:
        return NO_CHANGE
    if after_view[: len(before_view)] == before_view:
        grown = tuple((name.lower(), value) for name, value in after_view[len(before_view) :])
        if not any(name.startswith(b":") for name, _ in grown):
            return HeaderDiff(added=grown)
    before, after = _by_name(before_view), _by_name(after_view)
    replaced: list[tuple[bytes, tuple[bytes, ...]]] = []
    added: list[tuple[bytes, bytes]] = []
    for name, values in after.items():
        old = before.get(name, [])
        if values == old:
            continue
        if values[: len(old)] == old and not name.startswith(b":"):
            added.extend((name, value) for value in values[len(old) :])
        else:
            replaced.append((name, tuple(values)))
    removed = tuple(name for name in before if name not in after)
    if not (removed or replaced or added):
        return NO_CHANGE
    return HeaderDiff(removed, tuple(replaced), tuple(added))


def _by_name(headers: Headers) -> dict[bytes, list[bytes]]:
    found: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        found.setdefault(name.lower(), []).append(value)
    return found


def apply(headers: Headers, changes: HeaderDiff) -> Headers:
    """Return a header map with the changes made: what a proxy does with them."""
    gone = {*changes.removed, *(name for name, _ in changes.set)}
    kept = [(name, value) for name, value in headers if name.lower() not in gone]
    replaced = [(name, value) for name, values in changes.set for value in values]
    return kept + replaced + list(changes.added)


# --- what is seen ----------------------------------------------------------------------------------


def tenant_key(installation_key: bytes, tenant: str) -> bytes:
    """Return the hash key of one tenant, so that two tenants cannot compare what they see."""
    person = b"sandboxd-tenant"
    return hashlib.blake2b(tenant.encode(), key=installation_key, digest_size=32, person=person).digest()


class Redactor:
    """
    The redaction rules of one plugin, prepared for use on every event.

    Args:
        policy: the rules.
        key: the tenant's hash key (`tenant_key`), 16 to 64 random bytes.
    """

    def __init__(self, policy: RedactionPolicy, key: bytes) -> None:
        if not MIN_KEY_BYTES <= len(key) <= MAX_KEY_BYTES:
            raise ValueError(f"a redaction key has {MIN_KEY_BYTES} to {MAX_KEY_BYTES} bytes, not {len(key)}")
        self._key = key
        self._rules = {section: _SectionRules(policy.rules(section)) for section in Section}
        self._properties = _PropertyRules(policy.properties)

    def mode(self, section: Section, name: bytes) -> RedactMode:
        """Return how a header is shown."""
        return self._rules[section].mode(name.lower())

    def view(self, headers: Headers, section: Section) -> Headers:
        """
        Return what the plugin sees; the same list if no rule hides any of it.

        The result must be treated as read-only.
        """
        rules = self._rules[section]
        return self._redacted(headers, rules) if rules.may_hide(headers) else headers

    def _redacted(self, headers: Headers, rules: _SectionRules) -> Headers:
        seen: Headers = []
        present: set[bytes] = set()
        find = rules.mode
        for entry in headers:
            name = entry[0].lower()
            mode = find(name)
            if mode is _SHOW:
                seen.append(entry)
            elif mode is RedactMode.PRESENCE:
                if name not in present:
                    present.add(name)
                    seen.append((name, PRESENT))
            elif mode is not RedactMode.DROP:
                seen.append((name, self._placeholder(mode, entry[1])))
        return seen

    def _placeholder(self, mode: RedactMode, value: bytes) -> bytes:
        if mode is RedactMode.HASH:
            return hashlib.blake2b(value, key=self._key, digest_size=16).hexdigest().encode()
        return MASK

    def diff(self, before_view: Headers, after_view: Headers) -> HeaderDiff:
        """Return what the plugin changed in its view, in its own words; see `changes`."""
        return diff(before_view, after_view)

    def changes(self, headers: Headers, before_view: Headers, after_view: Headers, section: Section) -> HeaderDiff:
        """
        Return what to change in the proxy's map.

        As `diff`, but where a changed name still holds placeholders of its hidden values (a mask, a hash),
        the values themselves are put back: a plugin may drop or reorder what it cannot read, and never
        overwrites it with asterisks.

        Args:
            headers: the proxy's own map, of which ``before_view`` is the view.
            before_view: what `view` returned.
            after_view: what the plugin left.
            section: which map it is.
        """
        changes = diff(before_view, after_view)
        if before_view is headers or not changes.set:
            return changes
        restored = tuple((name, self._restored(headers, section, name, values)) for name, values in changes.set)
        return HeaderDiff(changes.removed, restored, changes.added)

    def _restored(
        self, headers: Headers, section: Section, name: bytes, values: tuple[bytes, ...]
    ) -> tuple[bytes, ...]:
        mode = self.mode(section, name)
        if mode in (RedactMode.SHOW, RedactMode.DROP):
            return values
        hidden = [value for other, value in headers if other.lower() == name]
        if mode is RedactMode.PRESENCE:
            waiting = {PRESENT: deque([hidden])}
        else:
            waiting = {}
            for value in hidden:
                waiting.setdefault(self._placeholder(mode, value), deque()).append([value])
        restored: list[bytes] = []
        for value in values:
            originals = waiting.get(value)
            restored.extend(originals.popleft() if originals else [value])
        return tuple(restored)

    def property_visible(self, path: tuple[str, ...]) -> bool:
        """
        Return whether the plugin may be told a property.

        A property that holds a hidden one inside is hidden too, and so is one that repeats a redacted
        header (``request.headers.cookie``, ``request.referer``). The header maps as properties
        (``request.headers``) are visible: pass their entries through `view` with `property_section`.
        """
        if not self._properties.shown(path):
            return False
        alias = _HEADER_ALIASES.get(path[:2])
        section = _HEADER_PROPERTIES.get(path[:2])
        if section is not None and len(path) > 2:
            alias = (section, path[2].encode("utf-8", "surrogateescape"))
        return alias is None or self.mode(*alias) is RedactMode.SHOW


def property_section(path: tuple[str, ...]) -> Section | None:
    """Return the header map that a property is, None if it is none."""
    return _HEADER_PROPERTIES.get(path) if len(path) == 2 else None


# --- rules, prepared -------------------------------------------------------------------------------


class _SectionRules:
    """The rules of one header map: an exact name first, then the longest pattern, then shown."""

    def __init__(self, rules: tuple[HeaderRule, ...]) -> None:
        patterns = [rule for rule in rules if rule.pattern.endswith("*")]
        by_length = sorted(patterns, key=lambda rule: len(rule.pattern), reverse=True)
        self._exact = {rule.pattern.encode(): rule.mode for rule in rules if rule not in patterns}
        self._patterns = tuple((rule.pattern[:-1].encode(), rule.mode) for rule in by_length)
        self._hidden = frozenset(name for name, mode in self._exact.items() if mode is not _SHOW)
        self._hidden_starts = tuple(start for start, mode in self._patterns if mode is not _SHOW)

    def may_hide(self, headers: Headers) -> bool:
        """Return False if nothing of a map is hidden: the quick answer for most of them."""
        names = [name.lower() for name, _ in headers]
        if not self._hidden.isdisjoint(names):
            return True
        return bool(self._hidden_starts) and any(name.startswith(self._hidden_starts) for name in names)

    def mode(self, name: bytes) -> RedactMode:
        """Return the mode of a lower-case name."""
        found = self._exact.get(name)
        if found is not None:
            return found
        for start, mode in self._patterns:
            if name.startswith(start):
                return mode
        return _SHOW


class _PropertyRules:
    """The longest rule that a path begins with decides; what holds a hidden property is hidden."""

    def __init__(self, rules: tuple[PropertyRule, ...]) -> None:
        self._shown = {rule.path: rule.shown for rule in rules}
        self._longest = max((len(path) for path in self._shown), default=0)
        self._holders = {rule.path[:n] for rule in rules if not rule.shown for n in range(len(rule.path))}

    def shown(self, path: tuple[str, ...]) -> bool:
        if path in self._holders:
            return False
        for length in range(min(len(path), self._longest), 0, -1):
            found = self._shown.get(path[:length])
            if found is not None:
                return found
        return True
