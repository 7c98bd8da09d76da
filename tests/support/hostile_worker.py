"""
A worker that was taken over: native code of an attacker inside the real jail, with the real control socket and channel.

``python -m tests.support.hostile_worker CONTROL_FD``. The tenant's name says what it does: ``evil-DEED``; every other
tenant gets an honest worker. A deed is done when a request comes.
"""

from __future__ import annotations

import array
import os
import socket as sockets
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any

from sandboxd.channel import layout, pairs
from sandboxd.channel.completions import LocalResponse, encode_local_response
from sandboxd.channel.memfd import ChannelFds
from sandboxd.channel.ring import Record
from sandboxd.jail.enter import enter
from sandboxd.jail.full_plan import decode
from sandboxd.protos import control_pb2 as control
from sandboxd.worker.control import ControlSocket
from sandboxd.worker.loop import Loop
from tests.support.fake_vm import Event, FakeVm, pass_through
from tests.support.hostile_bodies import BodyDeeds
from tests.support.hostile_callouts import CalloutDeeds
from tests.support.hostile_connections import ConnectionDeeds
from tests.support.hostile_files import FileDeeds

LOCKED, ALLOWED = b"x-locked", b"x-allowd"
"""Headers that the policy forbids to write and does not; of one length."""
FORGED_LINE = "\n2026-01-01T00:00:00.000 critical MainProcess: all your base"
LOG_LINES = 5000
SMUGGLED_FRAMES = 50


class Evil(BodyDeeds, CalloutDeeds, ConnectionDeeds, FileDeeds):
    """One worker with one deed."""

    def __init__(self, deed: str, socket: ControlSocket) -> None:
        super().__init__()
        self._answer: Callable[[Event], Iterable[Record]] = getattr(self, deed.replace("-", "_"))
        self._socket = socket
        self._vms: list[FakeVm] = []
        self._vm_ids: list[int] = []
        self._smuggled = 0

    def run(self) -> None:
        """Serve as far as an attacker who wants to be let in must."""
        while (frame := self._socket.receive()) is not None:
            if frame.kind == "load_plugin":
                self._socket.send(plugin_loaded=control.PluginLoaded(plugin_id=frame.body.plugin_id))
            elif frame.kind == "open_vm":
                self._open(frame.body, frame.fds)
            elif frame.kind == "close_vm":
                self._socket.send(vm_closed=control.VmClosed(vm_id=frame.body.vm_id))
            elif frame.kind == "restart_vm" and self._smuggled:
                self._smuggle_one()
            elif frame.kind == "callout_answer":
                self.callout_answer(frame.body)
            elif frame.kind == "ping":
                self._socket.send(pong=control.Pong(number=frame.body.number))

    def _open(self, request: Any, fds: tuple[int, ...]) -> None:
        vm = FakeVm(ChannelFds(*fds[:3], ring_bytes=request.ring_bytes), self._answered)
        self._vms.append(vm)
        self._vm_ids.append(request.vm_id)
        vm.start()
        vm.begin()
        self._socket.send(vm_started=control.VmStarted(vm_id=request.vm_id, generation=1))

    def _answered(self, event: Event) -> Iterable[Record]:
        begins = event.kind in {layout.REQUEST_HEADERS, layout.DOWNSTREAM_DATA}
        does = begins or getattr(self._answer, "answers_everything", False)
        return self._answer(event) if does else pass_through(event)

    def _changed(self, event: Event, *added: tuple[bytes, bytes]) -> list[Record]:
        payload = pairs.encode([*pairs.decode(event.payload), *added])
        return [event.effect(event.kind, payload, layout.FLAG_MODIFIED), event.verdict()]

    # --- deeds ---

    def twin(self, event: Event) -> Iterable[Record]:
        """No misdeed: a change that the policy allows."""
        return self._changed(event, (ALLOWED, b"1"))

    def forged_verdict(self, event: Event) -> Iterable[Record]:
        """A verdict on an event that was never sent."""
        return [(layout.VERDICT, 0, event.stream_id, event.seq + 1000, 0, b"")]

    def other_streams(self, event: Event) -> Iterable[Record]:
        """Answers for every stream that anybody might have open."""
        for stream_id in range(1, 400):
            if stream_id != event.stream_id:
                yield event.effect(event.kind, b"", 0, 0, stream_id)
                yield (layout.VERDICT, 0, stream_id, event.seq, 0, b"")

    def forbidden_headers(self, event: Event) -> Iterable[Record]:
        """Writes what it may not, in the guise of an honest answer."""
        forbidden = [(LOCKED, b"1"), (b"authorization", b"Bearer forged"), (b":authority", b"evil.example")]
        return self._changed(event, *forbidden, (ALLOWED, b"1"))

    def ungranted(self, event: Event) -> Iterable[Record]:
        """Sets a property, and a header, as if it had functions for that."""
        forged = pairs.encode([(b"forged", b"1")])
        return [event.effect(layout.PROPERTY_SET, forged), *self._changed(event, (ALLOWED, b"1"))]

    def ungranted_answer(self, event: Event) -> Iterable[Record]:
        """Answers in the upstream's place as if it had a function for that."""
        answer = LocalResponse(403, -1, False, b"forged", [], b"forged")
        return [event.effect(layout.LOCAL_RESPONSE, encode_local_response(answer, b"")), event.verdict()]

    granted, granted_answer = ungranted, ungranted_answer

    def changing(self, event: Event) -> Iterable[Record]:
        """Rewrites its answer for as long as the other side may be reading it."""
        if not hasattr(self, "_changer"):
            self._changer = threading.Thread(target=self._rewrite, daemon=True)
            self._changer.start()
        return self._changed(event, (ALLOWED, b"1"))

    def _rewrite(self) -> None:
        ring = self._vms[0]._views[3]
        while True:
            for old, new in ((ALLOWED, LOCKED), (LOCKED, ALLOWED)):
                found = bytes(ring[: 1 << 16]).find(old)
                while found >= 0:
                    ring[found : found + len(new)] = new
                    found = bytes(ring[: 1 << 16]).find(old, found + 1)

    def wild_tail(self, _event: Event) -> Iterable[Record]:
        """A completion counter far outside the ring."""
        self._vms[0].words[layout.OFFSET_CQ_TAIL // 4] = 0xFFFF_FF00
        os.eventfd_write(self._vms[0]._client_fd, 1)
        return []

    def wild_head(self, event: Event) -> Iterable[Record]:
        """A submission counter that claims to have read what was never written."""
        if not hasattr(self, "_writer"):
            self._writer = threading.Thread(target=self._write_heads, daemon=True)
            self._writer.start()
        return pass_through(event)

    def _write_heads(self) -> None:
        while True:
            self._vms[0].words[layout.OFFSET_SQ_HEAD // 4] = 0x0123_4560

    def log_flood(self, event: Event) -> Iterable[Record]:
        """Lines without end, each dressed as one of the daemon's own."""
        for number in range(LOG_LINES):
            yield event.effect(layout.LOG, f"flood {number}{FORGED_LINE}\x1b[2J\r{FORGED_LINE}".encode(), arg=5)
        yield from pass_through(event)

    def silent(self, _event: Event) -> Iterable[Record]:
        """Never answers, and pings are answered all the same."""
        return []

    def long_frame(self, event: Event) -> Iterable[Record]:
        """A control frame larger than any may be."""
        os.write(self._socket._socket.fileno(), b"x" * 70_000)
        return pass_through(event)

    def frame_flood(self, _event: Event) -> Iterable[Record]:
        """More frames than anybody has to say."""
        while True:
            self._socket.send(vm_failed=self._failure("flood" + FORGED_LINE))

    def give_up(self, _event: Event) -> Iterable[Record]:
        """Gives up, again and again; each time is a line of the log."""
        while True:
            self._socket.send(error=control.WorkerError(message="gone" + FORGED_LINE))

    def unasked_start(self, _event: Event) -> Iterable[Record]:
        """Starts its VM again without leave, so that nobody counts its crashes."""
        self._socket.send(vm_failed=self._failure("once"))
        while True:  # leave for the second start may have come meanwhile, for the ninth it cannot
            self._socket.send(vm_started=control.VmStarted(vm_id=self._vm_ids[0], generation=9))

    def _failure(self, message: str, generation: int = 1) -> control.VmFailed:
        return control.VmFailed(vm_id=self._vm_ids[0], generation=generation, message=message)

    def smuggle(self, event: Event) -> Iterable[Record]:
        """Good frames with descriptors beside them, to fill the receiver's table."""
        self._smuggle_one()
        return pass_through(event)

    def _smuggle_one(self) -> None:
        """A failure is told once for each leave to start; there is no other frame to be had so often."""
        if self._smuggled == SMUGGLED_FRAMES:
            return
        self._smuggled += 1
        vm = self._vms[0]
        fds = array.array("i", [vm.fds.memfd, vm.fds.vm_event_fd, vm.fds.client_event_fd] * 20)
        frame = control.FromWorker(vm_failed=self._failure("smuggled", self._smuggled)).SerializeToString()
        self._socket._socket.sendmsg([frame], [(sockets.SOL_SOCKET, sockets.SCM_RIGHTS, fds)])

    def system_call(self, event: Event) -> Iterable[Record]:
        """What no honest worker asks of the kernel."""
        sockets.socket()
        return pass_through(event)

    def crash(self, _event: Event) -> Iterable[Record]:
        """Ends without a word."""
        os._exit(0)


def main() -> None:
    """Be hostile or honest, as the tenant's name says."""
    socket = ControlSocket(int(sys.argv[1]))
    frame = socket.receive()
    assert frame is not None
    tenant = frame.body.tenant
    jail = enter(decode(frame.body.jail_plan))
    socket.send(ready=control.WorkerReady(layers=jail.layers()))
    if not tenant.startswith("evil-"):
        Loop(socket, jail.lock).run()
        return
    jail.lock()
    Evil(tenant.removeprefix("evil-"), socket).run()


if __name__ == "__main__":
    try:
        main()
    finally:
        os._exit(0)
