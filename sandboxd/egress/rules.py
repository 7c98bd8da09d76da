"""
What a plugin asks for, held against its upstream's policy. Pure.

A call that passes is a value that cannot say anything else any more: method, path and headers are those that go out.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

from sandboxd import limits
from sandboxd.channel.errors import PairsError
from sandboxd.channel.pairs import Pair, decode
from sandboxd.policy.callouts import Method, Upstream
from sandboxd.policy.read_callouts import NEVER_SET
from sandboxd.protos import control_pb2 as control

_TOKEN = re.compile(rb"[a-z0-9!#$%&'*+.^_`|~-]+")
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_PATH = re.compile(r"/[!-\"$-\[\]^-~]*")
_RPC_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]{0,1000}")
_DOTS = re.compile(r"(?:^|/)(?:\.|%2e){1,2}(?:;[^/]*)?(?=/|$)", re.IGNORECASE)
_HIDDEN_MARKS = re.compile(r"%(?:2f|5c|00|25)", re.IGNORECASE)
_SKIPPED = frozenset({b":authority", b"host", b":scheme", b"content-length"})
"""What the ABI makes a plugin say, or every proxy recomputes: the policy's own goes out in its place."""

TextPair: TypeAlias = tuple[str, str | bytes]


class DeniedError(Exception):
    """
    The policy does not allow it.

    Args:
        rule: the key of the policy, or what every policy forbids.
        detail: what was asked; may hold anything a plugin says.
    """

    def __init__(self, rule: str, detail: str) -> None:
        super().__init__(f"{rule}: {detail}")
        self.rule = rule
        self.detail = detail


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """An HTTP request that may go out."""

    method: Method
    target: str
    """Path and query."""
    headers: tuple[tuple[str, str], ...]
    """Without Host, Content-Length and all that belongs to the connection."""
    body: bytes
    timeout_ms: int


@dataclass(frozen=True, slots=True)
class GrpcRequest:
    """A gRPC call or stream that may be begun."""

    path: str
    """``/package.Service/Method``."""
    metadata: tuple[TextPair, ...]
    message: bytes
    timeout_ms: int


def http_request(upstream: Upstream, call: control.HttpCall) -> HttpRequest:
    """
    Return what goes out for a call.

    Raises:
        DeniedError: the policy does not allow it.
    """
    if upstream.scheme.is_grpc:
        raise DeniedError("url", f"{upstream.name} speaks gRPC")
    _fits(upstream, len(call.headers) + len(call.body) + len(call.trailers))
    pairs = _pairs(call.headers)
    if _pairs(call.trailers):
        raise DeniedError("trailers", "requests with trailers are not sent on")
    return HttpRequest(
        method=_method(upstream, _one(pairs, b":method")),
        target=_target(upstream, _one(pairs, b":path")),
        headers=tuple(_header(name, value) for name, value in _headers(upstream, pairs, (b":method", b":path"))),
        body=call.body,
        timeout_ms=timeout_ms(upstream, call.timeout_ms),
    )


def grpc_request(upstream: Upstream, call: control.GrpcCall) -> GrpcRequest:
    """
    Return what is begun for a call or stream.

    Raises:
        DeniedError: the policy does not allow it.
    """
    if not upstream.scheme.is_grpc:
        raise DeniedError("url", f"{upstream.name} speaks HTTP")
    _fits(upstream, len(call.metadata) + len(call.message))
    names = [name.decode("latin-1") for name in (call.service, call.method)]
    if not all(_RPC_NAME.fullmatch(name) for name in names):
        raise DeniedError("paths", f"/{names[0]}/{names[1]} is no gRPC method")
    path = f"/{names[0]}/{names[1]}"
    _allowed_path(upstream, path)
    return GrpcRequest(
        path=path,
        metadata=tuple(_metadata(name, value) for name, value in _headers(upstream, _pairs(call.metadata), ())),
        message=call.message,
        timeout_ms=timeout_ms(upstream, call.timeout_ms),
    )


def check_message(upstream: Upstream, message: bytes) -> None:
    """Check a message of a stream. Raises DeniedError."""
    _fits(upstream, len(message))


def timeout_ms(upstream: Upstream, asked_ms: int) -> int:
    """Return the time that a call has: what the plugin asks for (0: nothing), at most the policy's."""
    return min(asked_ms or upstream.timeout_ms, upstream.timeout_ms)


def _fits(upstream: Upstream, size: int) -> None:
    if size > upstream.request_bytes:
        raise DeniedError("request_bytes", f"{size} bytes, at most {upstream.request_bytes}")


def _pairs(data: bytes) -> list[Pair]:
    try:
        return [(name.lower(), value) for name, value in decode(data)]
    except PairsError as error:
        raise DeniedError("headers", f"no header map: {error}") from None


def _one(pairs: Iterable[Pair], name: bytes) -> str:
    values = [value for key, value in pairs if key == name]
    if len(values) != 1:
        raise DeniedError("headers", f"{len(values)} headers {name.decode()}, not one")
    return values[0].decode("latin-1")


def _method(upstream: Upstream, text: str) -> Method:
    if text not in upstream.methods:
        raise DeniedError("methods", text)
    return Method(text)


def _target(upstream: Upstream, target: str) -> str:
    """
    Accept a path and query in origin form alone, and a path that means one thing to everybody who reads it: what
    servers take for a step upwards, or for another separator, would lead out of the patterns.
    """
    if len(target) > limits.MAX_HEADER_BYTES or not _PATH.fullmatch(target):
        raise DeniedError("paths", f"{target} is not a path from / without spaces, # and control characters")
    path, _, _ = target.partition("?")
    if path.startswith("//") or "\\" in path or _DOTS.search(path) or _HIDDEN_MARKS.search(path):
        raise DeniedError("paths", f"{path} can be read in more than one way")
    _allowed_path(upstream, path)
    return target


def _allowed_path(upstream: Upstream, path: str) -> None:
    if not any(_matches(pattern, path) for pattern in upstream.paths):
        raise DeniedError("paths", path)


def _matches(pattern: str, text: str) -> bool:
    return text.startswith(pattern[:-1]) if pattern.endswith("*") else text == pattern


def _headers(upstream: Upstream, pairs: Iterable[Pair], taken: tuple[bytes, ...]) -> list[Pair]:
    found = []
    for name, value in pairs:
        if name in taken or name in _SKIPPED:
            continue
        text = name.decode("latin-1")
        if not _TOKEN.fullmatch(name) or len(name) > limits.MAX_HEADER_NAME_BYTES:
            raise DeniedError("headers", f"{text} is no name of a header")
        if text in NEVER_SET or not any(_matches(pattern, text) for pattern in upstream.headers):
            raise DeniedError("headers", text)
        if not _VALUE.fullmatch(value) or len(value) > limits.MAX_HEADER_BYTES:
            raise DeniedError("headers", f"the value of {text} holds what no header can")
        found.append((name, value))
    return found


def _header(name: bytes, value: bytes) -> tuple[str, str]:
    """Return it as the HTTP client wants it, which sends UTF-8 and nothing else."""
    text = name.decode()
    try:
        return text, value.decode()
    except UnicodeDecodeError:
        raise DeniedError("headers", f"the value of {text} is not UTF-8") from None


def _metadata(name: bytes, value: bytes) -> TextPair:
    text = name.decode()
    if text.startswith("grpc-"):
        raise DeniedError("headers", f"{text} is gRPC's own")
    if text.endswith("-bin"):
        try:
            return text, base64.b64decode(value + b"=" * (-len(value) % 4), validate=True)
        except ValueError:
            raise DeniedError("headers", f"{text} is not base64") from None
    if not value.isascii():
        raise DeniedError("headers", f"{text} is not ASCII")
    return text, value.decode()
