"""Nothing illegal leaves a plugin, and everything that is left out is named."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxd import limits
from sandboxd.policy.model import Section, WritePolicy
from sandboxd.policy.redact import HeaderDiff
from sandboxd.policy.write_rules import LocalResponse, Reason, Refusal, WriteRules, safe_details

REQUEST, RESPONSE = Section.REQUEST_HEADERS, Section.RESPONSE_HEADERS


def rules(**fields: object) -> WriteRules:
    return WriteRules(WritePolicy(**fields))  # type: ignore[arg-type]


def set_one(name: bytes, *values: bytes) -> HeaderDiff:
    return HeaderDiff(set=((name, values),))


def reasons(refusals: list[Refusal]) -> list[Reason]:
    return [refusal.reason for refusal in refusals]


def test_legal_changes_pass_unchanged_but_for_case_and_outer_space() -> None:
    changes = HeaderDiff((b"Gone",), ((b"X-A", (b" 1\t", b"")),), ((b"b", b"caf\xe9 x"),))

    kept, refusals = rules().headers(changes, REQUEST)

    assert kept == HeaderDiff((b"gone",), ((b"x-a", (b"1", b"")),), ((b"b", b"caf\xe9 x"),))
    assert refusals == []


@pytest.mark.parametrize("value", [b"a\rb", b"a\nb", b"a\0b", b"\x1b[0m", b"\x7f", b"a\r\n b"])
def test_control_characters_in_values(value: bytes) -> None:
    assert rules().headers(set_one(b"x", value), REQUEST) == (HeaderDiff(), [Refusal(Reason.VALUE, "x")])
    assert rules().headers(HeaderDiff(added=((b"x", value),)), REQUEST)[0] == HeaderDiff()


@pytest.mark.parametrize("name", [b"", b"a b", b"a:b", b"a\r\nb", b"caf\xe9", b"a\0", b"(a)", b"a\n"])
def test_illegal_names(name: bytes) -> None:
    for changes in (set_one(name, b"1"), HeaderDiff(added=((name, b"1"),)), HeaderDiff(removed=(name,))):
        kept, refusals = rules().headers(changes, REQUEST)
        assert kept == HeaderDiff()
        assert reasons(refusals) == [Reason.NAME]
        assert re.fullmatch(r"[\x21-\x7e]*", refusals[0].name)


@pytest.mark.parametrize(
    ("section", "name", "value", "legal"),
    [
        (REQUEST, b":method", b"POST", True),
        (REQUEST, b":method", b"PO ST", False),
        (REQUEST, b":path", b"/a?b=c", True),
        (REQUEST, b":path", b"*", True),
        (REQUEST, b":path", b"", False),
        (REQUEST, b":path", b"a", False),
        (REQUEST, b":path", b"/a b", False),
        (REQUEST, b":path", b"/a#b", False),
        (REQUEST, b":authority", b"a.example:80", True),
        (REQUEST, b":authority", b"[::1]:80", True),
        (REQUEST, b":authority", b"u@a", False),
        (REQUEST, b":authority", b"a/b", False),
        (REQUEST, b":scheme", b"https", True),
        (REQUEST, b":scheme", b"file", False),
        (REQUEST, b":status", b"200", False),
        (REQUEST, b":protocol", b"websocket", False),
        (RESPONSE, b":status", b"204", True),
        (RESPONSE, b":status", b"599", True),
        (RESPONSE, b":status", b"100", False),
        (RESPONSE, b":status", b"600", False),
        (RESPONSE, b":status", b"20", False),
        (RESPONSE, b":status", b"2000", False),
        (RESPONSE, b":path", b"/", False),
        (Section.REQUEST_TRAILERS, b":path", b"/", False),
        (Section.RESPONSE_TRAILERS, b":status", b"200", False),
    ],
)
def test_pseudo_headers_by_map(section: Section, name: bytes, value: bytes, legal: bool) -> None:
    kept, refusals = rules().headers(set_one(name, value), section)

    assert bool(kept) is legal
    assert reasons(refusals) == ([] if legal else [Reason.PSEUDO])


@pytest.mark.parametrize(
    "changes",
    [HeaderDiff(removed=(b":path",)), HeaderDiff(added=((b":path", b"/"),)), set_one(b":path", b"/", b"/b")],
)
def test_pseudo_headers_are_never_removed_nor_doubled(changes: HeaderDiff) -> None:
    kept, refusals = rules().headers(changes, REQUEST)

    assert kept == HeaderDiff()
    assert reasons(refusals) == [Reason.PSEUDO]


@pytest.mark.parametrize("name", [b"Transfer-Encoding", b"connection", b"upgrade", b"keep-alive", b"proxy-connection"])
def test_headers_of_one_hop_are_the_proxys(name: bytes) -> None:
    for changes in (set_one(name, b"x"), HeaderDiff(added=((name, b"x"),)), HeaderDiff(removed=(name,))):
        assert reasons(rules().headers(changes, REQUEST)[1]) == [Reason.CONNECTION]


@pytest.mark.parametrize(
    ("name", "value", "legal"),
    [
        (b"content-length", b"12", True),
        (b"content-length", b"+12", False),
        (b"content-length", b"1, 1", False),
        (b"te", b"trailers", True),
        (b"te", b"gzip", False),
        (b"host", b"a:1", True),
        (b"host", b"a b", False),
    ],
)
def test_headers_with_a_grammar_of_their_own(name: bytes, value: bytes, legal: bool) -> None:
    assert bool(rules().headers(set_one(name, value), REQUEST)[0]) is legal


@pytest.mark.parametrize(
    ("fields", "name", "allowed"),
    [
        ({"deny_headers": ("x-tenant-*",)}, b"X-Tenant-Id", False),
        ({"deny_headers": ("x-tenant-*",)}, b"x-other", True),
        ({"deny_headers": (":authority",)}, b":authority", False),
        ({"deny_headers": ("X-A",)}, b"x-a", False),
        ({"deny_headers": ("x-a",)}, b"x-ab", True),
        ({"allow_headers": ("x-ok", "y-*")}, b"x-ok", True),
        ({"allow_headers": ("x-ok", "y-*")}, b"y-1", True),
        ({"allow_headers": ("x-ok",)}, b"x-no", False),
        ({"allow_headers": ()}, b"x-any", False),
        ({"allow_headers": ("x-*",), "deny_headers": ("x-a",)}, b"x-a", False),
    ],
)
def test_deny_and_allow(fields: dict[str, object], name: bytes, allowed: bool) -> None:
    kept, refusals = rules(**fields).headers(set_one(name, b"v"), REQUEST)

    assert bool(kept) is allowed
    assert reasons(refusals) == ([] if allowed else [Reason.DENIED])


def test_deny_covers_additions_and_removals() -> None:
    changes = HeaderDiff(removed=(b"x-a",), added=((b"x-a", b"1"),))

    assert rules(deny_headers=("x-a",)).headers(changes, REQUEST)[0] == HeaderDiff()


def test_count_and_sizes_are_bounded() -> None:
    many = HeaderDiff(added=tuple((b"x-%d" % n, b"v") for n in range(5)))
    kept, refusals = rules(max_headers=3).headers(many, REQUEST)
    assert len(kept.added) == 3
    assert reasons(refusals) == [Reason.TOO_MANY] * 2

    assert reasons(rules(max_header_bytes=10).headers(set_one(b"x", b"v" * 10), REQUEST)[1]) == [Reason.TOO_LARGE]
    kept, refusals = rules(max_headers_bytes=10).headers(HeaderDiff(added=((b"x", b"v" * 6),) * 2), REQUEST)
    assert len(kept.added) == 1
    assert reasons(refusals) == [Reason.TOO_LARGE]

    long_name = b"n" * (limits.MAX_HEADER_NAME_BYTES + 1)
    assert reasons(rules().headers(set_one(long_name, b""), REQUEST)[1]) == [Reason.TOO_LARGE]


def test_a_set_is_all_or_nothing() -> None:
    kept, refusals = rules().headers(set_one(b"x", b"good", b"bad\n"), REQUEST)

    assert kept == HeaderDiff()
    assert reasons(refusals) == [Reason.VALUE]


def test_local_response() -> None:
    headers = [(b"X-A", b" 1 "), (b"Content-Length", b"9"), (b":status", b"200"), (b"bad", b"\n")]

    response, refusals = rules().local_response(403, b"no token\n", headers, b"hi", 7)

    assert response is not None
    assert (response.status, response.body, response.grpc_status) == (403, b"hi", 7)
    assert response.details == "no_token_"
    assert response.headers == ((b"x-a", b"1"),)
    assert reasons(refusals) == [Reason.PSEUDO, Reason.VALUE]


@pytest.mark.parametrize("status", [-1, 0, 100, 199, 600, 2**31])
def test_a_local_response_with_an_illegal_status_still_stops_the_request(status: int) -> None:
    response, refusals = rules().local_response(status, b"", [], b"", -1)

    assert response is not None
    assert response.status == 500
    assert reasons(refusals) == [Reason.STATUS]


@pytest.mark.parametrize(("given", "expected"), [(-1, None), (17, None), (0, 0), (16, 16)])
def test_grpc_status(given: int, expected: int | None) -> None:
    response, _ = rules().local_response(200, b"", [], b"", given)

    assert response is not None
    assert response.grpc_status == expected


def test_headers_of_a_local_response_are_held_against_the_same_lists() -> None:
    """Allowed, denied, and not named by a list that names the allowed ones."""
    headers = [(b"X-Ok", b"1"), (b"www-authenticate", b"Basic"), (b"x-secret", b"2")]
    some = rules(allow_headers=("x-*",), deny_headers=("x-secret",))
    response, refusals = some.local_response(401, b"", headers, b"", -1)
    assert response is not None
    assert response.headers == ((b"x-ok", b"1"),)
    assert [(item.reason, item.name) for item in refusals] == [
        (Reason.DENIED, "www-authenticate"),
        (Reason.DENIED, "x-secret"),
    ]
    response, _ = rules(allow_headers=()).local_response(401, b"", headers, b"", -1)
    assert response is not None
    assert response.headers == ()


def test_without_header_maps_each_change_is_refused_and_a_local_response_keeps_its_headers() -> None:
    changes = HeaderDiff((b"gone",), ((b"x-a", (b"1", b"2")),), ((b"b", b"3"),))
    none = rules(header_maps=False)

    assert none.headers(changes, REQUEST) == (
        HeaderDiff(),
        [Refusal(Reason.DENIED, name) for name in ("gone", "x-a", "b")],
    )
    assert none.headers(HeaderDiff(), REQUEST) == (HeaderDiff(), [])
    response, refusals = none.local_response(401, b"", [(b"www-authenticate", b"Basic")], b"", -1)
    assert response is not None
    assert (response.headers, refusals) == (((b"www-authenticate", b"Basic"),), [])


@pytest.mark.parametrize(
    ("status", "details", "body"),
    [
        (413, b"request_payload_too_large", b"Payload Too Large"),
        (500, b"response_payload_too_large", b"Internal Server Error"),
    ],
)
def test_the_answer_to_a_body_over_its_limit_may_be_sent_and_nothing_in_its_guise(
    status: int, details: bytes, body: bytes
) -> None:
    none = rules(local_response=False, allow_headers=())
    answer, refusals = none.local_response(status, details, [(b"content-type", b"text/plain")], body, -1)

    assert answer == LocalResponse(status, details.decode(), ((b"content-type", b"text/plain"),), body, None)
    assert refusals == []
    for forged in ((302, body), (status, b"more")):
        again = none.local_response(forged[0], details, [(b"location", b"http://evil.example")], forged[1], 0)
        assert again == (answer, [Refusal(Reason.DENIED, "local_response")])
    assert none.local_response(status, details + b"!", [], body, -1)[0] is None
    # Who may send local responses says this one as it likes.
    own, _ = rules().local_response(302, details, [], b"more", -1)
    assert own is not None
    assert (own.status, own.body) == (302, b"more")


def test_local_response_bounds_and_denial() -> None:
    big = b"x" * (limits.MAX_LOCAL_RESPONSE_BODY_BYTES + 1)
    response, refusals = rules().local_response(200, b"d" * 1000, [], big, -1)
    assert response is not None
    assert response.body == b""
    assert len(response.details) == limits.MAX_DETAILS_BYTES
    assert reasons(refusals) == [Reason.TOO_LARGE]

    assert rules(local_response=False).local_response(200, b"", [], b"", -1) == (
        None,
        [Refusal(Reason.DENIED, "local_response")],
    )


def test_body() -> None:
    assert WriteRules(WritePolicy(), 10).body(10) is None
    assert WriteRules(WritePolicy(), 10).body(11) == Refusal(Reason.TOO_LARGE, "body")
    assert rules(body=False).body(0) == Refusal(Reason.DENIED, "body")


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        (b"a", b"v", None),
        (b"a\0b\0", b"", None),
        (b"", b"v", Reason.PATH),
        (b"a\0\0b", b"v", Reason.PATH),
        (b"\xff", b"v", Reason.PATH),
        (b"\0".join([b"a"] * 33), b"v", Reason.PATH),
        (b"a" * (limits.MAX_PROPERTY_PATH_BYTES + 1), b"v", Reason.TOO_LARGE),
        (b"a", b"v" * (limits.MAX_PROPERTY_VALUE_BYTES + 1), Reason.TOO_LARGE),
    ],
)
def test_property(path: bytes, value: bytes, reason: Reason | None) -> None:
    refusal = rules().property(path, value)

    assert (refusal.reason if refusal else None) == reason
    assert rules(properties=False).property(path, value) == Refusal(Reason.DENIED, "property")


NAMES = st.one_of(
    st.binary(max_size=6),
    st.sampled_from([b":path", b":status", b":METHOD", b"Host", b"x-deny-me", b"connection", b"x-a\r\nb", b"te"]),
)
VALUES = st.one_of(st.binary(max_size=8), st.sampled_from([b"/", b"200", b"GET", b"a\r\nx: y", b" v "]))
ENTRIES = st.tuples(NAMES, VALUES)
DIFFS = st.builds(
    HeaderDiff,
    st.lists(NAMES, max_size=4).map(tuple),
    st.lists(st.tuples(NAMES, st.lists(VALUES, min_size=1, max_size=3).map(tuple)), max_size=4).map(tuple),
    st.lists(ENTRIES, max_size=4).map(tuple),
)
TOKEN = re.compile(rb"[a-z0-9!#$%&'*+.^_`|~-]+")
SETTABLE = {REQUEST: {b":method", b":path", b":authority", b":scheme"}, RESPONSE: {b":status"}}


@given(DIFFS, st.sampled_from(list(Section)))
@settings(max_examples=1000, deadline=None)
def test_nothing_illegal_passes(changes: HeaderDiff, section: Section) -> None:
    kept, refusals = rules(deny_headers=("x-deny-*",), max_headers=5).headers(changes, section)

    entries = [(name, value) for name, values in kept.set for value in values] + list(kept.added)
    assert len(entries) + len(kept.removed) <= 5
    for name, value in entries:
        assert TOKEN.fullmatch(name) or name in SETTABLE.get(section, ())
        assert not set(value) & {0, 10, 13, 127}
        assert value == value.strip(b" \t")
    for name in [*kept.removed, *(name for name, _ in kept.added)]:
        assert TOKEN.fullmatch(name)
    for name in [*kept.removed, *(name for name, _ in entries)]:
        assert not name.startswith(b"x-deny-")
        assert name not in (b"connection", b"transfer-encoding")
    dropped = len(changes.removed) + len(changes.set) + len(changes.added)
    dropped -= len(kept.removed) + len(kept.set) + len(kept.added)
    assert len(refusals) == dropped


@given(
    st.integers(),
    st.binary(max_size=300),
    st.lists(ENTRIES, max_size=5),
    st.binary(max_size=9),
    st.integers(),
)
@settings(max_examples=500, deadline=None)
def test_no_local_response_is_illegal(
    status: int, details: bytes, headers: list[tuple[bytes, bytes]], body: bytes, grpc: int
) -> None:
    response, _ = rules().local_response(status, details, headers, body, grpc)

    assert response is not None
    assert 200 <= response.status <= 599
    assert re.fullmatch(r"[\x21-\x7e]{0,256}", response.details)
    assert response.grpc_status is None or 0 <= response.grpc_status <= 16
    for name, value in response.headers:
        assert TOKEN.fullmatch(name)
        assert name != b"content-length"
        assert not set(value) & {0, 10, 13}


@given(st.binary(max_size=400))
def test_details_are_one_printable_word(details: bytes) -> None:
    assert re.fullmatch(r"[\x21-\x7e]{0,256}", safe_details(details))
