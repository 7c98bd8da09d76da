"""The callouts section: what it reads, and what it refuses."""

from __future__ import annotations

import pytest

from sandboxd.errors import PolicyError
from sandboxd.policy.callouts import CalloutPolicy
from sandboxd.policy.load import parse_policy

HEAD = "tenant: acme\nplugins:\n- name: a\n  module: {file: a.wasm, sha256: '" + "0" * 64 + "'}\n"


def load(upstream: str) -> CalloutPolicy:
    text = f"{HEAD}  callouts:\n    upstreams:\n      auth: {upstream}\n"
    return parse_policy(text, "p.yaml", module_root=None).plugins[0].callouts


def test_defaults_are_narrow() -> None:
    found = load("{url: 'https://auth.example', paths: [/check]}").upstream("auth")
    assert found is not None
    assert (found.host, found.port, found.retries, set(found.methods)) == ("auth.example", 443, 0, {"GET"})
    assert found.allow_addresses == ()


def test_a_streams_whole_time() -> None:
    """An hour unless it says otherwise."""
    usual = load("{url: 'grpc://a:1', paths: [/], timeout: 5s}").upstream("auth")
    longest = load("{url: 'grpcs://a:1', paths: [/], stream_timeout: 1440m}").upstream("auth")
    assert usual is not None
    assert (usual.timeout_ms, usual.stream_timeout_ms) == (5_000, 3_600_000)
    assert longest is not None
    assert longest.stream_timeout_ms == 86_400_000


@pytest.mark.parametrize(
    ("upstream", "problem"),
    [
        ("{url: 'http://2130706433', paths: [/]}", "is not a host"),
        ("{url: 'http://0177.0.0.1', paths: [/]}", "is not a host"),
        ("{url: 'http://0x7f.1', paths: [/]}", "is not a host"),
        ("{url: 'http://a@b', paths: [/]}", "is not the URL"),
        ("{url: 'http://a/b', paths: [/]}", "is not the URL"),
        ("{url: 'ftp://a', paths: [/]}", "is not the URL"),
        ("{url: 'grpc://a', paths: [/]}", "needs a port"),
        ("{url: 'http://a'}", "needs the key paths"),
        ("{url: 'http://a', paths: [x]}", "is not a pattern of paths"),
        ("{url: 'http://a', paths: [/], methods: [CONNECT]}", "CONNECT"),
        ("{url: 'http://a', paths: [/], headers: [Host]}", "never a plugin's"),
        ("{url: 'http://a', paths: [/], allow_addresses: [127.0.0.1/8]}", "host bits"),
        ("{url: 'http://a', paths: [/], tls: {ca: x}}", "is for https"),
        ("{url: 'http://a', paths: [/], stream_timeout: 1s}", "is for gRPC upstreams"),
        ("{url: 'grpc://a:1', paths: [/], stream_timeout: 0ms}", "1ms to 1440m"),
        ("{url: 'grpc://a:1', paths: [/], stream_timeout: 1441m}", "1ms to 1440m"),
        ("{url: 'grpc://a:1', paths: [/], stream_timeout: never}", "is not a duration"),
    ],
)
def test_refused(upstream: str, problem: str) -> None:
    with pytest.raises(PolicyError, match="auth") as caught:
        load(upstream)
    assert problem in str(caught.value)
