"""What a plugin sees, and what its changes mean for the proxy's own map."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxd.policy.model import HeaderRule, PropertyRule, RedactionPolicy, RedactMode, Section
from sandboxd.policy.redact import (
    MASK,
    NO_CHANGE,
    PRESENT,
    HeaderDiff,
    Headers,
    Redactor,
    apply,
    diff,
    property_section,
    tenant_key,
)

KEY = b"k" * 32
REQUEST = Section.REQUEST_HEADERS


def redactor(key: bytes = KEY, **modes: RedactMode) -> Redactor:
    """Rules for request headers alone; ``_`` in a name stands for ``-``, ``STAR`` at its end for ``*``."""
    rules = tuple(HeaderRule(name.replace("STAR", "*").replace("_", "-"), mode) for name, mode in modes.items())
    return Redactor(RedactionPolicy(request_headers=rules), key)


def by_name(headers: Headers) -> dict[bytes, list[bytes]]:
    found: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        found.setdefault(name.lower(), []).append(value)
    return found


# --- views ---


@pytest.mark.parametrize("section", list(Section))
@pytest.mark.parametrize(
    "name",
    [
        b"authorization",
        b"Proxy-Authorization",
        b"COOKIE",
        b"set-cookie",
        b"x-forwarded-for",
        b"x-real-ip",
        b"forwarded",
    ],
)
def test_credentials_and_client_address_are_hidden_by_default(section: Section, name: bytes) -> None:
    headers = [(b"a", b"1"), (name, b"secret"), (b"b", b"2")]

    assert Redactor(RedactionPolicy(), KEY).view(headers, section) == [(b"a", b"1"), (b"b", b"2")]


def test_a_map_without_hidden_headers_is_the_same_list() -> None:
    headers = [(b":path", b"/"), (b"x", b"1")]

    assert Redactor(RedactionPolicy(), KEY).view(headers, REQUEST) is headers
    assert redactor(x_STAR=RedactMode.DROP).view(headers, REQUEST) is headers


def test_modes() -> None:
    rules = redactor(m=RedactMode.MASK, p=RedactMode.PRESENCE, d=RedactMode.DROP, s=RedactMode.SHOW)
    headers = [(b"m", b"1"), (b"p", b"2"), (b"d", b"3"), (b"s", b"4"), (b"P", b"5"), (b"m", b"6")]

    assert rules.view(headers, REQUEST) == [(b"m", MASK), (b"p", PRESENT), (b"s", b"4"), (b"m", MASK)]


def test_hash_is_stable_keyed_and_short() -> None:
    def seen(key: bytes, value: bytes) -> bytes:
        return redactor(key, c=RedactMode.HASH).view([(b"c", value)], REQUEST)[0][1]

    assert seen(KEY, b"v") == seen(KEY, b"v")
    assert seen(KEY, b"v") != seen(KEY, b"w")
    assert seen(KEY, b"v") != seen(b"x" * 32, b"v")
    assert len(bytes.fromhex(seen(KEY, b"v").decode())) == 16


def test_tenants_hash_differently() -> None:
    assert tenant_key(KEY, "a") != tenant_key(KEY, "b")
    assert tenant_key(KEY, "a") == tenant_key(KEY, "a")


@pytest.mark.parametrize("length", [0, 15, 65])
def test_a_weak_or_oversized_key_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match="16 to 64 bytes"):
        Redactor(RedactionPolicy(), b"k" * length)


def test_exact_beats_pattern_and_longer_beats_shorter() -> None:
    rules = redactor(
        STAR=RedactMode.DROP,
        x_STAR=RedactMode.SHOW,
        x_internal_STAR=RedactMode.MASK,
        x_internal_id=RedactMode.SHOW,
    )
    headers = [(b"a", b"1"), (b"x-a", b"2"), (b"x-internal-a", b"3"), (b"x-internal-id", b"4")]

    assert rules.view(headers, REQUEST) == [(b"x-a", b"2"), (b"x-internal-a", MASK), (b"x-internal-id", b"4")]


def test_a_wide_show_does_not_lift_a_default() -> None:
    wide = (
        *RedactionPolicy().request_headers,
        HeaderRule("*", RedactMode.SHOW),
        HeaderRule("auth*", RedactMode.SHOW),
    )

    assert Redactor(RedactionPolicy(request_headers=wide), KEY).view([(b"authorization", b"x")], REQUEST) == []


def test_sections_have_rules_of_their_own() -> None:
    rules = redactor(x=RedactMode.DROP)

    assert rules.view([(b"x", b"1")], REQUEST) == []
    assert rules.view([(b"x", b"1")], Section.RESPONSE_HEADERS) == [(b"x", b"1")]


# --- differences ---


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ([(b"a", b"1")], [(b"a", b"1")], NO_CHANGE),
        ([(b"a", b"1"), (b"b", b"2")], [(b"b", b"2"), (b"a", b"1")], NO_CHANGE),
        ([(b"a", b"1")], [], HeaderDiff(removed=(b"a",))),
        ([(b"a", b"1")], [(b"a", b"2")], HeaderDiff(set=((b"a", (b"2",)),))),
        ([(b"a", b"1")], [(b"a", b"1"), (b"A", b"2")], HeaderDiff(added=((b"a", b"2"),))),
        (
            [(b"a", b"1"), (b"b", b"")],
            [(b"a", b"1"), (b"a", b"2")],
            HeaderDiff((b"b",), added=((b"a", b"2"),)),
        ),
        ([(b"a", b"1"), (b"a", b"2")], [(b"a", b"2"), (b"a", b"1")], HeaderDiff(set=((b"a", (b"2", b"1")),))),
        ([(b"a", b"1"), (b"a", b"2")], [(b"a", b"2")], HeaderDiff(set=((b"a", (b"2",)),))),
        ([], [(b"n", b"1")], HeaderDiff(added=((b"n", b"1"),))),
        ([], [(b":path", b"/")], HeaderDiff(set=((b":path", (b"/",)),))),
        (
            [(b":path", b"/")],
            [(b":path", b"/"), (b":path", b"/b")],
            HeaderDiff(set=((b":path", (b"/", b"/b")),)),
        ),
    ],
)
def test_diff(before: Headers, after: Headers, expected: HeaderDiff) -> None:
    assert diff(before, after) == expected
    assert bool(expected) is (expected is not NO_CHANGE)


def test_hidden_header_survives_a_rewrite_of_the_whole_map() -> None:
    rules = redactor(authorization=RedactMode.DROP, token=RedactMode.MASK)
    headers = [(b"authorization", b"secret"), (b"token", b"t0"), (b"a", b"1")]
    before = rules.view(headers, REQUEST)

    changes = rules.changes(headers, before, [(b"z", b"9"), (b"token", MASK)], REQUEST)

    assert by_name(apply(headers, changes)) == {
        b"authorization": [b"secret"],
        b"token": [b"t0"],
        b"z": [b"9"],
    }


def test_an_addition_to_a_hidden_name_appends() -> None:
    rules = redactor(cookie=RedactMode.DROP)
    headers = [(b"cookie", b"a=1")]

    changes = rules.changes(headers, rules.view(headers, REQUEST), [(b"cookie", b"b=2")], REQUEST)

    assert apply(headers, changes) == [(b"cookie", b"a=1"), (b"cookie", b"b=2")]


@pytest.mark.parametrize("mode", [RedactMode.MASK, RedactMode.HASH, RedactMode.PRESENCE])
def test_removing_a_header_that_is_seen_by_name_removes_it(mode: RedactMode) -> None:
    rules = redactor(t=mode)
    headers = [(b"t", b"secret"), (b"a", b"1")]

    changes = rules.changes(headers, rules.view(headers, REQUEST), [(b"a", b"1")], REQUEST)

    assert apply(headers, changes) == [(b"a", b"1")]


def test_placeholders_become_the_hidden_values_again() -> None:
    rules = redactor(t=RedactMode.HASH)
    headers = [(b"t", b"one"), (b"t", b"two"), (b"t", b"three")]
    one, _, three = (value for _, value in rules.view(headers, REQUEST))

    changes = rules.changes(
        headers, rules.view(headers, REQUEST), [(b"t", three), (b"t", b"new"), (b"t", one)], REQUEST
    )

    assert apply(headers, changes) == [(b"t", b"three"), (b"t", b"new"), (b"t", b"one")]


def test_presence_stands_for_all_hidden_values() -> None:
    rules = redactor(t=RedactMode.PRESENCE)
    headers = [(b"t", b"one"), (b"t", b"two")]

    changes = rules.changes(headers, rules.view(headers, REQUEST), [(b"t", b"x"), (b"t", PRESENT)], REQUEST)

    assert apply(headers, changes) == [(b"t", b"x"), (b"t", b"one"), (b"t", b"two")]


NAMES = st.sampled_from([b"a", b"b", b"A", b"hid", b"Hid", b"mask", b"hash", b"pre", b"pre-x", b":path"])
VALUES = st.sampled_from([b"", b"1", b"2", MASK, PRESENT])
MAPS = st.lists(st.tuples(NAMES, VALUES), max_size=8)
RULES = redactor(
    hid=RedactMode.DROP,
    mask=RedactMode.MASK,
    hash=RedactMode.HASH,
    pre=RedactMode.PRESENCE,
    pre_STAR=RedactMode.DROP,
)


@given(MAPS, MAPS)
@settings(max_examples=500, deadline=None)
def test_applying_the_diff_gives_the_view_after(before: Headers, after: Headers) -> None:
    """As a multiset of names, with the order of values kept under each name."""
    assert by_name(apply(before, diff(before, after))) == by_name(after)


@given(MAPS)
@settings(max_examples=300, deadline=None)
def test_no_change_of_the_view_changes_nothing(headers: Headers) -> None:
    view = RULES.view(headers, REQUEST)

    assert RULES.changes(headers, view, list(view), REQUEST) is NO_CHANGE


@given(MAPS, MAPS)
@settings(max_examples=500, deadline=None)
def test_dropped_headers_survive_any_rewrite(headers: Headers, after: Headers) -> None:
    view = RULES.view(headers, REQUEST)
    result = by_name(apply(headers, RULES.changes(headers, view, after, REQUEST)))

    for name in (b"hid", b"pre-x"):
        hidden = by_name(headers).get(name, [])
        assert result.get(name, [])[: len(hidden)] == hidden


@given(MAPS, st.permutations(range(8)))
@settings(max_examples=300, deadline=None)
def test_masked_headers_survive_a_rewrite_that_keeps_them(headers: Headers, order: list[int]) -> None:
    """A plugin that writes back what it saw, in any order of names, leaves the real values."""
    view = RULES.view(headers, REQUEST)
    distinct = sorted({name.lower() for name, _ in view})
    names = sorted(distinct, key=lambda name: order[distinct.index(name)])
    shuffled = [(name, value) for name in names for other, value in view if other.lower() == name]

    changes = RULES.changes(headers, view, [*shuffled, (b"n", b"1")], REQUEST)

    assert by_name(apply(headers, changes)) == {**by_name(headers), b"n": [b"1"]}


@given(MAPS)
@settings(max_examples=300, deadline=None)
def test_a_view_never_holds_a_hidden_value(headers: Headers) -> None:
    marked = [(name, b"%s-secret%d" % (value, index)) for index, (name, value) in enumerate(headers)]

    for name, value in RULES.view(marked, REQUEST):
        assert (b"secret" in value) is (name.lower() in (b"a", b"b", b":path"))


# --- properties ---


@pytest.mark.parametrize(
    ("path", "visible"),
    [
        ("source.address", False),
        ("source.port", False),
        ("source", False),
        ("destination.address", True),
        ("request.headers", True),
        ("request.headers.cookie", False),
        ("request.headers.Cookie", False),
        ("request.headers.x-a", True),
        ("response.headers.set-cookie", False),
        ("response.trailers.authorization", False),
        ("request.referer", True),
        ("plugin_root_id", True),
    ],
)
def test_default_property_visibility(path: str, visible: bool) -> None:
    assert Redactor(RedactionPolicy(), KEY).property_visible(tuple(path.split("."))) is visible


def test_longest_property_rule_wins_and_holders_of_hidden_ones_are_hidden() -> None:
    rules = (
        PropertyRule(("metadata",)),
        PropertyRule(("metadata", "f", "open"), shown=True),
        PropertyRule(("x", "y", "z")),
    )
    visible = Redactor(RedactionPolicy(properties=rules), KEY).property_visible

    assert not visible(("metadata", "f"))
    assert visible(("metadata", "f", "open", "deeper"))
    assert not visible(("x",))
    assert not visible(("x", "y"))
    assert not visible(("x", "y", "z", "deeper"))
    assert visible(("x", "other"))


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("referer", ("request", "referer")),
        ("user-agent", ("request", "useragent")),
        (":path", ("request", "query")),
    ],
)
def test_a_hidden_header_is_no_property_either(name: str, path: tuple[str, ...]) -> None:
    policy = RedactionPolicy(request_headers=(HeaderRule(name, RedactMode.MASK),))

    assert not Redactor(policy, KEY).property_visible(path)
    assert Redactor(RedactionPolicy(request_headers=()), KEY).property_visible(path)


def test_property_section() -> None:
    assert property_section(("request", "headers")) is REQUEST
    assert property_section(("response", "trailers")) is Section.RESPONSE_TRAILERS
    assert property_section(("request", "headers", "a")) is None
    assert property_section(("request", "path")) is None
