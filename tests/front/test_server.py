"""A front process's outside: the supervisor's frames in, gRPC served, its own frames out."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb

from sandboxd.channel import memfd
from sandboxd.config import Machine
from sandboxd.config_file import load_config
from sandboxd.errors import ConfigError
from sandboxd.front.server import Front
from sandboxd.policy.capability_names import CALLBACKS
from sandboxd.protos import control_pb2 as control
from sandboxd.supervisor import frames
from tests.support.fake_vm import FakeVm
from tests.support.front_rig import FUNCTIONS, Call, request_headers

POLICY = (
    "tenant: acme\nplugins:\n"
    f"  - {{name: filter, module: {{file: m.wasm, sha256: {'0' * 64}}}, capabilities: {{preset: standard}}}}\n"
)


class Supervisor:
    """The other end of a front's control socket."""

    def __init__(self, folder: Path, front_section: str = "") -> None:
        config = folder / "sandboxd.yaml"
        config.write_text(
            f"policies: {folder}\nruntime_directory: {folder}\nstate_directory: {folder}\ncache_directory: {folder}\n"
            f"front:\n  processes: 1\n{front_section}"
        )
        self.config = load_config(config, Machine(euid=1000, cpus=2, environ={}))
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.setblocking(False)
        self.front = Front(0, theirs, self.config)
        self.vms: list[FakeVm] = []

    async def start(self) -> control.FrontReady:
        self.task = asyncio.ensure_future(self.front.run())
        self.send(control.ToFront(serve=control.Serve()))
        ready = (await self.next()).ready
        self.channel = grpc.aio.insecure_channel(ready.addresses[0])
        return ready

    def send(self, frame: control.ToFront, fds: tuple[int, ...] = ()) -> None:
        frames.send(self.socket, frames.encode(frame), fds)
        for fd in fds:
            os.close(fd)

    def attach(self, number: int, policy: str = POLICY) -> None:
        fds = memfd.create_channel(65536)
        self.vms.append(FakeVm(fds).start())
        self.vms[-1].begin()
        attach = control.Attach(
            channel_id=number,
            tenant="acme",
            plugin="filter",
            ring_bytes=65536,
            callbacks=sorted(CALLBACKS),
            imported_functions=FUNCTIONS,
            policy_path="acme.yaml",
            redaction_key=bytes(32),
            drain_timeout_ns=5_000_000_000,
        )
        blob = memfd.create_blob("policy", policy.encode())
        self.send(control.ToFront(attach=attach), (fds.memfd, fds.vm_event_fd, fds.client_event_fd, blob))

    async def next(self) -> control.FromFront:
        loop = asyncio.get_running_loop()
        data = await asyncio.wait_for(loop.sock_recv(self.socket, frames.MAX_FRAME_BYTES), 5)
        return control.FromFront.FromString(data)

    def call(self) -> Call:
        method = self.channel.stream_stream(
            "/envoy.service.ext_proc.v3.ExternalProcessor/Process",
            request_serializer=pb.ProcessingRequest.SerializeToString,
            response_deserializer=pb.ProcessingResponse.FromString,
        )
        return Call(method(metadata=[("x-sandboxd-tenant", "acme")]))

    async def ask(self) -> str:
        call = self.call()
        reply = await call.ask(request_headers(eos=True))
        which = reply.WhichOneof("response")
        if which == "immediate_response":
            return str(reply.immediate_response.details)
        await call.done()
        return str(which)

    async def close(self) -> None:
        self.socket.close()
        await asyncio.wait_for(self.task, 5)
        await self.channel.close()
        for vm in self.vms:
            vm.stop()


@pytest.fixture
async def supervisor(tmp_path: Path) -> AsyncIterator[Supervisor]:
    made = Supervisor(tmp_path)
    await made.start()
    yield made
    await made.close()


async def test_it_listens_with_the_mode_that_was_asked_for(tmp_path: Path) -> None:
    made = Supervisor(tmp_path, "  socket_mode: '0620'\n  tenant_sockets: {acme: 'acme-{index}.sock'}\n")
    ready = await made.start()

    assert ready.index == 0
    assert len(ready.addresses) == 2
    for address in ready.addresses:
        assert stat.S_IMODE(Path(address.removeprefix("unix:")).stat().st_mode) == 0o620
    made.attach(1)
    await made.channel.close()
    made.channel = grpc.aio.insecure_channel(ready.addresses[1])
    assert await made.ask() == "request_headers"
    await made.close()


async def test_attach_serve_detach(supervisor: Supervisor) -> None:
    supervisor.attach(1)
    assert await supervisor.ask() == "request_headers"
    supervisor.send(control.ToFront(detach=control.Detach(channel_id=1, reason="killed")))
    assert await supervisor.ask() == "sandboxd_vm_down"
    supervisor.attach(2)
    assert await supervisor.ask() == "request_headers"


async def test_reattach_drains_the_old_channel(supervisor: Supervisor) -> None:
    supervisor.attach(1)
    call = supervisor.call()
    await call.ask(request_headers())
    supervisor.attach(2)
    assert await supervisor.ask() == "request_headers"
    await call.done()

    assert (await supervisor.next()).channel_drained.channel_id == 1


async def test_plugin_down_and_removed(supervisor: Supervisor) -> None:
    down = control.PluginDown(tenant="acme", plugin="filter", policy_path="acme.yaml", reason="quarantined")
    supervisor.send(control.ToFront(plugin_down=down), (memfd.create_blob("policy", POLICY.encode()),))
    assert await supervisor.ask() == "sandboxd_vm_down"
    down.removed = True
    supervisor.send(control.ToFront(plugin_down=down))
    code, details = await supervisor.call().status()

    assert code is grpc.StatusCode.NOT_FOUND
    assert "no tenant 'acme'" in details


async def test_status(supervisor: Supervisor) -> None:
    supervisor.attach(1)
    await supervisor.ask()
    supervisor.send(control.ToFront(status=control.FrontStatusRequest(number=7)))
    status = (await supervisor.next()).status

    assert status.number == 7
    assert json.loads(status.counters_json)["acme/filter"]["streams"] == 1


async def test_a_broken_channel_is_told(supervisor: Supervisor) -> None:
    supervisor.attach(1)
    await supervisor.ask()
    supervisor.vms[0].emit([(99, 0, 0, 0, 0, b"")])
    broken = (await supervisor.next()).channel_broken

    assert broken.channel_id == 1
    assert "unknown kind 99" in broken.reason
    assert await supervisor.ask() == "sandboxd_vm_down"


async def test_an_attach_that_cannot_be_used(supervisor: Supervisor) -> None:
    supervisor.attach(3, POLICY.replace("name: filter", "name: other"))
    broken = (await supervisor.next()).channel_broken

    assert broken.channel_id == 3
    assert "no plugin acme/filter" in broken.reason


async def test_drain_ends_the_process(supervisor: Supervisor) -> None:
    supervisor.attach(1)
    await supervisor.ask()
    supervisor.send(control.ToFront(drain=control.Drain()))
    await asyncio.wait_for(asyncio.shield(supervisor.task), 5)


async def test_a_socket_that_cannot_be_made(tmp_path: Path) -> None:
    made = Supervisor(tmp_path, "  listen: [{unix: /nonexistent/front.sock}]\n")
    made.send(control.ToFront(serve=control.Serve()))
    with pytest.raises(ConfigError, match="cannot listen on unix:/nonexistent"):
        await made.front.run()
    made.socket.close()


# --- before there is a channel ---

PATIENT = POLICY.replace("{preset: standard}", "{preset: standard}, limits: {time_per_event: 3s}")


def starting(policy: str = PATIENT) -> tuple[control.ToFront, tuple[int]]:
    """What a new front is told of a plugin whose VM is on the way."""
    down = control.PluginDown(
        tenant="acme", plugin="filter", policy_path="acme.yaml", reason="it is starting", starting=True
    )
    return control.ToFront(plugin_down=down), (memfd.create_blob("policy", policy.encode()),)


async def test_it_does_not_listen_before_it_knows_the_plugins(tmp_path: Path) -> None:
    made = Supervisor(tmp_path)
    made.task = asyncio.ensure_future(made.front.run())
    made.send(control.ToFront(status=control.FrontStatusRequest(number=1)))
    assert (await made.next()).status.number == 1
    assert not list(tmp_path.glob("*.sock"))

    made.send(*starting())
    made.send(control.ToFront(serve=control.Serve()))
    ready = (await made.next()).ready
    made.channel = grpc.aio.insecure_channel(ready.addresses[0])
    asked = asyncio.ensure_future(made.ask())
    await asyncio.sleep(0.05)
    assert not asked.done()
    made.attach(1)

    assert await asked == "request_headers"
    await made.close()


async def test_a_front_that_is_not_wanted_any_more_ends_before_it_listens(tmp_path: Path) -> None:
    made = Supervisor(tmp_path)
    made.task = asyncio.ensure_future(made.front.run())
    made.socket.close()

    await asyncio.wait_for(made.task, 5)
    assert not list(tmp_path.glob("*.sock"))


async def test_waiting_for_the_first_channel_is_bounded(supervisor: Supervisor) -> None:
    supervisor.send(*starting(PATIENT.replace("3s", "300ms")))
    begin = asyncio.get_running_loop().time()

    assert await supervisor.ask() == "sandboxd_vm_down"
    assert 0.25 < asyncio.get_running_loop().time() - begin < 2


async def test_waiting_ends_with_the_word_that_there_is_no_vm(supervisor: Supervisor) -> None:
    supervisor.send(*starting())
    asked = asyncio.ensure_future(supervisor.ask())
    await asyncio.sleep(0.05)
    frame, fds = starting()
    frame.plugin_down.starting = False
    begin = asyncio.get_running_loop().time()
    supervisor.send(frame, fds)

    assert await asked == "sandboxd_vm_down"
    assert asyncio.get_running_loop().time() - begin < 1
