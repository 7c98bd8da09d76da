"""A front process's insides in this process: service, gRPC server, fake VMs, and a raw ext_proc client."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import grpc
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb

from sandboxd.channel import layout, memfd
from sandboxd.front.counters import Counters
from sandboxd.front.ext_proc import ExtProcService
from sandboxd.front.plugin import Plugin, prepare
from sandboxd.front.registry import Channel, Owner, Registry
from sandboxd.policy.capability_names import CALLBACKS
from sandboxd.policy.load import parse_policy
from sandboxd.policy.model import PluginPolicy
from sandboxd.protos import network_ext_proc_pb2 as network_pb
from tests.support.eventually import until
from tests.support.fake_vm import Answer, FakeVm, pass_through

FUNCTIONS = (
    "proxy_get_header_map_pairs",
    "proxy_set_header_map_pairs",
    "proxy_add_header_map_value",
    "proxy_get_buffer_bytes",
    "proxy_set_buffer_bytes",
    "proxy_get_property",
    "proxy_set_property",
    "proxy_send_local_response",
    "proxy_log",
)
KEY = bytes(range(32))


def policy(extra: str = "", capabilities: str = "{preset: standard}", name: str = "filter") -> PluginPolicy:
    """A plugin's policy; ``extra`` holds further keys, one a line."""
    lines = "".join(f"    {line}\n" for line in extra.splitlines())
    text = (
        "tenant: acme\n"
        "plugins:\n"
        f"  - name: {name}\n"
        f"    module: {{file: m.wasm, sha256: {'0' * 64}}}\n"
        f"    capabilities: {capabilities}\n{lines}"
    )
    return parse_policy(text, "acme.yaml", module_root=None).plugins[0]


def plugin(
    extra: str = "",
    *,
    capabilities: str = "{preset: standard}",
    callbacks: Iterable[str] = CALLBACKS,
    functions: Iterable[str] = FUNCTIONS,
    name: str = "filter",
) -> Plugin:
    """A plugin that has all callbacks and uses the usual functions."""
    return prepare(
        "acme",
        policy(extra, capabilities, name),
        callbacks=callbacks,
        imported_functions=functions,
        redaction_key=KEY,
        imports=("proxy_log", "proxy_http_call"),
    )


def header_map(headers: Sequence[tuple[str, str]]) -> dict[str, Any]:
    return {"headers": [{"key": key, "raw_value": value.encode()} for key, value in headers]}


REQUEST = [(":method", "GET"), (":path", "/"), (":authority", "example.com"), (":scheme", "http")]
RESPONSE = [(":status", "200"), ("content-type", "text/plain")]


def request_headers(
    headers: Sequence[tuple[str, str]] = REQUEST, eos: bool = False, **rest: Any
) -> pb.ProcessingRequest:
    message = {"headers": header_map(headers), "end_of_stream": eos}
    return pb.ProcessingRequest(request_headers=message, **rest)


def response_headers(
    headers: Sequence[tuple[str, str]] = RESPONSE, eos: bool = False, **rest: Any
) -> pb.ProcessingRequest:
    message = {"headers": header_map(headers), "end_of_stream": eos}
    return pb.ProcessingRequest(response_headers=message, **rest)


def modes(request: int = 0, response: int = 0) -> pb.ProtocolConfiguration:
    return pb.ProtocolConfiguration(request_body_mode=request, response_body_mode=response)  # type: ignore[no-any-return]


class Rig:
    """
    A front with one plugin, served on a Unix socket.

    Args:
        folder: for the socket.
    """

    def __init__(self, folder: Path) -> None:
        self.address = f"unix:{folder}/front.sock"
        self.counters = Counters()
        self.registry = Registry(self.counters)
        self.service = ExtProcService(self.registry)
        self.broken: list[tuple[int, str]] = []
        self.drained: list[int] = []
        self.vms: list[FakeVm] = []
        self._next_channel = 1

    async def start(self) -> None:
        self.server = grpc.aio.server()
        self.server.add_generic_rpc_handlers((self.service.handler(),))
        self.server.add_insecure_port(self.address)
        await self.server.start()
        self.channel = grpc.aio.insecure_channel(self.address)

    def attach(
        self, made: Plugin | None = None, answer: Answer = pass_through, drain_s: float = 5, begin: bool = True
    ) -> Channel:
        """Give the front a channel whose fake VM serves from a thread."""
        fds = memfd.create_channel(65536)
        vm = FakeVm(fds, answer)
        self.vms.append(vm)
        made = made or plugin()
        owner = Owner(lambda n, reason: self.broken.append((n, reason)), self._drained)
        counters = self.counters.plugin(made.key)
        channel = Channel(self._next_channel, made, fds, counters=counters, owner=owner, spin_ns=20_000)
        self._next_channel += 1
        self.registry.attach(channel, drain_s)
        vm.start()
        if begin:
            vm.begin()
        return channel

    def _drained(self, channel_id: int) -> None:
        self.registry.drained(channel_id)
        self.drained.append(channel_id)

    def call(self, tenant: str = "acme", plugin: str = "", metadata: Any = None) -> Call:
        """Open an ext_proc stream."""
        if metadata is None:
            metadata = [("x-sandboxd-tenant", tenant)] + ([("x-sandboxd-plugin", plugin)] if plugin else [])
        method = self.channel.stream_stream(
            "/envoy.service.ext_proc.v3.ExternalProcessor/Process",
            request_serializer=pb.ProcessingRequest.SerializeToString,
            response_deserializer=pb.ProcessingResponse.FromString,
        )
        return Call(method(metadata=metadata))

    def connect(self, plugin: str = "") -> Connection:
        """Open a network ext_proc stream."""
        metadata = [("x-sandboxd-tenant", "acme")] + ([("x-sandboxd-plugin", plugin)] if plugin else [])
        method = self.channel.stream_stream(
            "/envoy.service.network_ext_proc.v3.NetworkExternalProcessor/Process",
            request_serializer=network_pb.ProcessingRequest.SerializeToString,
            response_deserializer=network_pb.ProcessingResponse.FromString,
        )
        return Connection(method(metadata=metadata))

    def count(self, name: str, key: str = "acme/filter") -> int:
        return self.counters.plugin(key).values.get(name, 0)

    async def until(self, condition: Any, timeout_s: float = 3) -> None:
        """As `tests.support.eventually.until`."""
        await until(condition, timeout_s)

    async def close(self) -> None:
        await self.channel.close()
        await self.server.stop(0)
        self.registry.close()
        for vm in self.vms:
            vm.stop()


class Call:
    """One ext_proc stream of the client."""

    def __init__(self, rpc: Any) -> None:
        self.rpc = rpc

    async def send(self, message: pb.ProcessingRequest) -> None:
        await asyncio.wait_for(self.rpc.write(message), 5)

    async def receive(self) -> pb.ProcessingResponse:
        reply = await asyncio.wait_for(self.rpc.read(), 5)
        assert reply is not grpc.aio.EOF, "the stream ended"
        return reply

    async def ask(self, message: pb.ProcessingRequest) -> pb.ProcessingResponse:
        await self.send(message)
        return await self.receive()

    async def done(self) -> None:
        await self.rpc.done_writing()
        assert await asyncio.wait_for(self.rpc.read(), 5) is grpc.aio.EOF

    async def status(self) -> tuple[grpc.StatusCode, str]:
        code = await asyncio.wait_for(self.rpc.code(), 5)
        return code, await self.rpc.details()


class Connection(Call):
    """One network ext_proc stream of the client."""

    async def down(self, data: bytes, eos: bool = False, **rest: Any) -> None:
        """Send what comes from downstream."""
        await self.send(network_pb.ProcessingRequest(read_data={"data": data, "end_of_stream": eos}, **rest))

    async def up(self, data: bytes, eos: bool = False, **rest: Any) -> None:
        """Send what comes from upstream."""
        await self.send(network_pb.ProcessingRequest(write_data={"data": data, "end_of_stream": eos}, **rest))

    async def reply(self) -> tuple[str, bytes, bool]:
        """Receive a reply: direction or status, bytes, end of stream."""
        got = await self.receive()
        for name in ("read_data", "write_data"):
            if got.HasField(name):
                data = getattr(got, name)
                assert got.connection_status == got.CONTINUE
                return name, data.data, data.end_of_stream
        return got.ConnectionStatus.Name(got.connection_status), b"", False

    async def silent(self) -> bool:
        """Whether no reply comes for a while; the stream is of no use afterwards."""
        try:
            await asyncio.wait_for(self.rpc.read(), 0.1)
        except TimeoutError:
            return True
        return False


def kinds_seen(vm: FakeVm) -> list[str]:
    return [layout.SUBMISSION_NAMES[event.kind] for event in vm.seen]
