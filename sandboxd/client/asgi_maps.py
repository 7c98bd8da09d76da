"""ASGI's scopes and messages as header maps of a proxy, and back. Pure."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any
from urllib.parse import unquote_to_bytes

from sandboxd.channel.pairs import Pair
from sandboxd.client.attributes import Name, Value
from sandboxd.policy.write_rules import LocalResponse

Scope = MutableMapping[str, Any]

KEPT_EXTENSIONS = frozenset({"tls", "http.response.trailers"})
"""The others send something past the filter (files by path, pushes, hints)."""


def request_pairs(scope: Scope) -> list[Pair]:
    """Return the request's headers as HTTP/2 writes them."""
    path = scope.get("raw_path") or scope["path"].encode("utf-8", "surrogateescape")
    if query := scope.get("query_string", b""):
        path += b"?" + query
    headers = [(name.lower(), value) for name, value in scope["headers"]]
    pairs = [
        (b":method", scope["method"].encode()),
        (b":scheme", scope.get("scheme", "http").encode()),
        (b":path", path),
    ]
    hosts = [value for name, value in headers if name == b"host"]
    if hosts:
        pairs.append((b":authority", hosts[0]))
    return pairs + [entry for entry in headers if entry[0] != b"host"]


def with_request(scope: Scope, pairs: list[Pair]) -> Scope:
    """Return the scope of a request with these headers, without extensions that go past the filter."""
    changed = dict(scope)
    named = {name: value for name, value in pairs if name.startswith(b":")}
    headers = [(name, value) for name, value in pairs if not name.startswith(b":")]
    if b":authority" in named:
        headers.insert(0, (b"host", named[b":authority"]))
    raw_path, _, query = named[b":path"].partition(b"?")
    changed["headers"] = headers
    changed["method"] = named[b":method"].decode("ascii").upper()
    changed["scheme"] = named.get(b":scheme", b"http").decode("ascii")
    if (raw_path, query) != (scope.get("raw_path"), scope.get("query_string", b"")):
        changed["raw_path"] = raw_path
        changed["path"] = unquote_to_bytes(raw_path).decode("utf-8", "replace")
        changed["query_string"] = query
    extensions = scope.get("extensions") or {}
    changed["extensions"] = {name: value for name, value in extensions.items() if name in KEPT_EXTENSIONS}
    return changed


def is_bodiless(scope: Scope) -> bool | None:
    """Return whether the request has no body; None: only its first message tells."""
    names = {name.lower(): value for name, value in scope["headers"]}
    if b"transfer-encoding" in names:
        return False
    length = names.get(b"content-length")
    if length is not None:
        return bool(length.strip() == b"0")
    return True if scope.get("http_version", "1.1").startswith("1") else None


def attributes(scope: Scope) -> dict[Name, Value]:
    """Return what is known of the connection and the request."""
    found: dict[Name, Value] = {
        "request.protocol": f"HTTP/{scope.get('http_version', '1.1')}",
        "request.method": scope["method"],
        "request.scheme": scope.get("scheme", "http"),
    }
    pairs = dict(request_pairs(scope))
    path = pairs[b":path"]
    found["request.path"] = path
    found["request.url_path"], _, found["request.query"] = path.partition(b"?")
    if b":authority" in pairs:
        found["request.host"] = pairs[b":authority"]
    for side, key in (("source", "client"), ("destination", "server")):
        if scope.get(key):
            host, port = scope[key]
            found[f"{side}.address"] = f"{host}:{port}" if port is not None else str(host)
            if port is not None:
                found[f"{side}.port"] = int(port)
    return found


def response_pairs(start: MutableMapping[str, Any]) -> list[Pair]:
    """Return the headers of a response with its status."""
    headers = [(bytes(name).lower(), bytes(value)) for name, value in start.get("headers", ())]
    return [(b":status", b"%d" % start["status"]), *headers]


def response_start(pairs: list[Pair], *, trailers: bool) -> dict[str, Any]:
    """Return the message that begins a response with these headers."""
    status = next(int(value) for name, value in pairs if name == b":status")
    headers = [(name, value) for name, value in pairs if not name.startswith(b":")]
    start: dict[str, Any] = {"type": "http.response.start", "status": status, "headers": headers}
    if trailers:
        start["trailers"] = True
    return start


def with_length(pairs: list[Pair], length: int) -> list[Pair]:
    """Return headers whose ``content-length``, if there is one, is right."""
    name = b"content-length"
    return [(key, b"%d" % length if key == name else value) for key, value in pairs]


def local_messages(response: LocalResponse, *, head: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the messages of a plugin's own response."""
    pairs = [(b":status", b"%d" % response.status), *response.headers]
    names = {name for name, _ in pairs}
    if response.body and b"content-type" not in names:
        pairs.append((b"content-type", b"text/plain"))
    if response.grpc_status is not None and b"grpc-status" not in names:
        pairs.append((b"grpc-status", b"%d" % response.grpc_status))
    pairs.append((b"content-length", b"%d" % len(response.body)))
    body = {"type": "http.response.body", "body": b"" if head else response.body, "more_body": False}
    return response_start(pairs, trailers=False), body
