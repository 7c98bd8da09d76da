"""Frames and compiled policies: what the daemon writes is what the client reads, and nothing else is accepted."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxd.channel.attach_wire import RefusalCode
from sandboxd.channel.pairs import decode
from sandboxd.client import attributes, compiled, wire
from sandboxd.errors import PeerError
from sandboxd.policy.capabilities import DataNeeds, needs
from sandboxd.policy.capability_names import HEADER_CALLBACKS, HOST_FUNCTIONS, HTTP_CALLBACKS
from sandboxd.policy.compile import compile_policy
from sandboxd.policy.model import (
    FailurePolicy,
    OnFailure,
    PluginLimits,
    PluginPolicy,
    PropertyRule,
    RedactionPolicy,
    Section,
)
from sandboxd.policy.redact import Redactor
from sandboxd.policy.write_rules import WriteRules
from sandboxd.supervisor import attach_frames as daemon
from tests.support.policies import KEY, MAPS, NEEDS, PATHS, RULES, WRITES, plugin

POLICIES = st.builds(
    PluginPolicy,
    name=st.just("p"),
    module=st.just(plugin().module),
    limits=st.builds(PluginLimits, body_buffer_bytes=st.integers(1, 1 << 20), open_streams=st.integers(1, 99)),
    redact=st.builds(
        RedactionPolicy,
        RULES,
        RULES,
        RULES,
        RULES,
        st.lists(st.builds(PropertyRule, PATHS, st.booleans()), max_size=5).map(tuple),
    ),
    write=WRITES,
    failure=st.builds(FailurePolicy, st.sampled_from(OnFailure), st.integers(200, 599)),
)

WANTED = st.frozensets(st.sampled_from(sorted(HOST_FUNCTIONS | HTTP_CALLBACKS))).map(
    lambda granted: needs(granted, HTTP_CALLBACKS)
)
TOLD = HTTP_CALLBACKS - HEADER_CALLBACKS
"""Callbacks without which a client need not tell the VM of an event; it always tells of headers."""


@settings(max_examples=150, deadline=None)
@given(POLICIES, MAPS, MAPS, PATHS, st.sampled_from(Section))
def test_a_compiled_policy_decides_as_the_policy_does(
    policy: PluginPolicy,
    headers: list[tuple[bytes, bytes]],
    after: list[tuple[bytes, bytes]],
    path: tuple[str, ...],
    section: Section,
) -> None:
    read = compiled.parse(compile_policy("t", policy, NEEDS, KEY, ("one", "two")))
    redactor = Redactor(policy.redact, KEY)
    rules = WriteRules(policy.write, policy.limits.body_buffer_bytes)

    view = redactor.view(headers, section)
    assert read.redactor.view(headers, section) == view
    changes = redactor.changes(headers, view, after, section)
    assert read.redactor.changes(headers, view, after, section) == changes
    assert read.rules.headers(changes, section) == rules.headers(changes, section)
    assert read.redactor.property_visible(path) == redactor.property_visible(path)
    assert (read.tenant, read.plugin, read.imports) == ("t", "p", ("one", "two"))
    assert (read.write, read.failure) == (policy.write, policy.failure)
    assert read.limits == replace(policy.limits, time_per_pause_ns=policy.time_per_pause_ns)


@settings(max_examples=100, deadline=None)
@given(WANTED)
def test_a_compiled_policy_says_what_the_plugin_can_read(wanted: DataNeeds) -> None:
    read = compiled.parse(compile_policy("t", plugin(), wanted, KEY))
    assert read.needs == replace(wanted, callbacks=wanted.callbacks & TOLD)


def a_policy() -> bytes:
    return compile_policy("t", plugin(), NEEDS, KEY)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_damaged_policy_is_refused_or_read_never_worse(data: st.DataObject) -> None:
    blob = bytearray(a_policy())
    for _ in range(data.draw(st.integers(1, 4))):
        blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
    try:
        compiled.parse(bytes(blob[: data.draw(st.integers(0, len(blob)))]))
    except PeerError:
        return


def test_entries_that_are_missing_twice_or_unknown_are_named() -> None:
    blob = a_policy()
    entry = struct.pack("<II", 3, 16) + bytes(16)
    with pytest.raises(PeerError, match="a second entry 3"):
        compiled.parse(blob + entry)
    with pytest.raises(PeerError, match="an unknown entry 99"):
        compiled.parse(blob + struct.pack("<II", 99, 0))
    with pytest.raises(PeerError, match="without entry 1"):
        compiled.parse(blob[:8] + entry)


def test_the_key_is_not_in_a_policys_text() -> None:
    assert repr(KEY) not in repr(compiled.parse(a_policy()))


@pytest.mark.parametrize(
    ("data", "fds", "frame"),
    [
        (daemon.attached(65536, 7, 9), 4, wire.Attached(65536, 7)),
        (daemon.down("why"), 1, wire.Down("why")),
        (daemon.refused(RefusalCode.LIMIT, "why"), 0, wire.Refused(3, "why")),
        (daemon.drain(), 0, wire.Drain()),
        (daemon.detached("why"), 0, wire.Detached("why")),
    ],
)
def test_both_ends_speak_the_same_frames(data: bytes, fds: int, frame: wire.Frame) -> None:
    assert wire.parse(data, fds) == frame
    for wrong in {0, 1, 2, 4} - {fds}:
        with pytest.raises(PeerError, match="descriptors"):
            wire.parse(data, wrong)
    with pytest.raises(PeerError):
        wire.parse(data[:-1], fds)


def test_requests_are_those_that_the_daemon_reads() -> None:
    assert daemon.parse(wire.encode_attach("tenant", "plugin")) == daemon.AttachRequest("tenant", "plugin")
    assert daemon.parse(wire.encode_broken("why")) == daemon.BrokenReport("why")
    with pytest.raises(PeerError, match="plugin: a name of 256 bytes"):
        wire.encode_attach("t", "p" * 256)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=64), st.integers(16, 20), st.integers(0, 5))
def test_any_frame_is_read_or_refused(payload: bytes, kind: int, fds: int) -> None:
    data = struct.pack("<4sHHII", b"SBXA", 1, kind, len(payload), 0) + payload
    try:
        frame = wire.parse(data, fds)
    except PeerError:
        return
    assert getattr(frame, "reason", "").isprintable()


def test_attributes_are_hidden_and_encoded_by_type() -> None:
    policy = RedactionPolicy(properties=(PropertyRule(("source", "address")),))
    encoded = attributes.properties(
        {
            "source.address": "1.2.3.4:5",
            "request.size": 3,
            "request.flag": True,
            ("a", "b.c"): b"\xff",
            "request.headers": [(b"cookie", b"hidden"), (b"a", b"1")],
        },
        Redactor(policy, KEY),
    )
    found = dict(decode(encoded))
    assert b"source\0address" not in found
    assert found[b"request\0size"] == struct.pack("<q", 3)
    assert found[b"request\0flag"] == b"\1"
    assert found[b"a\0b.c"] == b"\xff"
    assert decode(found[b"request\0headers"]) == [(b"a", b"1")]
    with pytest.raises(ValueError, match=r"attribute request\.size"):
        attributes.properties({"request.size": 1 << 70}, Redactor(policy, KEY))
