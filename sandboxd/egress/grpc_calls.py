"""gRPC callouts: a call is one message each way, a stream any number."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import grpc

from sandboxd import limits
from sandboxd.egress import answers
from sandboxd.egress.budget import BudgetSpentError
from sandboxd.egress.context import Context
from sandboxd.egress.desk import Destination
from sandboxd.egress.grpc import metadata_pairs
from sandboxd.egress.resolve import AddressRefusedError
from sandboxd.egress.rules import DeniedError, GrpcRequest, check_message, grpc_request
from sandboxd.protos import control_pb2 as control

MAX_WAITING_BYTES = 4 * limits.MIB
MAX_WAITING = 1024
"""Messages of one stream that its upstream has not taken."""
MAX_STATUS_TEXT = 1024

_EOF: Any = grpc.aio.EOF  # type: ignore[attr-defined]

Say: TypeAlias = Callable[[control.CalloutReply], Awaitable[None]]


async def grpc_call(context: Context, call: control.GrpcCall) -> control.CalloutReply:
    """Make the call if the policy allows it; never raises but for its cancellation."""
    try:
        found = context.destination(call.upstream)
        request = grpc_request(found.upstream, call)
        with context.admitted(found):
            context.count(found, "calls")
            context.count(found, "request_bytes", len(request.message))
            return await _unary(context, found, request)
    except DeniedError as error:
        return answers.grpc_closed(answers.PERMISSION_DENIED, context.denied(call.upstream, error))


async def _unary(context: Context, found: Destination, request: GrpcRequest) -> control.CalloutReply:
    try:
        async with asyncio.timeout(request.timeout_ms / 1000), _channel(context, found) as channel:
            method: Any = channel.unary_unary(request.path, None, None)
            message: bytes = await method(request.message, metadata=request.metadata, timeout=request.timeout_ms / 1000)
        context.lease.take(len(message))
    except BudgetSpentError as error:
        raise DeniedError("memory", str(error)) from None
    except TimeoutError:
        return _failed(context, found, answers.DEADLINE_EXCEEDED, "upstream request timeout")
    except OSError as error:
        return _failed(context, found, answers.UNAVAILABLE, _plain(error))
    except grpc.aio.AioRpcError as error:
        return _failed(context, found, error.code().value[0], error.details() or "")
    context.count(found, "answered")
    context.count(found, "response_bytes", len(message))
    return control.CalloutReply(message=control.GrpcMessage(message=message))


@asynccontextmanager
async def _channel(context: Context, found: Destination) -> AsyncIterator[grpc.aio.Channel]:
    try:
        async with context.desk.grpc(context.plugin, found).channel() as channel:
            yield channel
    except AddressRefusedError as error:
        raise DeniedError("allow_addresses", str(error)) from None


def _failed(context: Context, found: Destination, status: int, text: str) -> control.CalloutReply:
    context.count(found, f"failed.grpc_{status}")
    return answers.grpc_closed(status, text[:MAX_STATUS_TEXT])


def _plain(error: OSError) -> str:
    return error.strerror or "no connection"


async def _send(rpc: Any, message: bytes) -> None:
    """
    Send a message of a stream as `rpc.write` does, but leave its status to the upstream.

    The upstream may end the stream while a message is under way. `write` then makes an INTERNAL of its own the stream's
    status, for good, though what the upstream said comes right behind; so this calls what `write` calls.

    Raises:
        asyncio.InvalidStateError, grpc.aio.AioRpcError: the stream has ended.
    """
    await rpc.wait_for_connection()
    if rpc.done():
        raise asyncio.InvalidStateError
    try:
        await rpc._cython_call.send_serialized_message(message)
    except grpc.aio.InternalError:
        raise asyncio.InvalidStateError from None


class GrpcStream:
    """
    One stream. `send` and `half_close` only put down what is to be sent; `run` does the rest.

    Args:
        context: see there.
        call: what began it.
        say: takes each message of the upstream; waits while the VM's worker has enough to do.
    """

    def __init__(self, context: Context, call: control.GrpcCall, say: Say) -> None:
        self._context = context
        self._call = call
        self._say = say
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._half_closed = False
        self._more = asyncio.Event()
        self._overrun: DeniedError | None = None

    def send(self, message: bytes, *, end_of_stream: bool) -> None:
        """Have a message sent, and nothing after it if it is the last."""
        if self._half_closed or self._overrun is not None:
            return
        if len(self._waiting) >= MAX_WAITING or self._waiting_bytes + len(message) > MAX_WAITING_BYTES:
            self._overrun = DeniedError("request_bytes", "the upstream does not take the stream's messages")
        else:
            self._waiting.append(message)
            self._waiting_bytes += len(message)
            self._context.lease.take(len(message))
            self._half_closed = end_of_stream
        self._more.set()

    def half_close(self) -> None:
        """Nothing more will be sent."""
        self._half_closed = True
        self._more.set()

    async def run(self) -> control.CalloutReply:
        """Run the stream to its end, which is returned; never raises but for its cancellation."""
        try:
            found = self._context.destination(self._call.upstream)
            request = grpc_request(found.upstream, self._call)
            with self._context.admitted(found):
                self._context.count(found, "calls")
                return await self._run_in_time(found, request)
        except DeniedError as error:
            text = self._context.denied(self._call.upstream, error)
            return answers.grpc_closed(answers.PERMISSION_DENIED, text)

    async def _run_in_time(self, found: Destination, request: GrpcRequest) -> control.CalloutReply:
        allowed_s = found.upstream.stream_timeout_ms / 1000
        try:
            async with asyncio.timeout(allowed_s):
                return await self._run(found, request)
        except TimeoutError:  # this one: `_run` answers its own
            text = self._context.cut_off(found, "stream_timeout", f"{allowed_s:g} s")
            return answers.grpc_closed(answers.DEADLINE_EXCEEDED, text)

    async def _run(self, found: Destination, request: GrpcRequest) -> control.CalloutReply:
        writer: asyncio.Task[None] | None = None
        rpc: Any = None
        try:
            async with asyncio.timeout(request.timeout_ms / 1000) as idle, _channel(self._context, found) as channel:
                method: Any = channel.stream_stream(request.path, None, None)
                rpc = method(metadata=request.metadata)
                pulse = _Pulse(idle, request.timeout_ms / 1000)
                writer = asyncio.ensure_future(self._write(found, rpc, pulse))
                return await self._read(found, rpc, writer, pulse)
        except TimeoutError:
            return _failed(self._context, found, answers.DEADLINE_EXCEEDED, "the stream was idle for too long")
        except BudgetSpentError as error:
            raise DeniedError("memory", str(error)) from None
        except OSError as error:
            return _failed(self._context, found, answers.UNAVAILABLE, _plain(error))
        except grpc.aio.AioRpcError as error:
            return _failed(self._context, found, error.code().value[0], error.details() or "")
        finally:
            if rpc is not None:
                rpc.cancel()
            if writer is not None:
                writer.cancel()

    async def _read(
        self, found: Destination, rpc: Any, writer: asyncio.Task[None], pulse: _Pulse
    ) -> control.CalloutReply:
        reader = asyncio.ensure_future(self._receive(found, rpc, pulse))
        try:
            while not reader.done():
                waits = {reader} if writer.done() else {reader, writer}
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                if writer.done() and not writer.cancelled() and (error := writer.exception()) is not None:
                    raise error
            return reader.result()
        finally:
            reader.cancel()

    async def _receive(self, found: Destination, rpc: Any, pulse: _Pulse) -> control.CalloutReply:
        visible = self._context.visible
        metadata = visible(found, metadata_pairs(await rpc.initial_metadata()))
        await self._say(control.CalloutReply(initial_metadata=control.GrpcMetadata(metadata=metadata)))
        try:
            while (message := await rpc.read()) is not _EOF:
                await self._pass_on(found, message, pulse)
        except grpc.aio.AioRpcError:
            pass  # how it ended is what follows
        code, text = await rpc.code(), await rpc.details()
        metadata = visible(found, metadata_pairs(await rpc.trailing_metadata()))
        await self._say(control.CalloutReply(trailing_metadata=control.GrpcMetadata(metadata=metadata)))
        status = code.value[0]
        self._context.count(found, f"failed.grpc_{status}" if status else "answered")
        return answers.grpc_closed(status, (text or "")[:MAX_STATUS_TEXT])

    async def _pass_on(self, found: Destination, message: bytes, pulse: _Pulse) -> None:
        self._context.count(found, "response_bytes", len(message))
        self._context.lease.take(len(message))
        pulse.stop()
        await self._say(control.CalloutReply(message=control.GrpcMessage(message=message)))
        self._context.lease.give(len(message))
        pulse.beat()

    async def _write(self, found: Destination, rpc: Any, pulse: _Pulse) -> None:
        while True:
            while self._waiting:
                message = self._waiting.popleft()
                self._waiting_bytes -= len(message)
                check_message(found.upstream, message)
                self._context.count(found, "request_bytes", len(message))
                try:
                    await _send(rpc, message)
                except (asyncio.InvalidStateError, grpc.aio.AioRpcError):  # it has ended: the reader says how
                    return
                self._context.lease.give(len(message))
                pulse.beat()
            if self._overrun is not None:
                raise self._overrun
            if self._half_closed:
                await rpc.done_writing()
                return
            self._more.clear()
            await self._more.wait()


class _Pulse:
    """Ends a stream on which nothing moves for too long; time that the VM takes to read does not count."""

    def __init__(self, idle: asyncio.Timeout, allowed_s: float) -> None:
        self._idle = idle
        self._allowed_s = allowed_s

    def beat(self) -> None:
        """Something moved."""
        self._idle.reschedule(asyncio.get_running_loop().time() + self._allowed_s)

    def stop(self) -> None:
        """It is the VM's turn."""
        self._idle.reschedule(None)
