"""
gRPC to one upstream, by grpcio. The channel is made to addresses that the guard has seen, never to a name.
"""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import grpc

from sandboxd.channel.pairs import Pair
from sandboxd.egress.resolve import GuardedResolver, Lookup
from sandboxd.policy.callouts import Upstream
from sandboxd.supervisor.upstream_tls import Material

FRESH_S = 30.0
"""How long addresses are used before the name is looked up again."""


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
        self._channel: grpc.aio.Channel | None = None
        self._target = ""
        self._looked_up_s = 0.0
        self._old: set[asyncio.Task[None]] = set()

    async def channel(self) -> grpc.aio.Channel:
        """
        Return a channel to the upstream's addresses of now.

        Raises:
            AddressRefusedError: its name leads where it must not.
            OSError: it has no address.
        """
        async with self._lock:
            now_s = asyncio.get_running_loop().time()
            if self._channel is not None and now_s - self._looked_up_s < FRESH_S:
                return self._channel
            target = _target(await self._guard.addresses(self._upstream.host, self._upstream.port), self._upstream.port)
            self._looked_up_s = now_s
            if self._channel is None or target != self._target:
                self._retire()
                self._target, self._channel = target, self._connect(target)
            return self._channel

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

    def _retire(self) -> None:
        if self._channel is not None:
            # Calls of the old addresses have their timeout to end in.
            task = asyncio.ensure_future(self._channel.close(self._upstream.timeout_ms / 1000))
            self._old.add(task)
            task.add_done_callback(self._old.discard)

    async def close(self) -> None:
        """Close all connections."""
        if self._channel is not None:
            await self._channel.close(None)


def _target(addresses: list[str], port: int) -> str:
    """Return gRPC's target of the addresses of one family: a target cannot mix them."""
    sixes = [text for text in addresses if ":" in text]
    fours = [text for text in addresses if ":" not in text]
    if fours:
        return "ipv4:" + ",".join(f"{text}:{port}" for text in fours)
    return "ipv6:" + ",".join(f"[{text}]:{port}" for text in sixes)


def metadata_pairs(metadata: Any) -> list[Pair]:
    """Return gRPC metadata as it went over the wire."""
    return [_pair(name, value) for name, value in metadata or ()]


def _pair(name: str, value: str | bytes) -> Pair:
    if isinstance(value, bytes) and name.endswith("-bin"):
        return name.encode(), base64.b64encode(value).rstrip(b"=")
    return name.encode(), value if isinstance(value, bytes) else value.encode()
