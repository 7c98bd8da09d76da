"""
One gRPC stream of ext_proc or network ext_proc: reads a message, asks the VM, writes the replies.

The common turn has no task and no queue: a message is parsed, its event submitted, the verdict met, the reply written.
Everything else is the exception: a pause that nothing frees, effects that come from another stream's event, a VM that
goes away.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from sandboxd.channel import layout
from sandboxd.channel.completions import Effect, Verdict
from sandboxd.channel.errors import ChannelBroken, ChannelFull
from sandboxd.channel.hooks import Lost
from sandboxd.errors import PeerError
from sandboxd.exchange.side import Ask
from sandboxd.front.conversation import Conversation, Options
from sandboxd.front.registry import Channel, Entry
from sandboxd.front.vm_state import CODE_CAUSES, cause_of_loss, wait_for_vm
from sandboxd.policy.failure import Cause

_log = logging.getLogger(__name__)

_EOF: Any = grpc.aio.EOF  # type: ignore[attr-defined]  # the stubs do not know it


class UnfinishedError(Exception):
    """The proxy ended the stream before the message that was to be its last."""


class ProcessStream:
    """
    One gRPC stream; made and run in the task that serves it.

    Args:
        entry: the plugin that it names.
        context: gRPC's.
        keep: holds a task until it ends.
        options: see `Options`.
    """

    __slots__ = (
        "_asking",
        "_channel",
        "_context",
        "_exchange",
        "_freed",
        "_graceful",
        "_keep",
        "_late_task",
        "_loop",
        "_lost",
        "_options",
        "_pause_timer",
        "_stream_id",
        "_writing",
        "entry",
        "idle",
        "last_message",
        "task",
    )

    def __init__(
        self, entry: Entry, context: Any, keep: Callable[[asyncio.Task[None]], None], options: Options
    ) -> None:
        self.entry = entry
        self.last_message = time.monotonic()
        self.idle = False
        """The service has cancelled the task."""
        self._context = context
        self._keep = keep
        self._options = options
        self._loop = asyncio.get_running_loop()
        task = asyncio.current_task(self._loop)
        assert task is not None
        self.task = task
        self._exchange: Conversation | None = None
        self._channel: Channel | None = None
        self._stream_id = 0
        self._lost: Cause | None = None
        self._asking = False
        """An event is with the VM; its outcome tells of a VM that goes away."""
        self._writing = False
        self._graceful = False
        self._pause_timer: asyncio.TimerHandle | None = None
        self._freed: asyncio.Future[None] | None = None
        """What `run` waits for when the proxy's last message has come and its answer is held."""
        self._late_task: asyncio.Task[None] | None = None
        """The last that has been made to write late replies; one at a time."""

    async def run(self) -> bytes:
        """
        Serve the stream to its end.

        Returns:
            The last reply, if the stream ends early (see `Options`).

        Raises:
            PeerError: the proxy broke the protocol.
            UnfinishedError: the stream ends early, and the proxy ended it before.
        """
        context = self._context
        read = context.read
        write = context.write
        early = self._options.ends_early
        exchange: Conversation | None = None
        while True:
            data = await read()
            if data is _EOF:
                return self._over(exchange)
            message = self._parsed(data)
            self.last_message = time.monotonic()
            if exchange is None:
                exchange = await self._begin()
            asks = exchange.receive(message)
            if asks:
                await self._ask(exchange, asks)
            replies = exchange.replies
            if exchange.observing:
                replies.clear()
            elif early and self._at_last(exchange):
                await self._last_message_answered(exchange)
                if replies:
                    self._graceful = True
                    return replies.pop()
            elif replies and (not self._writing or await self._late_written()):
                # The same as `_flush`, without its coroutine: this is the common way.
                self._writing = True
                try:
                    while replies:
                        await write(replies.pop(0))
                finally:
                    self._writing = False
            if exchange.waiting or self._pause_timer is not None:
                self._watch_pause(exchange)
            if exchange.finished:
                self._graceful = True
                return b""

    def _parsed(self, data: bytes) -> Any:
        try:
            return self._options.parse(data)
        except DecodeError as error:
            raise PeerError("message is no ProcessingRequest") from error

    def _at_last(self, exchange: Conversation) -> bool:
        """Whether the proxy has sent the last message that it will."""
        if not exchange.bodiless:
            raise PeerError("the response headers are said to be the last message, but bodies are sent")
        return exchange.at_last

    def _over(self, exchange: Conversation | None) -> bytes:
        """The proxy has ended the stream."""
        # gRPC says EOF to a stream that was cancelled as well. An exchange that still waits did not end well.
        held = exchange is not None and exchange.waiting
        self._graceful = not (held or self._context.cancelled())
        if self._options.ends_early and not (exchange is not None and exchange.observing):
            raise UnfinishedError
        return b""  # in observability mode nobody looks at it

    async def _last_message_answered(self, exchange: Conversation) -> None:
        """Wait until nothing is held any more, and write all replies but one, which goes with the status."""
        while exchange.waiting:
            self._watch_pause(exchange)
            self._freed = self._loop.create_future()
            await self._freed
        await self._late_written()  # two must not write at a time
        while len(exchange.replies) > 1:
            await self._context.write(exchange.replies.pop(0))

    async def _late_written(self) -> bool:
        """Wait until late replies are written; True."""
        if self._late_task is not None:
            await asyncio.wait([self._late_task])
        return True

    async def _begin(self) -> Conversation:
        """Choose the channel: with the first message, so that a stream never uses one that was replaced before."""
        entry = self.entry
        entry.counters.count("streams")
        if entry.channel is None or not entry.channel.vm.ready:
            await wait_for_vm(entry)
        channel = entry.channel
        self._channel = channel
        plugin = channel.plugin if channel is not None else entry.plugin
        self._exchange = exchange = self._options.make(plugin, entry.counters.report)
        return exchange

    # --- events ---

    def _submit(self, exchange: Conversation, ask: Ask) -> int:
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

    async def _ask(self, exchange: Conversation, asks: list[Ask]) -> None:
        """Submit events one after the other, and deal with what comes of each."""
        for ask in asks:
            event_seq = self._submit(exchange, ask)
            if not event_seq:
                break
            assert self._channel is not None
            vm = self._channel.vm
            self._asking = True
            try:
                outcome = vm.poll(event_seq)
                if outcome is None:
                    self.entry.counters.count("slow_verdicts")
                    outcome = await vm.wait(event_seq)
            finally:
                self._asking = False
            self._outcome(exchange, ask, outcome)
            if exchange.finished:
                break

    def _outcome(self, exchange: Conversation, ask: Ask, outcome: Verdict | Lost) -> None:
        if type(outcome) is Verdict:
            self._verdict(exchange, ask, outcome)
        else:
            assert type(outcome) is Lost
            assert self._channel is not None
            self._fail(exchange, cause_of_loss(outcome, self._channel))

    def _verdict(self, exchange: Conversation, ask: Ask, verdict: Verdict) -> None:
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
        self._fail(exchange, CODE_CAUSES[verdict.code])

    def _fail(self, exchange: Conversation, cause: Cause) -> None:
        exchange.fail(cause)
        self._leave_vm(reset=True)

    # --- replies ---

    def _watch_pause(self, exchange: Conversation) -> None:
        """Have a pause end after the time for an event, unless something frees it before."""
        if exchange.waiting:
            if self._pause_timer is None:
                self._pause_timer = self._loop.call_later(exchange.pause_s, self._pause_over)
        elif self._pause_timer is not None:
            self._pause_timer.cancel()
            self._pause_timer = None

    async def _flush(self, exchange: Conversation) -> None:
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
            if not exchange.pause_over():
                self._fail(exchange, Cause.TIMEOUT)
            self._flush_soon(exchange)

    def _flush_soon(self, exchange: Conversation) -> None:
        if self._freed is None and self._late_task is not None and not self._late_task.done():
            self._watch_pause(exchange)  # it writes these as well
        elif self._freed is None:
            self._late_task = self._loop.create_task(self._late_flush(exchange))
            self._keep(self._late_task)
        elif not self._freed.done():
            self._freed.set_result(None)

    async def _late_flush(self, exchange: Conversation) -> None:
        try:
            if not exchange.observing:
                await self._flush(exchange)
            self._watch_pause(exchange)
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
        if exchange is not None and (exchange.held or exchange.waiting) and not self._asking:
            self._fail(exchange, cause)
            self._flush_soon(exchange)

    # --- end ---

    def _tell(self, asks: list[Ask]) -> None:
        """Submit events that nothing comes of any more."""
        channel = self._channel
        if self._stream_id and channel is not None and self._lost is None and channel.vm.ready:
            for ask in asks:
                channel.vm.tell(self._stream_id, ask.kind, ask.payload, time.time_ns())

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
            self._tell(self._exchange.end())
        self._leave_vm(reset=not self._graceful)
