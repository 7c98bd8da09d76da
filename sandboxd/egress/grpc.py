"""
gRPC to one upstream, by grpcio. The channel is made to addresses that the guard has seen, never to a name.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc

from sandboxd.channel.pairs import Pair
from sandboxd.egress.resolve import GuardedResolver, Lookup
from sandboxd.policy.callouts import Upstream
from sandboxd.supervisor.upstream_tls import Material

FRESH_S = 30.0
"""How long addresses are used before the name is looked up again."""


@dataclass(slots=True, eq=False)
class _Line:
    channel: grpc.aio.Channel
    addresses: list[str]
    """Sorted: many names answer in another order each time."""
    calls: int = 0


class GrpcUpstream:
    """
    Args:
        upstream: its policy, of scheme grpc or grpcs.
        material: what its TLS needs.
        lookup: resolves names.
    """

    def __init__(self, upstream: Upstream, material: Material, lookup: Lookup) -> None:
        self._upstream = upstream
        self._material = material
        self._guard = GuardedResolver(upstream.allow_addresses, lookup)
        self._lock = asyncio.Lock()
        self._line: _Line | None = None
        """That of new calls. Calls that began on another one keep it open until they end."""
        self._finished = False
        self._looked_up_s = 0.0

    @asynccontextmanager
    async def channel(self) -> AsyncIterator[grpc.aio.Channel]:
        """
        Lend a channel to the upstream's addresses of now, for the length of a call.

        Raises:
            AddressRefusedError: its name leads where it must not.
            OSError: it has no address.
        """
        line = await self._current()
        line.calls += 1
        try:
            yield line.channel
        finally:
            line.calls -= 1
            await self._close_if_over(line)

    async def _current(self) -> _Line:
        async with self._lock:
            now_s = asyncio.get_running_loop().time()
            if self._line is not None and now_s - self._looked_up_s < FRESH_S:
                return self._line
            found = _of_one_family(await self._guard.addresses(self._upstream.host, self._upstream.port))
            self._looked_up_s = now_s
            if self._line is None or sorted(found) != self._line.addresses:
                fresh = _Line(self._connect(_target(found, self._upstream.port)), sorted(found))
                before, self._line = self._line, fresh
                if before is not None:
                    await self._close_if_over(before)
            return self._line

    def _connect(self, target: str) -> grpc.aio.Channel:
        upstream = self._upstream
        options: list[tuple[str, Any]] = [
            ("grpc.default_authority", upstream.authority),
            ("grpc.enable_http_proxy", 0),
            ("grpc.enable_retries", 0),
            ("grpc.service_config_disable_resolution", 1),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.max_receive_message_length", upstream.response_bytes),
            ("grpc.max_send_message_length", upstream.request_bytes),
            # gRPC bounds a compressed message only when it is unpacked: of all tenants' memory that would be.
            ("grpc.compression_enabled_algorithms_bitset", 1),
            ("grpc.per_message_decompression", 0),
            ("grpc.max_metadata_size", 16 * 1024),
            ("grpc.max_reconnect_backoff_ms", 5000),
        ]
        if not upstream.scheme.is_tls:
            return grpc.aio.insecure_channel(target, options)
        name = upstream.tls.sni or upstream.host
        material = self._material
        credentials = grpc.ssl_channel_credentials(
            material.ca or None, material.key or None, material.certificate or None
        )
        return grpc.aio.secure_channel(target, credentials, [*options, ("grpc.ssl_target_name_override", name)])

    async def _close_if_over(self, line: _Line) -> None:
        if not line.calls and (line is not self._line or self._finished):
            if line is self._line:
                self._line = None
            await line.channel.close(None)

    async def finish(self) -> None:
        """Close each connection as soon as no call is on it; calls that have just begun may still make one."""
        self._finished = True
        if self._line is not None:
            await self._close_if_over(self._line)

    async def close(self) -> None:
        """Close the connections now, whatever new calls are on them; those of older addresses end with theirs."""
        if self._line is not None:
            await self._line.channel.close(None)


def _of_one_family(addresses: list[str]) -> list[str]:
    """Return those of IPv4, or else those of IPv6: gRPC's target cannot mix them."""
    return [text for text in addresses if ":" not in text] or addresses


def _target(addresses: list[str], port: int) -> str:
    if ":" in addresses[0]:
        return "ipv6:" + ",".join(f"[{text}]:{port}" for text in addresses)
    return "ipv4:" + ",".join(f"{text}:{port}" for text in addresses)


def metadata_pairs(metadata: Any) -> list[Pair]:
    """Return gRPC metadata as it went over the wire."""
    return [_pair(name, value) for name, value in metadata or ()]


def _pair(name: str, value: str | bytes) -> Pair:
    if isinstance(value, bytes) and name.endswith("-bin"):
        return name.encode(), base64.b64encode(value).rstrip(b"=")
    return name.encode(), value if isinstance(value, bytes) else value.encode()
