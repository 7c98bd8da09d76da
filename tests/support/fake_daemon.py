"""
The daemon with fronts that speak no gRPC, as a program: ``python fake_daemon.py CONFIG``.

A fake front listens on its Unix socket for lines ``TENANT PLUGIN [PATH]``, drives one GET exchange through the
plugin's VM and answers with one JSON line. So the supervisor is tested whole, and nothing but the supervisor.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import socket
import sys
from pathlib import Path
from typing import Any

from sandboxd.channel import layout
from sandboxd.channel.client import VmClient
from sandboxd.channel.completions import decode_map
from sandboxd.channel.errors import ChannelBroken
from sandboxd.channel.memfd import ChannelFds
from sandboxd.channel.pairs import encode
from sandboxd.channel.sync_vm import SyncVm, VmLost
from sandboxd.config import DaemonConfig, UnixListen
from sandboxd.config_file import load_config
from sandboxd.protos import control_pb2 as control
from sandboxd.supervisor import frames
from sandboxd.supervisor.serve import serve

Json = dict[str, Any]
HEADERS = [(b":method", b"GET"), (b":authority", b"example.com"), (b":scheme", b"http")]


class FakeFront:
    """One front process."""

    def __init__(self, config: DaemonConfig, index: int, control_socket: socket.socket) -> None:
        self._control = control_socket
        self._channels: dict[int, tuple[SyncVm, str]] = {}
        self._serving: dict[str, int] = {}
        self._down: dict[str, str] = {}
        listen = config.front.listen[0]
        assert isinstance(listen, UnixListen)
        path = listen.path(index)
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen(64)
        self._tell(ready=control.FrontReady(index=index, addresses=[f"unix:{path}"]))
        logging.getLogger(__name__).info("fake front %d begins", index)

    def run(self) -> None:
        """Serve until the supervisor goes away or asks to drain."""
        poller = select.poll()
        poller.register(self._control, select.POLLIN)
        poller.register(self._listener, select.POLLIN)
        while True:
            for fd, _ in poller.poll():
                if fd == self._listener.fileno():
                    self._serve_one()
                elif not self._handle(frames.receive_with_fds(self._control)):
                    return

    def close(self) -> None:
        """Close everything."""
        for vm, _ in self._channels.values():
            vm.close()
        self._listener.close()
        self._control.close()

    def _tell(self, **frame: Any) -> None:
        frames.send(self._control, frames.encode(control.FromFront(**frame)))

    def _handle(self, packet: frames.Packet) -> bool:
        frame = control.ToFront.FromString(packet.data)
        match frame.WhichOneof("frame"):
            case "attach":
                self._attach(frame.attach, packet.fds)
            case "detach":
                self._drop(frame.detach.channel_id)
            case "plugin_down":
                key = f"{frame.plugin_down.tenant} {frame.plugin_down.plugin}"
                self._down[key] = "removed" if frame.plugin_down.removed else frame.plugin_down.reason
                old = self._serving.pop(key, None)
                packet.close()
                if old is not None:
                    self._drop(old)
                    self._tell(channel_drained=control.ChannelDrained(channel_id=old))
            case "status":
                counters = {key.replace(" ", "/"): {"streams_open": 0} for key in self._serving}
                status = control.FrontStatus(number=frame.status.number, counters_json=json.dumps(counters))
                self._tell(status=status)
            case "drain" | None:
                return False
        return True

    def _attach(self, attach: control.Attach, fds: tuple[int, ...]) -> None:
        text = os.pread(fds[3], 1 << 20, 0).decode()
        os.close(fds[3])
        assert f"tenant: {attach.tenant}" in text
        vm = SyncVm(VmClient(ChannelFds(fds[0], fds[1], fds[2], attach.ring_bytes)))
        key = f"{attach.tenant} {attach.plugin}"
        old = self._serving.get(key)
        self._channels[attach.channel_id] = (vm, key)
        self._serving[key] = attach.channel_id
        self._down.pop(key, None)
        if old is not None:
            self._drop(old)
            self._tell(channel_drained=control.ChannelDrained(channel_id=old))

    def _drop(self, channel_id: int) -> None:
        vm, key = self._channels.pop(channel_id, (None, ""))
        if vm is not None:
            vm.close()
            if self._serving.get(key) == channel_id:
                del self._serving[key]

    def _serve_one(self) -> None:
        connection, _ = self._listener.accept()
        with connection, contextlib.suppress(OSError), connection.makefile("r") as lines:
            connection.settimeout(5)
            for line in lines:
                connection.sendall(json.dumps(self._exchange(line.strip())).encode() + b"\n")

    def _exchange(self, key: str) -> Json:
        if key.startswith("broken "):
            channel_id = self._serving[key.removeprefix("broken ")]
            self._tell(channel_broken=control.ChannelBroken(channel_id=channel_id, reason="a test says so"))
            return {}
        tenant, _, rest = key.partition(" ")
        plugin, _, path = rest.partition(" ")
        key = f"{tenant} {plugin}"
        channel_id = self._serving.get(key, 0)
        if not channel_id:
            return {"down": self._down.get(key, "unknown")}
        vm = self._channels[channel_id][0]
        try:
            vm.wait_ready(0.2)
            stream_id = vm.client.open_stream(b"", 1)
            payload = encode([(b":path", path.encode() or b"/"), *HEADERS])
            # Short: while it waits, this front hears no Detach.
            verdict = vm.call(stream_id, layout.REQUEST_HEADERS, payload, end_of_stream=True, timeout_s=0.2)
            vm.close_stream(stream_id, timeout_s=0.2)
        except (VmLost, ChannelBroken, TimeoutError) as error:
            return {"failed": str(error)}
        headers: list[list[str]] = []
        for effect in verdict.effects:
            if effect.kind == layout.REQUEST_HEADERS and effect.payload:
                headers = [[name.decode(), value.decode()] for name, value in decode_map(effect.payload)]
        return {"code": verdict.code, "headers": headers, "generation": vm.client.generation}


def main(path: str) -> int:
    """Run the daemon."""
    config = load_config(Path(path))
    return serve(config, lambda index, sock: _run(config, index, sock))


def _run(config: DaemonConfig, index: int, control_socket: socket.socket) -> None:
    front = FakeFront(config, index, control_socket)
    try:
        front.run()
    finally:
        front.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
