"""Policies and header maps that property tests draw: names and values that rules, hashes and masks are about."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from hypothesis import strategies as st

from sandboxd.policy.capabilities import PRESETS, needs
from sandboxd.policy.capability_names import HTTP_CALLBACKS
from sandboxd.policy.model import HeaderRule, ModuleRef, PluginPolicy, RedactMode, WritePolicy

KEY = bytes(range(32))
NEEDS = needs(PRESETS["standard"], HTTP_CALLBACKS)

NAMES = [
    b"a", b"A", b"b", b"x-secret", b"X-Secret", b"x-secret-two", b"cookie", b"Cookie", b"authorization",
    b":path", b":authority", b":status", b":method", b"content-length", b"host", b"te", b"connection", b"upgrade",
    b"bad name", b"", b":", b"x-tenant-a", b"caf\xc3\xa9",
]  # fmt: skip
VALUES = [
    b"", b"1", b"two", b" padded\t", b"***", b"present", b"/path", b"/a#b", b"*", b"host:80", b"200", b"100", b"GET",
    b"trailers", b"gzip", b"a\nb", b"\x7f", b"\xff", b"12345", b"x" * 40,
    hashlib.blake2b(b"1", key=KEY, digest_size=16).hexdigest().encode(),
    hashlib.blake2b(b"two", key=KEY, digest_size=16).hexdigest().encode(),
]  # fmt: skip
NAME = st.one_of(st.sampled_from(NAMES), st.sampled_from(NAMES), st.binary(max_size=3))
VALUE = st.one_of(st.sampled_from(VALUES), st.sampled_from(VALUES), st.binary(max_size=3))
MAPS = st.lists(st.tuples(NAME, VALUE), max_size=10)
PATTERNS = st.sampled_from(["a", "b", "x-secret", "x-*", "x-secret*", "cookie", "*", ":path", ":*", "content-length"])
RULES = st.lists(st.builds(HeaderRule, PATTERNS, st.sampled_from(list(RedactMode))), max_size=5).map(tuple)
WRITES = st.builds(
    WritePolicy,
    deny_headers=st.lists(PATTERNS, max_size=2).map(tuple),
    allow_headers=st.one_of(st.none(), st.lists(PATTERNS, max_size=4).map(tuple)),
    local_response=st.booleans(),
    body=st.booleans(),
    properties=st.booleans(),
    max_headers=st.integers(0, 6),
    max_header_bytes=st.sampled_from([0, 8, 100]),
    max_headers_bytes=st.sampled_from([0, 20, 1000]),
    header_maps=st.sampled_from([True, True, True, False]),
)
PATHS = st.lists(
    st.sampled_from(["request", "response", "headers", "trailers", "cookie", "Cookie", "path", "referer", "source",
                     "address", "code", "x", "ab"]),
    min_size=1, max_size=4,
).map(tuple)  # fmt: skip


def plugin(**parts: object) -> PluginPolicy:
    """A policy with nothing but these parts."""
    return replace(PluginPolicy("filter", ModuleRef(Path("a.wasm"), "0" * 64)), **parts)  # type: ignore[arg-type]
