"""The ``callouts`` part of a plugin. Pure; used by `sandboxd.policy.read_plugin`."""

from __future__ import annotations

import re
from ipaddress import IPv6Address, ip_address, ip_network
from pathlib import Path
from urllib.parse import urlsplit

from sandboxd import limits
from sandboxd.policy.callouts import CalloutPolicy, Method, Network, Scheme, Upstream, UpstreamTls
from sandboxd.policy.model import RedactMode
from sandboxd.policy.read_rules import header_pattern
from sandboxd.yaml_nodes import Section, Value

_UPSTREAM_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._|:/-]{0,254}")
_UPSTREAM_FORM = "1 to 255 of letters, digits and . _ | : / -, not beginning with a mark (Envoy's cluster names fit)"
_HOST_NAME = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*")
_NUMBERS = re.compile(r"(?:0x[0-9a-f]*|[0-9]+)(?:\.(?:0x[0-9a-f]*|[0-9]+))*")
_URL_FORM = "http://HOST[:PORT], https://..., grpc://HOST:PORT or grpcs://..., without path"
_PATH = re.compile(r"/[!-)+-\[\]-~]*\*?")
_PATH_FORM = "a path from /, exact or with * at its end, such as /v1/check or /v1/*"
_PORTS = {Scheme.HTTP: 80, Scheme.HTTPS: 443}
NEVER_SET = frozenset(
    {
        "host",
        "connection",
        "keep-alive",
        "proxy-connection",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "http2-settings",
        "expect",
        "content-length",
    }
)
"""Headers that say where a request goes or where it ends: no policy can let a plugin set them."""
_KEYS = (
    "url",
    "methods",
    "paths",
    "headers",
    "redact_response_headers",
    "request_bytes",
    "response_bytes",
    "timeout",
    "stream_timeout",
    "concurrency",
    "rate",
    "retries",
    "tls",
    "allow_addresses",
)


def read_callouts(value: Value | None, root: Path) -> CalloutPolicy:
    """Read a plugin's ``callouts``; files of TLS are relative to ``root``."""
    default = CalloutPolicy()
    if value is None:
        return default
    section = value.section(("concurrency", "timeout", "upstreams"))
    concurrency, timeout = section.get("concurrency"), section.get("timeout")
    default_ms = _timeout(timeout) if timeout else limits.DEFAULT_CALLOUT_TIMEOUT_MS
    entries = section.need("upstreams").mapping()
    if len(entries) > limits.MAX_UPSTREAMS:
        raise value.fail(f"has {len(entries)} upstreams, at most {limits.MAX_UPSTREAMS} are allowed")
    return CalloutPolicy(
        upstreams=tuple(_upstream(name, entry, default_ms, root) for name, entry in entries.items()),
        concurrency=concurrency.integer(1, limits.MAX_CALLOUTS) if concurrency else default.concurrency,
    )


def _timeout(value: Value) -> int:
    return value.duration_ms(1, limits.MAX_CALLOUT_TIMEOUT_MS)


def _stream_timeout(value: Value) -> int:
    return value.duration_ms(1, limits.MAX_STREAM_TIMEOUT_MS)


def _upstream(name: str, value: Value, default_ms: int, root: Path) -> Upstream:
    if not _UPSTREAM_NAME.fullmatch(name):
        raise value.fail(f"{name[:70]!r} is not a name of an upstream", (_UPSTREAM_FORM,))
    section = value.section(_KEYS)
    url = section.need("url")
    scheme, host, port = _url(url)
    default = Upstream(name, scheme, host, port, ())
    methods, headers, redact = section.get("methods"), section.get("headers"), section.get("redact_response_headers")
    if methods and scheme.is_grpc:
        raise methods.fail("is for HTTP upstreams; name gRPC's methods under paths")
    stream_timeout = section.get("stream_timeout")
    if stream_timeout and not scheme.is_grpc:
        raise stream_timeout.fail(f"is for gRPC upstreams, but the url begins with {scheme}", ("grpc://", "grpcs://"))
    request, response, timeout = (section.get(key) for key in ("request_bytes", "response_bytes", "timeout"))
    concurrency, rate, retries = (section.get(key) for key in ("concurrency", "rate", "retries"))
    addresses = section.get("allow_addresses")
    return Upstream(
        name=name,
        scheme=scheme,
        host=host,
        port=port,
        paths=_paths(section.need("paths")),
        methods=_methods(methods) if methods else default.methods,
        headers=_headers(headers) if headers else default.headers,
        redact=_redact(redact) if redact else (),
        request_bytes=request.size(0, limits.MAX_CALLOUT_REQUEST_BYTES) if request else default.request_bytes,
        response_bytes=response.size(0, limits.MAX_CALLOUT_RESPONSE_BYTES) if response else default.response_bytes,
        timeout_ms=_timeout(timeout) if timeout else default_ms,
        stream_timeout_ms=_stream_timeout(stream_timeout) if stream_timeout else default.stream_timeout_ms,
        concurrency=concurrency.integer(1, limits.MAX_CALLOUTS) if concurrency else default.concurrency,
        rate=rate.number(0.01, limits.MAX_CALLOUT_RATE) if rate else None,
        retries=retries.integer(0, limits.MAX_CALLOUT_RETRIES) if retries else 0,
        tls=_tls(section, scheme, root),
        allow_addresses=tuple(map(_network, addresses.items(most=limits.MAX_RULES))) if addresses else (),
    )


def _url(value: Value) -> tuple[Scheme, str, int]:
    text = value.string()
    try:
        parts = urlsplit(text)
        scheme, host, port = Scheme(parts.scheme), parts.hostname or "", parts.port
    except ValueError:
        raise value.fail(f"{text[:70]!r} is not the URL of an upstream", (_URL_FORM,)) from None
    rest = parts.path.removesuffix("/") or parts.query or parts.fragment or "@" in parts.netloc
    if rest or not host or not text.isascii() or any(char.isspace() for char in text):
        raise value.fail(f"{text[:70]!r} is not the URL of an upstream", (_URL_FORM,))
    port = port or _PORTS.get(scheme)
    if port is None:
        raise value.fail("needs a port", (_URL_FORM,))
    return scheme, _host(value, host.removesuffix(".")), port


def _host(value: Value, host: str) -> str:
    """Accept names and canonical addresses: what a C library would read as an address in disguise is refused."""
    try:
        address = ip_address(host)
    except ValueError:
        if not _HOST_NAME.fullmatch(host) or len(host) > 253 or _NUMBERS.fullmatch(host):
            allowed = ("a DNS name", "an address as 192.0.2.1 or [2001:db8::1]")
            raise value.fail(f"{host[:70]!r} is not a host", allowed) from None
        return host
    if isinstance(address, IPv6Address) and address.scope_id:
        raise value.fail("must not name an interface")
    return str(address)


def _paths(value: Value) -> tuple[str, ...]:
    paths = []
    for item in value.items(most=limits.MAX_RULES):
        text = item.string()
        if not _PATH.fullmatch(text) or "?" in text or "#" in text:
            raise item.fail(f"{text[:70]!r} is not a pattern of paths", (_PATH_FORM,))
        paths.append(text)
    if not paths:
        raise value.fail("needs at least one path", (_PATH_FORM,))
    return tuple(paths)


def _methods(value: Value) -> frozenset[Method]:
    return frozenset(item.choice(Method) for item in value.items(most=len(Method)))


def _headers(value: Value) -> tuple[str, ...]:
    found = []
    for item in value.items(most=limits.MAX_RULES):
        pattern = header_pattern(item, item.string())
        if pattern in NEVER_SET or pattern.startswith(":"):
            raise item.fail(f"{pattern} is never a plugin's to set")
        found.append(pattern)
    return tuple(found)


def _redact(value: Value) -> tuple[tuple[str, str], ...]:
    if value.is_sequence():
        items = value.items(most=limits.MAX_RULES)
        return tuple((header_pattern(item, item.string()), RedactMode.DROP.value) for item in items)
    rules = value.mapping().items()
    return tuple((header_pattern(mode, name), mode.choice(RedactMode).value) for name, mode in rules)


def _network(value: Value) -> Network:
    text = value.string()
    try:
        return ip_network(text)
    except ValueError as error:
        problem = str(error) if "host bits" in str(error) else f"{text[:70]!r} is not a network"
        raise value.fail(problem, ("127.0.0.0/8", "10.1.2.3", "fd00::/8")) from None


def _tls(section: Section, scheme: Scheme, root: Path) -> UpstreamTls:
    value = section.get("tls")
    if value is None:
        return UpstreamTls()
    if not scheme.is_tls:
        raise value.fail(f"is for https and grpcs, but the url begins with {scheme}")
    inner = value.section(("ca", "certificate", "key", "sni"))
    ca, certificate, key, sni = (inner.get(name) for name in ("ca", "certificate", "key", "sni"))
    if (certificate is None) != (key is None):
        raise value.fail("needs certificate and key, or neither")
    if sni and not _HOST_NAME.fullmatch(sni.string()):
        raise sni.fail(f"{sni.string()[:70]!r} is not a DNS name in lower case")
    return UpstreamTls(
        ca=root / ca.string() if ca else None,
        certificate=root / certificate.string() if certificate else None,
        key=root / key.string() if key else None,
        sni=sni.string() if sni else "",
    )
