"""
The ext_proc service: reads a gRPC stream, asks the VM, writes the replies.

The common turn has no task, no future and no queue: a message is parsed, its event submitted, the verdict met by a
short look at the ring (`AsyncVm.poll`), the reply written. Everything else is the exception: a verdict that takes
longer, a pause that nothing frees, effects that come from another stream's event, a VM that goes away.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb
from google.protobuf.message import DecodeError

from sandboxd.channel import layout
from sandboxd.channel.async_vm import Lost
from sandboxd.channel.completions import Effect, Verdict
from sandboxd.channel.errors import ChannelBroken, ChannelFull
from sandboxd.errors import PeerError
from sandboxd.front.ext_proc_codec import Ask, Exchange
from sandboxd.front.registry import Channel, Entry, Registry
from sandboxd.policy.failure import Cause
from sandboxd.policy.model import OnFailure

_log = logging.getLogger(__name__)

_EOF: Any = grpc.aio.EOF  # type: ignore[attr-defined]  # the stubs do not know it

METHOD = "Process"
SERVICE = "envoy.service.ext_proc.v3.ExternalProcessor"
TENANT_KEY = "x-sandboxd-tenant"
PLUGIN_KEY = "x-sandboxd-plugin"
UNKNOWN_KEY = "-/-"
"""Counters of streams that name no plugin we know."""

IDLE_LIMIT_S = 3600.0
IDLE_SWEEP_S = 30.0
"""A stream without any message for this long is ended: a proxy that forgot it would keep its memory for ever."""

_CODE_CAUSES = {
    layout.CODE_UNKNOWN_STREAM: Cause.VM_DOWN,
    layout.CODE_OUT_OF_ORDER: Cause.PROTOCOL,
    layout.CODE_LIMIT: Cause.LIMIT,
    layout.CODE_STREAM_OVER: Cause.PROTOCOL,
}


class ExtProcService:
    """
    All ext_proc streams of this front.

    Args:
        registry: the plugins.
        allow_mode_override: see `Exchange`.
    """

    def __init__(self, registry: Registry, *, allow_mode_override: bool = False) -> None:
        self.registry = registry
        self.allow_mode_override = allow_mode_override
        self.streams: set[ProcessStream] = set()
        self.background: set[asyncio.Task[None]] = set()
        """Late writes; held here so that they are not collected before they end."""

    def handler(self, tenant: str = "") -> grpc.GenericRpcHandler[Any, Any]:
        """Return the gRPC handler; with ``tenant``, whoever connects is that tenant, whatever the metadata say."""

        async def process(_requests: object, context: Any) -> None:
            await self._process(context, tenant)

        method = grpc.stream_stream_rpc_method_handler(process)  # no (de)serialisers: bytes in, bytes out
        return grpc.method_handlers_generic_handler(SERVICE, {METHOD: method})

    async def _process(self, context: Any, tenant: str) -> None:
        try:
            entry = self._route(context.invocation_metadata(), tenant)
        except PeerError as error:
            self.registry.counters.plugin(UNKNOWN_KEY).report("unknown_plugin", str(error))
            await context.abort(grpc.StatusCode.NOT_FOUND, str(error))
            return
        stream = ProcessStream(self, entry, context)
        self.streams.add(stream)
        try:
            await stream.run()
        except PeerError as error:
            entry.counters.report("peer_error", str(error))
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except asyncio.CancelledError:
            if not stream.idle:
                raise
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "no message for too long")
        finally:
            self.streams.discard(stream)
            stream.close()

    def _route(self, metadata: Any, tenant: str) -> Entry:
        plugin = ""
        named = ""
        for key, value in metadata or ():
            if key == TENANT_KEY:
                named = value if isinstance(value, str) else ""
            elif key == PLUGIN_KEY:
                plugin = value if isinstance(value, str) else ""
        if not (tenant or named):
            raise PeerError(f"the gRPC metadata {TENANT_KEY} is missing")
        return self.registry.find(tenant or named, plugin)

    def end_idle(self) -> None:
        """End the streams that nobody uses any more."""
        oldest = time.monotonic() - IDLE_LIMIT_S
        for stream in list(self.streams):
            if stream.last_message < oldest:
                stream.entry.counters.report("idle_stream", "")
                stream.idle = True
                stream.task.cancel()


class ProcessStream:
    """One gRPC stream."""

    __slots__ = (
        "_asking",
        "_channel",
        "_context",
        "_exchange",
        "_graceful",
        "_loop",
        "_lost",
        "_pause_timer",
        "_service",
        "_stream_id",
        "_writing",
        "entry",
        "idle",
        "last_message",
        "task",
    )

    def __init__(self, service: ExtProcService, entry: Entry, context: Any) -> None:
        self.entry = entry
        self.last_message = time.monotonic()
        self.idle = False
        """`ExtProcService.end_idle` has cancelled the task."""
        task = asyncio.current_task()
        assert task is not None
        self.task = task
        self._service = service
        self._context = context
        self._loop = asyncio.get_running_loop()
        self._exchange: Exchange | None = None
        self._channel: Channel | None = None
        self._stream_id = 0
        self._lost: Cause | None = None
        self._asking = False
        """An event is with the VM; its outcome tells of a VM that goes away."""
        self._writing = False
        self._graceful = False
        self._pause_timer: asyncio.TimerHandle | None = None

    async def run(self) -> None:
        """
        Serve the stream to its end.

        Raises:
            PeerError: the proxy broke the protocol.
        """
        read: Callable[[], Awaitable[Any]] = self._context.read
        exchange: Exchange | None = None
        while True:
            data = await read()
            if data is _EOF:
                # gRPC says EOF to a stream that was cancelled as well. An exchange that still waits did not end well.
                held = exchange is not None and exchange.waiting
                self._graceful = not (held or self._context.cancelled())
                return
            try:
                message = pb.ProcessingRequest.FromString(data)
            except DecodeError as error:
                raise PeerError("message is no ProcessingRequest") from error
            if exchange is None:
                exchange = await self._begin()
            self.last_message = time.monotonic()
            for ask in exchange.receive(message):
                event_seq = self._submit(exchange, ask)
                if not event_seq:
                    break
                await self._wait(exchange, ask, event_seq)
            await self._after_turn(exchange)
            if exchange.finished:
                self._graceful = True
                return

    async def _begin(self) -> Exchange:
        """Choose the channel: with the first message, so that a stream never uses one that was replaced before."""
        entry = self.entry
        entry.counters.count("streams")
        if entry.channel is None or not entry.channel.vm.ready:
            await self._wait_for_vm(entry)
        channel = entry.channel
        self._channel = channel
        plugin = channel.plugin if channel is not None else entry.plugin
        self._exchange = Exchange(plugin, entry.counters.report, allow_mode_override=self._service.allow_mode_override)
        return self._exchange

    async def _wait_for_vm(self, entry: Entry) -> None:
        """Wait for a VM that is on its way, no longer than for a verdict."""
        deadline = self._loop.time() + entry.plugin.policy.limits.time_per_event_ns / 1e9
        await entry.wait_settled(deadline - self._loop.time())
        channel = entry.channel
        if channel is None or channel.vm.ready:
            return
        if channel.starting or entry.plugin.policy.failure.policy is OnFailure.RELOAD:
            await channel.wait_ready(deadline - self._loop.time())

    # --- events ---

    def _submit(self, exchange: Exchange, ask: Ask) -> int:
        """Submit an event; 0 if that is not possible and the failure policy has answered."""
        channel = self._channel
        if self._lost is not None or channel is None or not channel.vm.ready:
            self._fail(exchange, self._lost or Cause.VM_DOWN)
            return 0
        now = time.time_ns()
        try:
            if not self._stream_id:
                self._stream_id = channel.vm.open_stream(exchange.attributes, now)
                channel.streams[self._stream_id] = self
            elif exchange.attributes:
                channel.vm.add_attributes(self._stream_id, exchange.attributes, now)
            return channel.vm.submit(self._stream_id, ask.kind, ask.payload, ask.end_of_stream, now)
        except ChannelFull:
            self._fail(exchange, Cause.LIMIT)
        except ChannelBroken:
            self._fail(exchange, Cause.PROTOCOL)
        return 0

    async def _wait(self, exchange: Exchange, ask: Ask, event_seq: int) -> None:
        assert self._channel is not None
        self._asking = True
        try:
            outcome = self._channel.vm.poll(event_seq)
            if outcome is None:
                self.entry.counters.count("slow_verdicts")
                outcome = await self._channel.vm.wait(event_seq)
        finally:
            self._asking = False
        if type(outcome) is Verdict:
            self._verdict(exchange, ask, outcome)
        elif outcome is Lost.TIMEOUT:
            self._fail(exchange, Cause.TIMEOUT)
        elif outcome is Lost.DOWN:
            self._fail(exchange, Cause.TRAP)
        else:
            self._fail(exchange, self._channel.dead_cause)

    def _verdict(self, exchange: Exchange, ask: Ask, verdict: Verdict) -> None:
        assert self._channel is not None
        effects = self._channel.take(verdict)
        if verdict.code == layout.CODE_OK or (exchange.observing and verdict.code == layout.CODE_STREAM_OVER):
            try:
                exchange.answer(ask, effects, verdict.state)
            except ChannelBroken as error:
                self._channel.break_(str(error))
                self._fail(exchange, Cause.PROTOCOL)
            return
        if verdict.code == layout.CODE_OUT_OF_ORDER:
            kind = layout.SUBMISSION_NAMES[ask.kind]
            self.entry.counters.report("out_of_order", kind)
        self._fail(exchange, _CODE_CAUSES[verdict.code])

    def _fail(self, exchange: Exchange, cause: Cause) -> None:
        exchange.fail(cause)
        self._leave_vm(reset=True)

    # --- replies ---

    async def _after_turn(self, exchange: Exchange) -> None:
        if exchange.observing:
            exchange.replies.clear()
        elif exchange.replies:
            await self._flush(exchange)
        if exchange.waiting:
            if self._pause_timer is None:
                timeout_s = exchange.plugin.policy.limits.time_per_event_ns / 1e9
                self._pause_timer = self._loop.call_later(timeout_s, self._pause_over)
        elif self._pause_timer is not None:
            self._pause_timer.cancel()
            self._pause_timer = None

    async def _flush(self, exchange: Exchange) -> None:
        """Write all replies. Whoever writes already sees those that are added meanwhile."""
        if self._writing:
            return
        self._writing = True
        replies = exchange.replies
        try:
            while replies:
                await self._context.write(replies.pop(0))
        finally:
            self._writing = False

    def _pause_over(self) -> None:
        """Something was held, and nothing came to free it."""
        self._pause_timer = None
        exchange = self._exchange
        if exchange is not None and exchange.waiting:
            self._fail(exchange, Cause.TIMEOUT)
            self._flush_soon(exchange)

    def _flush_soon(self, exchange: Exchange) -> None:
        task = self._loop.create_task(self._late_flush(exchange))
        self._service.background.add(task)
        task.add_done_callback(self._service.background.discard)

    async def _late_flush(self, exchange: Exchange) -> None:
        try:
            await self._after_turn(exchange)
        except Exception as error:  # the stream may have ended meanwhile, and gRPC has several words for that
            _log.debug("%s: late reply not written: %s", self.entry.plugin.key, error)

    # --- from the channel ---

    def late(self, effects: list[Effect]) -> None:
        """Effects on this stream arose in another one's event."""
        exchange, channel = self._exchange, self._channel
        if exchange is None or channel is None or not self._stream_id:
            return
        try:
            exchange.late(effects)
        except ChannelBroken as error:
            channel.break_(str(error))
            return
        if exchange.finished:
            self._leave_vm(reset=True)
        self._flush_soon(exchange)

    def lost(self, cause: Cause) -> None:
        """The VM that had this stream is gone. An event that is with it learns so by its outcome."""
        self._lost = cause
        exchange = self._exchange
        if exchange is not None and exchange.waiting and not self._asking:
            self._fail(exchange, cause)
            self._flush_soon(exchange)

    # --- end ---

    def _leave_vm(self, reset: bool) -> None:
        stream_id, channel = self._stream_id, self._channel
        if stream_id and channel is not None:
            self._stream_id = 0
            self._lost = self._lost or Cause.VM_DOWN
            channel.vm.close_stream(stream_id, reset, time.time_ns())
            channel.leave(stream_id)

    def close(self) -> None:
        """The gRPC stream is over."""
        if self._pause_timer is not None:
            self._pause_timer.cancel()
            self._pause_timer = None
        if self._exchange is not None:
            self._exchange.end()
        self._leave_vm(reset=not self._graceful)
