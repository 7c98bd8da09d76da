"""
The egress process: callouts come from the supervisor, go out by their policy's rules, and their answers go back.

Forked by the supervisor as the fronts are; runs until its control socket ends. One loop, in which nothing waits: calls
wait each for themselves, bounded by what their plugin, their tenant and their worker may have.
"""

from __future__ import annotations

import asyncio
import contextlib
import encodings.idna  # noqa: F401  (lookups want it when it may not be readable any more)
import gc
import logging
import os
import socket

import uvloop

from sandboxd import limits
from sandboxd.channel.memfd import read_blob
from sandboxd.egress.calls import Call
from sandboxd.egress.context import Context
from sandboxd.egress.counters import Counters
from sandboxd.egress.desk import PluginRules, TenantDesk, WorkerRules, worker_rules
from sandboxd.egress.link import PIECE_BYTES, Link, Window
from sandboxd.egress.resolve import Lookup
from sandboxd.jail.front_jail import FrontJail, give_up_rest
from sandboxd.policy.callouts import CalloutPolicy
from sandboxd.policy.load import parse_policy
from sandboxd.protos import control_pb2 as control
from sandboxd.supervisor import frames
from sandboxd.supervisor.upstream_tls import decode_files

_log = logging.getLogger(__name__)

MAX_MATERIAL_BYTES = 64 * limits.MIB
GC_THRESHOLD = 20_000
_NOTHING = PluginRules(CalloutPolicy(), {})


def serve_egress(control_socket: socket.socket, jail: FrontJail | None = None) -> None:
    """
    Run the broker until its control socket ends.

    Args:
        control_socket: to the supervisor; owned.
        jail: what is given up first; None: nothing.

    Raises:
        JailError: it could not give up its privileges.
    """
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD)
    if jail is not None:
        give_up_rest(jail)
    uvloop.run(_serve(control_socket))


async def _serve(control_socket: socket.socket) -> None:
    broker = Broker(control_socket)
    try:
        await broker.stopped.wait()
    finally:
        await broker.close()


class _Worker:
    def __init__(self, worker_id: int) -> None:
        self.worker_id = worker_id
        self.window = Window()
        self.rules: WorkerRules | None = None
        self.calls: dict[tuple[int, int], Call] = {}
        """By VM and call id."""


class Broker:
    """
    Args:
        control_socket: to the supervisor; owned.
        lookup: resolves names; a test's, or None: the system's.
    """

    def __init__(self, control_socket: socket.socket, lookup: Lookup | None = None) -> None:
        self.stopped = asyncio.Event()
        self._lookup = lookup
        self._counters = Counters()
        self._desks: dict[str, TenantDesk] = {}
        self._workers: dict[int, _Worker] = {}
        self._link = Link(control_socket, self._handle, self.stopped.set)
        self._link.send(control.FromEgress(ready=control.EgressReady()))

    async def close(self) -> None:
        """Drop everything."""
        for worker in self._workers.values():
            self._drop(worker)
        self._link.close()
        await asyncio.sleep(0)  # what was dropped lets go of its connections
        await asyncio.gather(*(desk.close() for desk in self._desks.values()))

    # --- the supervisor's frames ---

    def _handle(self, packet: frames.Packet) -> None:
        frame = control.ToEgress.FromString(packet.data)
        try:
            match frame.WhichOneof("frame"):
                case "callout":
                    self._callout(frame.callout)
                case "taken":
                    self._taken(frame.taken)
                case "rules":
                    self._rules(frame.rules, packet.fds)
                case "vm_gone":
                    self._vm_gone(frame.vm_gone)
                case "worker_gone":
                    self._worker_gone(frame.worker_gone.worker_id)
                case "status":
                    self._status(frame.status.number)
        finally:
            packet.close()

    def _rules(self, rules: control.EgressRules, fds: tuple[int, ...]) -> None:
        text = read_blob(fds[0], limits.MAX_POLICY_FILE_BYTES).decode()
        policy = parse_policy(text, rules.policy_path, module_root=None)
        files = decode_files(read_blob(fds[1], MAX_MATERIAL_BYTES))
        worker = self._workers.setdefault(rules.worker_id, _Worker(rules.worker_id))
        worker.rules = worker_rules(policy, files, rules.redaction_key)
        self._tidy(policy.tenant)

    def _tidy(self, tenant: str) -> None:
        if tenant in self._desks:
            rules = (worker.rules for worker in self._workers.values())
            self._desks[tenant].keep(found for found in rules if found is not None and found.tenant == tenant)

    def _worker_gone(self, worker_id: int) -> None:
        worker = self._workers.pop(worker_id, None)
        if worker is not None:
            self._drop(worker)
            if worker.rules is not None:
                self._tidy(worker.rules.tenant)

    def _drop(self, worker: _Worker) -> None:
        for call in list(worker.calls.values()):
            call.drop()
        worker.window.close()

    def _vm_gone(self, gone: control.EgressVmGone) -> None:
        worker = self._workers.get(gone.worker_id)
        if worker is not None:
            for call in [call for (vm_id, _), call in worker.calls.items() if vm_id == gone.vm_id]:
                call.drop()

    def _taken(self, taken: control.EgressTaken) -> None:
        worker = self._workers.get(taken.worker_id)
        if worker is not None:
            worker.window.taken(taken.bytes)

    def _status(self, number: int) -> None:
        text = self._counters.to_json()
        for start in range(0, len(text), PIECE_BYTES):
            more = start + PIECE_BYTES < len(text)
            piece = control.EgressStatus(number=number, counters_json=text[start : start + PIECE_BYTES], more=more)
            self._link.send(control.FromEgress(status=piece))

    # --- callouts ---

    def _callout(self, frame: control.EgressCallout) -> None:
        worker = self._workers.get(frame.worker_id)
        if worker is None or worker.rules is None:
            return  # it has gone
        key = (frame.vm_id, frame.call_id)
        if frame.first and key not in worker.calls:
            worker.calls[key] = self._new_call(worker, worker.rules, frame.plugin, key)
        if (call := worker.calls.get(key)) is not None:
            call.piece(frame.data, more=frame.more)

    def _new_call(self, worker: _Worker, rules: WorkerRules, plugin: str, key: tuple[int, int]) -> Call:
        desk = self._desks.get(rules.tenant)
        if desk is None:
            desk = self._desks[rules.tenant] = TenantDesk(rules.tenant, self._counters, self._lookup)
        context = Context(desk, plugin, rules.plugins.get(plugin, _NOTHING), desk.budget.lease())

        whole = asyncio.Lock()

        async def say(reply: control.CalloutReply | None, last: bool) -> None:
            data = reply.SerializeToString() if reply is not None else b""
            if len(data) <= PIECE_BYTES and not whole.locked():
                await self._answer(worker, key, data, last=last)
            else:  # in one piece for the worker, even if the call is cancelled meanwhile
                await asyncio.shield(self._answer_whole(whole, worker, key, data, last=last))

        return Call(context, say, lambda: self._ended(worker, key))

    def _ended(self, worker: _Worker, key: tuple[int, int]) -> None:
        worker.calls.pop(key, None)

    async def _answer_whole(
        self, whole: asyncio.Lock, worker: _Worker, key: tuple[int, int], data: bytes, *, last: bool
    ) -> None:
        async with whole:
            await self._answer(worker, key, data, last=last)

    async def _answer(self, worker: _Worker, key: tuple[int, int], data: bytes, *, last: bool) -> None:
        for start in range(0, len(data) or 1, PIECE_BYTES):
            piece = data[start : start + PIECE_BYTES]
            more = start + PIECE_BYTES < len(data)
            await worker.window.enter(len(piece))
            answer = control.EgressAnswer(
                worker_id=worker.worker_id,
                vm_id=key[0],
                call_id=key[1],
                data=piece,
                more=more,
                last=last and not more,
            )
            self._link.send(control.FromEgress(answer=answer))


def main(fd: int) -> None:
    """Run a broker on an inherited socket; for tests, which do not fork."""
    with contextlib.suppress(KeyboardInterrupt):
        serve_egress(socket.socket(fileno=fd))
    os._exit(0)  # threads of the resolver may hang in the system's
