"""Whatever a plugin asks for: it is denied, or what goes out is within the policy and means one thing to everybody."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxd.channel.pairs import encode
from sandboxd.egress.rules import DeniedError, grpc_request, http_request
from sandboxd.policy.callouts import Method, Scheme, Upstream
from sandboxd.policy.read_callouts import NEVER_SET
from sandboxd.protos import control_pb2 as control

WEB = Upstream("web", Scheme.HTTP, "a", 80, ("/v1/*",), headers=("x-*", "*"), methods=frozenset({Method.GET}))
RPC = Upstream("rpc", Scheme.GRPC, "a", 80, ("/test.Echo/*",), headers=("*",))
NAMES = st.one_of(
    st.sampled_from([name.encode() for name in sorted(NEVER_SET)]),
    st.sampled_from(
        [b"Host", b"x-a", b"X-A", b":method", b":path", b":scheme", b"x-a\r\nx", b"", b"grpc-timeout", b"a-bin"]
    ),
    st.binary(max_size=12),
)
VALUES = st.one_of(
    st.sampled_from([b"1", b"a\r\nb: c", b"a\x00", b"\xff", b"\xc3\xa9", b"chunked"]), st.binary(max_size=12)
)
HEADERS = st.lists(st.tuples(NAMES, VALUES), max_size=4)
PIECES = st.sampled_from(
    ["v1", "..", ".", "%2e%2E", "%2f", "a", "", ";x", "?", "#", "\\", "%00", " ", "\r\n", "//", "@b", "\x7f"]
)
PATHS = st.one_of(
    st.lists(PIECES, max_size=6).map(lambda pieces: ("/" + "/".join(pieces)).encode()),
    st.lists(PIECES, max_size=6).map(lambda pieces: ("/v1/" + "".join(pieces)).encode()),
    st.binary(max_size=12),
)


@settings(max_examples=500, deadline=None)
@given(PATHS, HEADERS, st.binary(max_size=8))
def test_http(path: bytes, headers: list[tuple[bytes, bytes]], method: bytes) -> None:
    pairs = [(b":method", method if len(method) > 6 else b"GET"), (b":path", path), (b":authority", b"evil"), *headers]
    try:
        found = http_request(WEB, control.HttpCall(upstream=b"web", headers=encode(pairs)))
    except DeniedError:
        return
    assert found.method is Method.GET
    assert re.fullmatch(r"/v1/[!-~]*", found.target)
    reached = found.target.partition("?")[0]
    assert ".." not in reached.lower().replace("%2e", ".").split("/")
    assert not re.search(r"#|\\|%2f|%5c|%00", reached.lower())
    for name, value in found.headers:
        assert name not in NEVER_SET
        assert re.fullmatch(r"[a-z0-9!#$%&'*+.^_`|~-]+", name)
        assert not set(value) & {"\r", "\n", "\0"}
        assert (name.encode(), value.encode()) in [(key.lower(), sent) for key, sent in headers]


def test_trailers_are_denied_not_dropped() -> None:
    """A signature in them would be missing without a word; none at all is fine."""
    headers = encode([(b":method", b"GET"), (b":path", b"/v1/a"), (b":authority", b"a")])
    assert http_request(WEB, control.HttpCall(upstream=b"web", headers=headers, trailers=encode([]))).target == "/v1/a"
    with pytest.raises(DeniedError) as caught:
        http_request(WEB, control.HttpCall(upstream=b"web", headers=headers, trailers=encode([(b"x-sum", b"1")])))
    assert caught.value.rule == "trailers"


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=16), st.binary(max_size=8), HEADERS)
def test_grpc(service: bytes, method: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    for name, rpc in ((service, method), (b"test.Echo", method), (b"test.Echo", b"Unary")):
        call = control.GrpcCall(upstream=b"rpc", service=name, method=rpc, metadata=encode(headers))
        try:
            found = grpc_request(RPC, call)
        except DeniedError:
            continue
        assert re.fullmatch(r"/test\.Echo/[A-Za-z_][A-Za-z0-9_.]*", found.path)
        for key, value in found.metadata:
            assert key not in NEVER_SET
            assert not key.startswith("grpc-")
            assert key.endswith("-bin") == isinstance(value, bytes)
