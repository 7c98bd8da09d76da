"""The egress broker in this process's loop, with a test in the supervisor's place."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from sandboxd.channel.pairs import decode, encode
from sandboxd.egress.broker import Broker
from sandboxd.egress.resolve import Lookup
from sandboxd.protos import control_pb2 as control
from sandboxd.supervisor import frames
from sandboxd.supervisor.outbox import Outbox
from sandboxd.supervisor.prepare import Blob
from sandboxd.supervisor.upstream_tls import encode_files

PIECE = 48 * 1024
PLUGIN = {"module": {"file": "m", "sha256": "0" * 64}, "capabilities": {"preset": "full"}}


class Peer:
    """The supervisor's end."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        sock.setblocking(False)
        self._loop = asyncio.get_running_loop()
        self._outbox = Outbox(self._loop, sock)
        self._replies: dict[tuple[int, int, int], asyncio.Queue[control.CalloutReply | None]] = {}
        self._pieces: dict[tuple[int, int, int], bytes] = {}
        self._status: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._text = ""
        self.takes = True
        """Whether answers are reported as taken."""
        self.received_bytes: dict[int, int] = {}
        self._number = 0
        self._loop.add_reader(sock, self._readable)

    def close(self) -> None:
        self._loop.remove_reader(self.socket)
        self._outbox.close()
        self.socket.close()

    # --- to the broker ---

    def rules(
        self, worker_id: int, tenant: str, plugins: Mapping[str, Any], files: Mapping[str, bytes] | None = None
    ) -> None:
        """Announce a worker; ``plugins``: name to ``callouts``."""
        entries = [{"name": name, **PLUGIN, "callouts": callouts} for name, callouts in plugins.items()]
        text = Blob("policy", json.dumps({"tenant": tenant, "plugins": entries}).encode())
        material = Blob("material", encode_files((files or {}).items()))
        rules = control.EgressRules(
            worker_id=worker_id, tenant=tenant, policy_path="/p/p.yaml", redaction_key=bytes(32)
        )
        self._outbox.send(control.ToEgress(rules=rules), (text.fd, material.fd))

    def send(self, **frame: Any) -> None:
        self._outbox.send(control.ToEgress(**frame))

    def begin(
        self, request: control.CalloutRequest, *, worker: int = 1, vm: int = 1, plugin: str = "p"
    ) -> tuple[int, int, int]:
        """Begin a callout; return what names it."""
        self._number += 1
        key = (worker, vm, self._number)
        self._replies[key] = asyncio.Queue()
        self.more(key, request, plugin=plugin, first=True)
        return key

    def more(
        self, key: tuple[int, int, int], request: control.CalloutRequest, *, plugin: str = "p", first: bool = False
    ) -> None:
        """Say more of a callout."""
        self.raw(key, request.SerializeToString(), plugin=plugin, first=first)

    def raw(self, key: tuple[int, int, int], data: bytes, *, plugin: str = "p", first: bool = False) -> None:
        """Say any bytes."""
        self._replies.setdefault(key, asyncio.Queue())
        for start in range(0, len(data) or 1, PIECE):
            piece, more = data[start : start + PIECE], start + PIECE < len(data)
            callout = control.EgressCallout(
                worker_id=key[0],
                vm_id=key[1],
                call_id=key[2],
                plugin=plugin,
                data=piece,
                more=more,
                first=first and start == 0,
            )
            self.send(callout=callout)

    # --- from the broker ---

    async def reply(self, key: tuple[int, int, int], timeout_s: float = 10) -> control.CalloutReply | None:
        """Return the next reply of a callout; None: it ended without one."""
        return await asyncio.wait_for(self._replies[key].get(), timeout_s)

    async def http(self, call: control.HttpCall, timeout_s: float = 10, **where: Any) -> control.HttpReply:
        """Make one HTTP call."""
        reply = await self.reply(self.begin(control.CalloutRequest(http_call=call), **where), timeout_s)
        assert reply is not None
        return reply.http

    async def counters(self) -> dict[str, Any]:
        """Return the broker's counters."""
        self.send(status=control.EgressStatusRequest(number=1))
        return await asyncio.wait_for(self._status.get(), 5)

    def _readable(self) -> None:
        while True:
            try:
                data = frames.receive_plain(self.socket)
            except BlockingIOError:
                return
            if not data:
                self._loop.remove_reader(self.socket)
                return
            frame = control.FromEgress.FromString(data)
            match frame.WhichOneof("frame"):
                case "answer":
                    self._answer(frame.answer)
                case "status":
                    self._text += frame.status.counters_json
                    if not frame.status.more:
                        self._status.put_nowait(json.loads(self._text))
                        self._text = ""

    def _answer(self, answer: control.EgressAnswer) -> None:
        key = (answer.worker_id, answer.vm_id, answer.call_id)
        self.received_bytes[answer.worker_id] = self.received_bytes.get(answer.worker_id, 0) + len(answer.data)
        if self.takes:
            self.send(taken=control.EgressTaken(worker_id=answer.worker_id, bytes=len(answer.data)))
        data = self._pieces.pop(key, b"") + answer.data
        if answer.more:
            self._pieces[key] = data
            return
        self._replies[key].put_nowait(control.CalloutReply.FromString(data) if data else None)


@contextlib.asynccontextmanager
async def running(lookup: Lookup | None = None) -> AsyncIterator[Peer]:
    """Run a broker for the length of a ``with`` block."""
    pair = frames.Pair()
    broker = Broker(pair.theirs, lookup)
    peer = Peer(pair.ours)
    try:
        yield peer
    finally:
        peer.close()
        await asyncio.wait_for(broker.stopped.wait(), 5)
        await broker.close()


def http_call(
    path: str = "/ok", method: str = "GET", *headers: tuple[bytes, bytes], upstream: str = "web", **more: Any
) -> control.HttpCall:
    """Return a request as a guest makes it."""
    target = [(b":method", method.encode()), (b":path", path.encode()), (b":authority", b"elsewhere")]
    return control.HttpCall(upstream=upstream.encode(), headers=encode([*target, *headers]), **more)


def grpc_call(method: str, message: bytes = b"", metadata: Sequence[tuple[bytes, bytes]] = ()) -> control.GrpcCall:
    """Return a gRPC call, or with an empty message a stream."""
    return control.GrpcCall(
        upstream=b"rpc", service=b"test.Echo", method=method.encode(), metadata=encode(list(metadata)), message=message
    )


CANCEL = control.CalloutRequest(cancel=control.CancelCallout())


def grpc_message(message: bytes, *, end: bool = False) -> control.CalloutRequest:
    """Return one more message of a stream."""
    return control.CalloutRequest(grpc_send=control.GrpcSend(message=message, end_of_stream=end))


def status(reply: control.HttpReply) -> bytes:
    """Return the status of a response."""
    assert not reply.failure, reply.failure
    return decode(reply.headers)[0][1]
