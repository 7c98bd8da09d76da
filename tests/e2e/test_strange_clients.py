"""gRPC clients that are no Envoy: out of order, endless, or gone half-way. The next one is served."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from envoy.config.core.v3 import base_pb2 as core
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb
from envoy.service.ext_proc.v3 import external_processor_pb2_grpc as pb_grpc

from sandboxd.demo import daemon
from tests.support import guests, stage

pytestmark = pytest.mark.timeout(120)

TENANT = "tenant"
PLUGIN = guests.C_ADD_HEADER.name
METADATA = (("x-sandboxd-tenant", TENANT), ("x-sandboxd-plugin", PLUGIN))


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[daemon.Daemon]:
    """A daemon without an Envoy."""
    directory = tmp_path_factory.mktemp("strange")
    policies = directory / "policies"
    policies.mkdir()
    stage.Tenant(TENANT, [guests.C_ADD_HEADER.plugin()]).write(policies)
    with daemon.running(policies, directory) as running:
        yield running


@pytest.fixture
async def channel(sandbox: daemon.Daemon) -> AsyncIterator[grpc.aio.Channel]:
    """A connection to the front."""
    async with grpc.aio.insecure_channel(f"unix:{sandbox.sockets[0]}") as channel:
        yield channel


def headers(*, end: bool = True) -> pb.HttpHeaders:
    """Return a header map as Envoy sends it."""
    named = [(":method", "GET"), (":path", "/"), (":authority", "a")]
    values = [core.HeaderValue(key=key, raw_value=value.encode()) for key, value in named]
    return pb.HttpHeaders(headers=core.HeaderMap(headers=values), end_of_stream=end)


def request_headers(*, end: bool = True) -> pb.ProcessingRequest:
    """Return the usual first message."""
    return pb.ProcessingRequest(request_headers=headers(end=end), protocol_config=pb.ProtocolConfiguration())


def response_headers() -> pb.ProcessingRequest:
    """Return the usual second message."""
    values = [core.HeaderValue(key=":status", raw_value=b"200")]
    return pb.ProcessingRequest(
        response_headers=pb.HttpHeaders(headers=core.HeaderMap(headers=values), end_of_stream=True)
    )


def start(channel: grpc.aio.Channel, metadata: Any = METADATA) -> Any:
    """Begin a stream."""
    return pb_grpc.ExternalProcessorStub(channel).Process(metadata=metadata, timeout=20)


async def assert_served(channel: grpc.aio.Channel) -> None:
    """An orderly client is served as if nothing had been."""
    call = start(channel)
    await call.write(request_headers())
    answer = await asyncio.wait_for(call.read(), 5)
    assert answer.WhichOneof("response") == "request_headers"
    mutation = answer.request_headers.response.header_mutation
    assert [option.header.key for option in mutation.set_headers] == ["x-wasm-processed"]
    await call.write(response_headers())
    assert (await asyncio.wait_for(call.read(), 5)).WhichOneof("response") == "response_headers"
    await call.done_writing()
    assert await asyncio.wait_for(call.read(), 5) is grpc.aio.EOF


async def ends_with(call: Any) -> grpc.StatusCode:
    """Return the status with which the server ends a stream; it must do so in time."""

    async def drain() -> grpc.StatusCode:
        try:
            while await call.read() is not grpc.aio.EOF:
                pass
        except grpc.aio.AioRpcError:
            pass
        return await call.code()

    return await asyncio.wait_for(drain(), 10)


async def write_all(call: Any, messages: list[pb.ProcessingRequest]) -> None:
    """Send what the server lets us send."""
    for message in messages:
        try:
            await call.write(message)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return


BODY = pb.ProcessingRequest(request_body=pb.HttpBody(body=b"x", end_of_stream=True))
TRAILERS = pb.ProcessingRequest(request_trailers=pb.HttpTrailers())
# The last message is the wrong one: a client that writes to a stream that has ended learns only that it has.
DISORDER = {
    "headers-twice": [request_headers(), request_headers()],
    "body-after-the-end": [request_headers(), BODY],
    "trailers-twice": [request_headers(end=False), TRAILERS, TRAILERS],
    "headers-after-trailers": [TRAILERS, request_headers()],
    "empty": [pb.ProcessingRequest()],
    "unknown-mode": [
        pb.ProcessingRequest(request_headers=headers(), protocol_config=pb.ProtocolConfiguration(request_body_mode=17))
    ],
}


@pytest.mark.parametrize("name", DISORDER)
async def test_messages_out_of_order_end_the_stream(channel: grpc.aio.Channel, name: str) -> None:
    """With an error that blames the client, never with a hang."""
    call = start(channel)
    await write_all(call, DISORDER[name])

    assert await ends_with(call) in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION)
    await assert_served(channel)


async def test_bytes_that_are_no_message_end_the_stream(channel: grpc.aio.Channel) -> None:
    """The same for what does not parse."""
    method = "/envoy.service.ext_proc.v3.ExternalProcessor/Process"
    call = channel.stream_stream(method, request_serializer=None, response_deserializer=None)(
        metadata=METADATA, timeout=20
    )
    await call.write(b"\xff\xff\xff\xff")

    assert await ends_with(call) not in (grpc.StatusCode.OK, grpc.StatusCode.DEADLINE_EXCEEDED)
    await assert_served(channel)


@pytest.mark.parametrize(
    "metadata",
    [
        (),
        (("x-sandboxd-tenant", "nobody"), ("x-sandboxd-plugin", PLUGIN)),
        (("x-sandboxd-tenant", TENANT), ("x-sandboxd-plugin", "nothing")),
        (("x-sandboxd-tenant", "../etc"), ("x-sandboxd-plugin", PLUGIN)),
    ],
)
async def test_unknown_tenants_get_nothing(channel: grpc.aio.Channel, metadata: Any) -> None:
    """An error response or an error status: no filter runs, and nothing passes unfiltered."""
    call = start(channel, metadata)
    await write_all(call, [request_headers()])
    try:
        first = await asyncio.wait_for(call.read(), 10)
    except grpc.aio.AioRpcError:
        first = grpc.aio.EOF
    if first is grpc.aio.EOF:
        assert await call.code() not in (grpc.StatusCode.OK, grpc.StatusCode.DEADLINE_EXCEEDED)
    else:
        assert first.immediate_response.status.code >= 500
        call.cancel()
    await assert_served(channel)


async def test_clients_that_vanish_leave_nothing_behind(sandbox: daemon.Daemon, channel: grpc.aio.Channel) -> None:
    """Streams of a client that is gone end in the VM as well."""
    for _ in range(50):
        call = start(channel)
        await call.write(request_headers())
        await call.read()
        call.cancel()
    await assert_served(channel)

    def streams() -> int:
        return sum(vm["streams"] for plugin in sandbox.tenants()[TENANT]["plugins"] for vm in plugin["vms"])

    for _ in range(100):
        if streams() == 0 and sandbox.status()["fronts"][0]["streams"] == 0:
            return
        await asyncio.sleep(0.1)
    pytest.fail(f"{streams()} streams are still open in the VM")


async def test_clients_that_never_end_do_not_keep_others_waiting(channel: grpc.aio.Channel) -> None:
    """Streams that stay open cost a stream each and nothing more."""
    silent = [start(channel) for _ in range(50)]
    for call in silent:
        await call.write(request_headers())
        await call.read()

    await assert_served(channel)
    for call in silent:
        call.cancel()


async def test_a_stream_of_many_messages_is_bounded(sandbox: daemon.Daemon, channel: grpc.aio.Channel) -> None:
    """A client that sends and never reads is held back or cut off; it cannot fill the front's memory."""
    front = psutil.Process(sandbox.status()["fronts"][0]["pid"])
    before = front.memory_info().rss
    config = pb.ProtocolConfiguration(request_body_mode=2)
    call = start(channel)
    await call.write(pb.ProcessingRequest(request_headers=pb.HttpHeaders(), protocol_config=config))
    piece = pb.ProcessingRequest(request_body=pb.HttpBody(body=b"x" * 65536))
    try:
        async with asyncio.timeout(5):
            await write_all(call, [piece] * 4000)
    except TimeoutError:
        pass
    grown = front.memory_info().rss - before
    call.cancel()

    assert grown < 64 << 20
    await assert_served(channel)


def test_the_socket_is_not_open_to_everybody(sandbox: daemon.Daemon) -> None:
    """Whoever reaches the socket can claim to be any tenant."""
    assert Path(sandbox.sockets[0]).stat().st_mode & 0o007 == 0
