"""
What a plugin may call: upstreams by name, and the bounds of all calls together. Frozen; nothing is allowed unasked.

See ``callouts`` in ``docs/policy.md``; `sandboxd.policy.read_callouts` fills it, `sandboxd.egress` decides by it.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import TypeAlias

from sandboxd import limits

Network: TypeAlias = IPv4Network | IPv6Network


class Scheme(enum.StrEnum):
    """What an upstream speaks."""

    HTTP = "http"
    HTTPS = "https"
    GRPC = "grpc"
    GRPCS = "grpcs"

    @property
    def is_grpc(self) -> bool:
        """Whether gRPC calls and streams go there, and nothing else."""
        return self in (Scheme.GRPC, Scheme.GRPCS)

    @property
    def is_tls(self) -> bool:
        """Whether the connection is encrypted and the upstream's certificate checked."""
        return self in (Scheme.HTTPS, Scheme.GRPCS)


class Method(enum.StrEnum):
    """HTTP methods that a policy can allow. CONNECT and TRACE are not among them."""

    GET = "GET"
    HEAD = "HEAD"
    POST = "POST"
    PUT = "PUT"
    PATCH = "PATCH"
    DELETE = "DELETE"
    OPTIONS = "OPTIONS"


@dataclass(frozen=True, slots=True)
class UpstreamTls:
    """Files in PEM, and the name that the upstream's certificate must bear."""

    ca: Path | None = None
    """None: the machine's authorities."""
    certificate: Path | None = None
    key: Path | None = None
    sni: str = ""
    """Empty: the host of the URL."""


@dataclass(frozen=True, slots=True)
class Upstream:
    """One place that may be called, and how."""

    name: str
    scheme: Scheme
    host: str
    """A name or an address, never a port."""
    port: int
    paths: tuple[str, ...]
    """Exact, or with ``*`` at the end. Of gRPC: ``/package.Service/Method``."""
    methods: frozenset[Method] = frozenset({Method.GET})
    headers: tuple[str, ...] = ("accept", "content-type")
    """Names that a plugin may set, lower case; a ``*`` at the end matches every name that begins so."""
    redact: tuple[tuple[str, str], ...] = ()
    """Of the response, over the defaults: header pattern and mode."""
    request_bytes: int = limits.DEFAULT_CALLOUT_REQUEST_BYTES
    response_bytes: int = limits.DEFAULT_CALLOUT_RESPONSE_BYTES
    timeout_ms: int = limits.DEFAULT_CALLOUT_TIMEOUT_MS
    """Most; a plugin may ask for less. Of gRPC streams: most from one message, either way, to the next."""
    stream_timeout_ms: int = limits.DEFAULT_STREAM_TIMEOUT_MS
    """Of gRPC streams: most from beginning to end, time in which the plugin does not read included."""
    concurrency: int = limits.DEFAULT_UPSTREAM_CALLOUTS
    rate: float | None = None
    """Calls per second, with a burst of one second's; None: no limit."""
    retries: int = 0
    """Only of what cannot have had an effect, or may have it twice; see `sandboxd.egress.http`."""
    tls: UpstreamTls = UpstreamTls()
    allow_addresses: tuple[Network, ...] = ()
    """Networks that the SSRF guard would refuse."""

    @property
    def authority(self) -> str:
        """Host and, if it is not the scheme's own, port: what ``Host`` says."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        usual = {Scheme.HTTP: 80, Scheme.HTTPS: 443}.get(self.scheme)
        return host if self.port == usual else f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class CalloutPolicy:
    """All upstreams of a plugin."""

    upstreams: tuple[Upstream, ...] = ()
    concurrency: int = limits.DEFAULT_CALLOUTS
    """In flight, over all upstreams."""

    def upstream(self, name: str) -> Upstream | None:
        """Return the upstream of that name, None if there is none."""
        return next((upstream for upstream in self.upstreams if upstream.name == name), None)
