"""One callout in the broker, from its first piece to its last answer. Its pieces are a worker's and hostile."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import TypeAlias

from google.protobuf.message import DecodeError

from sandboxd import limits
from sandboxd.egress import answers
from sandboxd.egress.budget import BudgetSpentError
from sandboxd.egress.context import Context
from sandboxd.egress.grpc_calls import GrpcStream, grpc_call
from sandboxd.egress.http_calls import http_call
from sandboxd.egress.rules import DeniedError
from sandboxd.protos import control_pb2 as control

MAX_REQUEST_BYTES = limits.MAX_CALLOUT_REQUEST_BYTES + 16 * limits.KIB
"""hostcore's limit, and room for the names around what it limits."""

Say: TypeAlias = Callable[[control.CalloutReply | None, bool], Awaitable[None]]
"""Sends an answer on, or none; True: it was the last. Waits while the worker has enough to do."""


Work: TypeAlias = Callable[[], Awaitable[control.CalloutReply]]


class Call:
    """
    One callout.

    Args:
        context: who calls.
        say: see `Say`.
        ended: called once when nothing is left of it.
    """

    def __init__(self, context: Context, say: Say, ended: Callable[[], None]) -> None:
        self._context = context
        self._say = say
        self._ended = ended
        self._pieces: list[bytes] = []
        self._size = 0
        self._tasks: set[asyncio.Task[None]] = set()
        """What it does, and from its refusal on also what answers that. It has ended when none is left."""
        self._stream: GrpcStream | None = None
        self._over = False

    def piece(self, data: bytes, *, more: bool) -> None:
        """Take a piece of a request, of which a stream has many."""
        if self._over:
            return
        try:
            self._context.lease.take(len(data))
            self._pieces.append(data)
            self._size += len(data)
            if self._size > MAX_REQUEST_BYTES:
                raise DeniedError("request_bytes", f"a request of more than {MAX_REQUEST_BYTES} bytes")
            if not more:
                self._whole()
        except BudgetSpentError as error:
            self._refuse(DeniedError("memory", str(error)))
        except DeniedError as error:
            self._refuse(error)

    def drop(self) -> None:
        """Nobody waits for it any more: nothing answers it."""
        self._over = True
        if self._tasks:
            self._stop()
        else:
            self._end()

    # --- requests ---

    def _whole(self) -> None:
        data, size = b"".join(self._pieces), self._size
        self._pieces, self._size = [], 0
        request = control.CalloutRequest()
        try:
            request.ParseFromString(data)
        except DecodeError:
            raise DeniedError("form", "a request that is not protobuf") from None
        self._take(request)
        if self._stream is not None:
            self._context.lease.give(size)  # what waits to be sent the stream holds by itself

    def _take(self, request: control.CalloutRequest) -> None:
        which = request.WhichOneof("request")
        if not self._tasks:
            match which:
                case "http_call":
                    self._start(lambda: http_call(self._context, request.http_call))
                case "grpc_call":
                    self._start(lambda: grpc_call(self._context, request.grpc_call))
                case "grpc_stream":
                    self._stream = GrpcStream(self._context, request.grpc_stream, self._say_one)
                    self._start(self._stream.run)
                case _:
                    raise DeniedError("form", f"{which} of a call that was not begun")
        elif which == "cancel":
            self._refuse(None)
        elif which == "grpc_send" and self._stream is not None:
            self._stream.send(request.grpc_send.message, end_of_stream=request.grpc_send.end_of_stream)
        elif which == "grpc_half_close" and self._stream is not None:
            self._stream.half_close()
        else:
            raise DeniedError("form", f"{which} of a call that has begun as another")

    def _refuse(self, error: DeniedError | None) -> None:
        """End it from our side: with an answer, or without one if the guest itself wants no more."""
        self._over = True
        before = self._stop()
        reply = answers.lost(self._context.denied(b"", error)) if error is not None else None
        self._watch(self._last(before, reply))

    # --- work ---

    def _start(self, work: Work) -> None:
        self._watch(self._run(work))

    def _watch(self, coroutine: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _stop(self) -> set[asyncio.Task[None]]:
        """Cancel what it does; return that."""
        for task in self._tasks:
            task.cancel()
        return set(self._tasks)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._context.failed(error)
        if not self._tasks:
            self._end()

    async def _run(self, work: Work) -> None:
        try:
            reply = await work()
        except asyncio.CancelledError:
            if _is_cancelled():
                raise
            reply = answers.lost("the connection was closed")  # gRPC's word for that
        except Exception as error:
            self._context.failed(error)
            reply = answers.lost("internal error")
        await self._say(reply, True)

    async def _last(self, before: set[asyncio.Task[None]], reply: control.CalloutReply | None) -> None:
        if before:
            await asyncio.wait(before)
        await self._say(reply, True)

    async def _say_one(self, reply: control.CalloutReply) -> None:
        await self._say(reply, False)

    def _end(self) -> None:
        self._over = True
        self._context.lease.close()
        self._ended()


def _is_cancelled() -> bool:
    """Return whether somebody has ended this very task."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
