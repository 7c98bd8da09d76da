"""The C client decides as the Python side does: hashes, views, changes, write rules, failures, properties."""

from __future__ import annotations

import ctypes as c
import hashlib
import os
import re
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandboxd.channel import pairs
from sandboxd.channel.errors import PairsError
from sandboxd.policy.compile import compile_policy
from sandboxd.policy.failure import ActionKind, Cause, Phase, decide
from sandboxd.policy.model import (
    FailurePolicy,
    HeaderRule,
    OnFailure,
    PluginLimits,
    PluginPolicy,
    PropertyRule,
    RedactionPolicy,
    RedactMode,
    Section,
    WritePolicy,
)
from sandboxd.policy.redact import HeaderDiff, Redactor
from sandboxd.policy.write_rules import WriteRules
from tests.support import c_client
from tests.support.policies import KEY, MAPS, NAME, NEEDS, PATHS, RULES, VALUE, WRITES, plugin

pytestmark = pytest.mark.long

SECTIONS = (
    Section.REQUEST_HEADERS, Section.REQUEST_TRAILERS, Section.RESPONSE_HEADERS, Section.RESPONSE_TRAILERS
)  # fmt: skip
BIG = 8 * 1024 * 1024
_buffer = c.create_string_buffer(BIG)

EXAMPLES = int(os.environ.get("SANDBOXD_EXAMPLES", "300"))
SETTINGS = settings(
    max_examples=EXAMPLES // 2, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def blob_of(policy: PluginPolicy, key: bytes = KEY) -> bytes:
    return compile_policy("acme", policy, NEEDS, key, ["proxy_log", "proxy_done"])


class Loaded:
    """A policy inside the library, for one test case."""

    def __init__(self, lib: c.CDLL, policy: PluginPolicy) -> None:
        self.lib = lib
        self.handle = c_client.policy(lib, blob_of(policy))

    def __enter__(self) -> c.c_void_p:
        return self.handle

    def __exit__(self, *_: object) -> None:
        self.lib.sbx_policy_release(self.handle)


# --- hash and pairs -------------------------------------------------------------------------------


@SETTINGS
@given(
    st.binary(max_size=64), st.one_of(st.binary(max_size=600), st.sampled_from([b"", b"x" * 128, b"x" * 129])),
    st.integers(1, 64),
)  # fmt: skip
def test_blake2b_is_pythons(shim: c.CDLL, key: bytes, data: bytes, size: int) -> None:
    out = c.create_string_buffer(size)
    shim.shim_blake2b(out, c.c_size_t(size), key, c.c_size_t(len(key)), data, c.c_size_t(len(data)))
    assert out.raw == hashlib.blake2b(data, key=key, digest_size=size).digest()


def test_blake2b_of_the_rfc(shim: c.CDLL) -> None:
    """RFC 7693, appendix A."""
    out = c.create_string_buffer(64)
    shim.shim_blake2b(out, c.c_size_t(64), b"", c.c_size_t(0), b"abc", c.c_size_t(3))
    assert out.raw.hex() == (
        "ba80a53f981c4d0d6a2797b69f12f6e94c212f14685ac4b74b12bb6fdbffa2d1"
        "7d87c5392aab792dc252d5de4533cc9518d38aa8dbf1925ab92386edd4009923"
    )


def mutated(data: bytes, at: int, byte: int) -> bytes:
    return data[: at % len(data)] + bytes([byte]) + data[at % len(data) + 1 :] if data else data


@SETTINGS
@given(
    st.lists(st.tuples(st.binary(max_size=8), st.binary(max_size=8)), max_size=8),
    st.one_of(st.none(), st.tuples(st.integers(0, 200), st.integers(0, 255))),
    st.binary(max_size=2),
)
def test_pairs_are_read_alike(
    shim: c.CDLL, entries: list[tuple[bytes, bytes]], change: tuple[int, int] | None, tail: bytes
) -> None:
    data = pairs.encode(entries) + tail
    if change:
        data = mutated(data, *change)
    try:
        expected: bytes | None = pairs.encode(pairs.decode(data))
    except PairsError:
        expected = None
    length = shim.shim_pairs(data, c.c_size_t(len(data)), _buffer, c.c_size_t(BIG))
    assert (None if length < 0 else _buffer.raw[:length]) == expected


# --- views and changes ----------------------------------------------------------------------------


@st.composite
def edits(draw: st.DrawFn) -> tuple[RedactionPolicy, Section, list[tuple[bytes, bytes]], list[tuple[bytes, bytes]]]:
    """A policy, a map and what a plugin may leave of its view of it."""
    section = draw(st.sampled_from(SECTIONS))
    redaction = RedactionPolicy(**{section.value: draw(RULES)})
    headers = draw(MAPS)
    view = list(Redactor(redaction, KEY).view(headers, section))
    if draw(st.booleans()):
        return redaction, section, headers, draw(MAPS)
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, 20))
        match draw(st.integers(0, 3)):
            case 0 if view:
                view.pop(at % len(view))
            case 1:
                view.insert(at % (len(view) + 1), (draw(NAME), draw(VALUE)))
            case 2 if view:
                view[at % len(view)] = (view[at % len(view)][0], draw(VALUE))
            case _:
                view.append((draw(NAME), draw(VALUE)))
    return redaction, section, headers, view


def c_view(shim: c.CDLL, policy: PluginPolicy, section: Section, headers: list[tuple[bytes, bytes]]) -> bytes:
    data = pairs.encode(headers)
    with Loaded(shim, policy) as handle:
        length = shim.shim_view(handle, SECTIONS.index(section), data, c.c_size_t(len(data)), _buffer, c.c_size_t(BIG))
    assert length >= 0
    return _buffer.raw[:length]


Decided = tuple[HeaderDiff, list[tuple[str, bytes]]]


def read_diff(reader: c_client.Reader) -> HeaderDiff:
    removed = tuple(reader.texts())
    replaced = tuple((reader.text(), tuple(reader.texts())) for _ in reader.numbers())
    return HeaderDiff(removed, replaced, tuple((reader.text(), reader.text()) for _ in reader.numbers()))


def read_refusals(shim: c.CDLL, reader: c_client.Reader) -> list[tuple[str, bytes]]:
    return [(shim.sbx_reason_name(reader.number()).decode(), reader.text()) for _ in reader.numbers()]


def c_changes(
    shim: c.CDLL,
    policy: PluginPolicy,
    section: Section,
    headers: list[tuple[bytes, bytes]],
    after: list[tuple[bytes, bytes]],
    *,
    seen: bool = True,
    check: bool = False,
) -> Decided:
    before, now = pairs.encode(headers), pairs.encode(after)
    with Loaded(shim, policy) as handle:
        length = shim.shim_changes(
            handle, SECTIONS.index(section), before, c.c_size_t(len(before)), now, c.c_size_t(len(now)),
            c.c_bool(seen), c.c_bool(check), _buffer, c.c_size_t(BIG),
        )  # fmt: skip
    assert length >= 0
    reader = c_client.Reader(_buffer.raw[:length])
    return read_diff(reader), read_refusals(shim, reader)


@settings(SETTINGS, max_examples=EXAMPLES)
@given(edits())
def test_views_and_changes_are_pythons(
    shim: c.CDLL,
    case: tuple[RedactionPolicy, Section, list[tuple[bytes, bytes]], list[tuple[bytes, bytes]]],
) -> None:
    redaction, section, headers, after = case
    policy, redactor = plugin(redact=redaction), Redactor(redaction, KEY)
    view = redactor.view(headers, section)
    assert c_view(shim, policy, section, headers) == pairs.encode(view)

    expected = redactor.changes(headers, view, after, section)
    assert c_changes(shim, policy, section, headers, after)[0] == expected
    blind = redactor.changes(headers, [], after, section)
    assert c_changes(shim, policy, section, headers, after, seen=False)[0] == blind


@settings(SETTINGS, max_examples=EXAMPLES)
@given(edits(), WRITES)
def test_write_rules_are_pythons(
    shim: c.CDLL,
    case: tuple[RedactionPolicy, Section, list[tuple[bytes, bytes]], list[tuple[bytes, bytes]]],
    write: WritePolicy,
) -> None:
    redaction, section, headers, after = case
    redactor = Redactor(redaction, KEY)
    wanted = redactor.changes(headers, redactor.view(headers, section), after, section)
    expected, refusals = WriteRules(write).headers(wanted, section)
    found, found_refusals = c_changes(shim, plugin(redact=redaction, write=write), section, headers, after, check=True)
    assert found == expected
    assert found_refusals == [(refusal.reason.value, refusal.name.encode()) for refusal in refusals]


def test_a_hidden_value_survives_a_rewrite(shim: c.CDLL) -> None:
    """The harmless twin of the property: one case whose result is written down here."""
    redaction = RedactionPolicy(request_headers=(HeaderRule("cookie", RedactMode.MASK),))
    headers = [(b"cookie", b"one"), (b"a", b"1"), (b"cookie", b"two")]
    after = [(b"a", b"2"), (b"cookie", b"***"), (b"cookie", b"mine")]
    found, _ = c_changes(shim, plugin(redact=redaction), Section.REQUEST_HEADERS, headers, after)
    assert found == HeaderDiff((), ((b"a", (b"2",)), (b"cookie", (b"one", b"mine"))), ())


@SETTINGS
@given(
    WRITES,
    st.tuples(st.one_of(st.integers(0, 1000), st.sampled_from([413, 500])), st.integers(-2, 20)),
    st.one_of(st.binary(max_size=300), st.sampled_from([b"request_payload_too_large", b"response_payload_too_large"])),
    MAPS,
    st.sampled_from([b"", b"body", b"Payload Too Large", b"Internal Server Error", b"x" * (1024 * 1024 + 1)]),
)  # fmt: skip
def test_local_responses_are_pythons(  # noqa: PLR0917  (one parameter for each strategy)
    shim: c.CDLL,
    write: WritePolicy,
    numbers: tuple[int, int],
    details: bytes,
    headers: list[tuple[bytes, bytes]],
    body: bytes,
) -> None:
    status, grpc = numbers
    expected, refusals = WriteRules(write).local_response(status, details, headers, body, grpc)
    data = pairs.encode(headers)
    with Loaded(shim, plugin(write=write)) as handle:
        length = shim.shim_local(
            handle, status, grpc, details, c.c_size_t(len(details)), data, c.c_size_t(len(data)), body,
            c.c_size_t(len(body)), _buffer, c.c_size_t(BIG),
        )  # fmt: skip
    reader = c_client.Reader(_buffer.raw[:length])
    if reader.number():
        assert expected is not None
        assert reader.number() == expected.status
        assert reader.number() == (0xFFFFFFFF if expected.grpc_status is None else expected.grpc_status)
        assert reader.text().decode() == expected.details
        assert read_diff(reader).added == expected.headers
        assert reader.text() == expected.body
    else:
        assert expected is None
    found = read_refusals(shim, reader)
    assert found == [(refusal.reason.value, refusal.name.encode()) for refusal in refusals]


@SETTINGS
@given(
    st.booleans(),
    st.lists(st.sampled_from([b"a", b"", b"\xff", b"\xed\xa0\x80", b"\xc3\xa9", b"b" * 200]), max_size=40),
    st.booleans(),
    st.sampled_from([0, 1, 65536, 65537]),
)  # fmt: skip
def test_property_and_body_rules_are_pythons(
    shim: c.CDLL, allowed: bool, segments: list[bytes], ended: bool, size: int
) -> None:
    path = b"\0".join(segments) + (b"\0" if ended else b"")
    write = WritePolicy(properties=allowed, body=allowed)
    rules = WriteRules(write, 65536)
    with Loaded(shim, plugin(write=write, limits=PluginLimits(body_buffer_bytes=65536))) as handle:
        found = [
            shim.shim_property(handle, path, c.c_size_t(len(path)), c.c_size_t(size)),
            shim.shim_body(handle, c.c_uint64(size)),
        ]
    expected = [rules.property(path, bytes(size)), rules.body(size)]
    words = [None if refusal is None else refusal.reason.value for refusal in expected]
    assert [shim.sbx_reason_name(reason).decode() if reason else None for reason in found] == words


@settings(SETTINGS, max_examples=EXAMPLES)
@given(
    st.lists(st.builds(PropertyRule, PATHS, st.booleans()), max_size=6, unique_by=lambda rule: rule.path).map(tuple),
    RULES,
    PATHS,
)
def test_properties_are_visible_as_in_python(
    shim: c.CDLL, rules: tuple[PropertyRule, ...], headers: tuple[HeaderRule, ...], path: tuple[str, ...]
) -> None:
    redaction = RedactionPolicy(request_headers=headers, response_headers=headers, properties=rules)
    joined = "\0".join(path).encode()
    with Loaded(shim, plugin(redact=redaction)) as handle:
        found = shim.sbx_policy_property_visible(handle, joined, len(joined))
    assert found == Redactor(redaction, KEY).property_visible(path)


# --- failures -------------------------------------------------------------------------------------

PHASES = {phase: number for number, phase in enumerate(list(Phase)[:6], 2)} | {Phase.END: 9}
CAUSES = {
    Cause[name]: int(number)
    for name, number in re.findall(
        r"^ +SBX_CAUSE_(\w+) = (\d+)", (c_client.SOURCES / "sandboxd.h").read_text(), re.MULTILINE
    )
}
ACTIONS = (ActionKind.CONTINUE, ActionKind.RESPOND, ActionKind.RESET)


@pytest.mark.parametrize("on_failure", list(OnFailure))
def test_failures_are_decided_as_in_python(shim: c.CDLL, on_failure: OnFailure) -> None:
    assert set(CAUSES) == set(Cause)
    policy = FailurePolicy(on_failure, 599)
    with Loaded(shim, plugin(failure=policy)) as handle:
        for phase, number in PHASES.items():
            for cause, cause_number in CAUSES.items():
                for started in (False, True):
                    found = shim.sbx_failure_decide(handle, number, cause_number, started)
                    expected = decide(policy, phase, cause, response_started=started)
                    assert ACTIONS[found.action] is expected.kind
                    assert (found.status, found.details.decode()) == (expected.status, expected.details)


def test_without_a_policy_nothing_fails_open(shim: c.CDLL) -> None:
    for cause in CAUSES.values():
        assert shim.sbx_failure_decide(None, 2, cause, False).action == 1


# --- the blob -------------------------------------------------------------------------------------


def test_the_blob_says_who_and_what(shim: c.CDLL) -> None:
    with Loaded(shim, plugin()) as handle:
        assert shim.sbx_policy_tenant(handle).get() == b"acme"
        assert [shim.sbx_policy_import(handle, n).get() for n in range(3)] == [b"proxy_log", b"proxy_done", b""]
        assert shim.sbx_policy_needs(handle) == 0x7FF


def bad_blobs() -> Iterator[bytes]:
    good = blob_of(plugin(redact=RedactionPolicy(request_headers=(HeaderRule("x-*", RedactMode.HASH),))))
    yield from (good[:length] for length in range(len(good)))
    yield good + bytes(8)
    yield good + good[8:]
    for at in range(len(good)):
        for byte in (0, 1, 0x7F, 0xFF):
            yield good[:at] + bytes([byte]) + good[at + 1 :]


def test_no_blob_is_read_out_of_bounds(shim: c.CDLL) -> None:
    """Every cut is refused; every changed byte gives a policy that works, or a refusal."""
    refused = 0
    for blob in bad_blobs():
        made, error = c.c_void_p(), c_client.Error()
        if shim.sbx_policy_load(blob, len(blob), c.byref(made), c.byref(error)):
            refused += 1
            assert error.text
            continue
        shim.sbx_policy_property_visible(made, b"request\0path", 12)
        shim.sbx_policy_import(made, 1)
        shim.sbx_policy_release(made)
    assert refused > len(blob_of(plugin()))
