"""
The ext_proc services, HTTP's and TCP's: which plugin a gRPC stream belongs to, and how the stream ends.

A proxy may say, in the metadata of the stream, that the response headers are its last message (`LAST_KEY`). Then nobody
waits for it to end the stream: the last reply and the status leave together, which spares gRPC two of its six
operations, and they cost more than the plugin.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any

import grpc
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb

from sandboxd.errors import PeerError
from sandboxd.front.conversation import Options
from sandboxd.front.ext_proc_codec import Exchange
from sandboxd.front.network_codec import NetworkExchange
from sandboxd.front.registry import Entry, Registry
from sandboxd.front.stream import ProcessStream, UnfinishedError
from sandboxd.protos import network_ext_proc_pb2 as network_pb

METHOD = "Process"
SERVICE = "envoy.service.ext_proc.v3.ExternalProcessor"
NETWORK_SERVICE = "envoy.service.network_ext_proc.v3.NetworkExternalProcessor"
_PATH = f"/{SERVICE}/{METHOD}"
_NETWORK_PATH = f"/{NETWORK_SERVICE}/{METHOD}"
TENANT_KEY = "x-sandboxd-tenant"
PLUGIN_KEY = "x-sandboxd-plugin"
LAST_KEY = "x-sandboxd-last-message"
RESPONSE_HEADERS = "response_headers"
"""The one value of `LAST_KEY`."""
UNKNOWN_KEY = "-/-"
"""Counters of streams that name no plugin we know."""

IDLE_LIMIT_S = 3600.0
IDLE_SWEEP_S = 30.0
"""A stream without any message for this long is ended: a proxy that forgot it would keep its memory for ever."""

_Handler = Callable[[object, Any], Awaitable[bytes]]


class ExtProcService:
    """
    All ext_proc streams of this front.

    Args:
        registry: the plugins.
        allow_mode_override: see `sandboxd.front.ext_proc_codec.Exchange`.
    """

    def __init__(self, registry: Registry, *, allow_mode_override: bool = False) -> None:
        self.registry = registry
        self.streams: set[ProcessStream] = set()
        self.background: set[asyncio.Task[None]] = set()
        """Late writes; held here so that they are not collected before they end."""
        make = partial(Exchange, allow_mode_override=allow_mode_override)
        self._options = {early: Options(pb.ProcessingRequest.FromString, make, early) for early in (False, True)}
        self._network_options = Options(network_pb.ProcessingRequest.FromString, NetworkExchange)

    def handler(self, tenant: str = "") -> grpc.GenericRpcHandler[Any, Any]:
        """Return the gRPC handler; with ``tenant``, whoever connects is that tenant, whatever the metadata say."""
        return _Router(self, tenant)

    def stream(
        self, metadata: Iterable[tuple[str, str | bytes]], tenant: str, *, network: bool = False
    ) -> tuple[_Handler, bool]:
        """
        Return what serves a stream with this metadata, and whether it ends early; ``network``: of network ext_proc.

        The metadata are looked at before gRPC makes a handler of it: `ServicerContext` would build them anew.
        """
        try:
            entry, early = self._route(metadata, tenant)
            options = self._network_options if network else self._options[early]
        except PeerError as error:
            reason = str(error)

            async def refuse(_requests: object, context: Any) -> bytes:
                self.registry.counters.plugin(UNKNOWN_KEY).report("unknown_plugin", reason)
                await context.abort(grpc.StatusCode.NOT_FOUND, reason)
                return b""

            return refuse, False

        async def process(_requests: object, context: Any) -> bytes:
            stream = ProcessStream(entry, context, self._keep, options)
            self.streams.add(stream)
            try:
                return await stream.run()
            except PeerError as error:
                entry.counters.report("peer_error", str(error))
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            except UnfinishedError:
                # There is no last message that the status could go with. Nobody listens any more.
                await context.abort(grpc.StatusCode.CANCELLED, "the exchange ended before its last message")
            except asyncio.CancelledError:
                if not stream.idle:
                    raise
                await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "no message for too long")
            finally:
                self.streams.discard(stream)
                stream.close()
            return b""

        return process, options.ends_early

    def _route(self, metadata: Iterable[tuple[str, str | bytes]], tenant: str) -> tuple[Entry, bool]:
        plugin = ""
        named = ""
        last = ""
        for key, value in metadata or ():
            if key == TENANT_KEY:
                named = value if isinstance(value, str) else ""
            elif key == PLUGIN_KEY:
                plugin = value if isinstance(value, str) else ""
            elif key == LAST_KEY:
                last = str(value)
        if not (tenant or named):
            raise PeerError(f"the gRPC metadata {TENANT_KEY} is missing")
        if last not in ("", RESPONSE_HEADERS):
            raise PeerError(f"the gRPC metadata {LAST_KEY} is {last[:100]!a} (allowed: {RESPONSE_HEADERS})")
        return self.registry.find(tenant or named, plugin), bool(last)

    def _keep(self, task: asyncio.Task[None]) -> None:
        self.background.add(task)
        task.add_done_callback(self.background.discard)

    def end_idle(self) -> None:
        """End the streams that nobody uses any more."""
        oldest = time.monotonic() - IDLE_LIMIT_S
        for stream in list(self.streams):
            if stream.last_message < oldest:
                stream.entry.counters.report("idle_stream", "")
                stream.idle = True
                stream.task.cancel()


class _Router(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic in the stubs alone
    """
    gRPC's way to a stream's handler. No (de)serialisers: bytes in, bytes out.

    A stream that ends early is what gRPC calls stream-unary, since there the last message and the status are one
    operation; what is written before goes as in any stream.
    """

    def __init__(self, service: ExtProcService, tenant: str) -> None:
        self._service = service
        self._tenant = tenant

    def service(self, handler_call_details: Any) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Return the handler of one call, None if the method is not ours."""
        method = handler_call_details.method
        if method not in (_PATH, _NETWORK_PATH):
            return None
        metadata = handler_call_details.invocation_metadata
        process, early = self._service.stream(metadata, self._tenant, network=method == _NETWORK_PATH)
        if early:
            return grpc.stream_unary_rpc_method_handler(process)
        return grpc.stream_stream_rpc_method_handler(process)
