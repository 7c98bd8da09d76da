"""The service over a real gRPC connection, with a fake VM behind it: routing, failure, late effects, bad clients."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

import grpc
import pytest
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb

from sandboxd.channel import layout, pairs
from sandboxd.front import ext_proc
from tests.support.fake_vm import Event, pass_through
from tests.support.front_rig import Rig, kinds_seen, modes, plugin, request_headers, response_headers

STOPPED = layout.STATE_REQUEST_PAUSED | layout.STATE_REQUEST_HEADERS_HELD | layout.STATE_REQUEST_ALL_STOPPED
FAST = "limits: {time_per_event: 60ms}"


def stop_requests(event: Event):  # type: ignore[no-untyped-def]
    """Pauses every request from its headers."""
    if event.kind == layout.REQUEST_HEADERS:
        return [event.verdict(0, STOPPED)]
    return pass_through(event)


def silent(event: Event):  # type: ignore[no-untyped-def]
    """Never says anything."""
    return []


async def immediate(rig: Rig, **rest: object) -> pb.ImmediateResponse:
    reply = await rig.call().ask(request_headers(eos=True, protocol_config=modes()))
    assert reply.WhichOneof("response") == "immediate_response"
    return reply.immediate_response


async def test_a_whole_exchange(rig: Rig) -> None:
    rig.attach()
    call = rig.call()
    assert (await call.ask(request_headers(eos=True, protocol_config=modes()))).HasField("request_headers")
    assert (await call.ask(response_headers())).HasField("response_headers")
    await call.done()
    await rig.until(lambda: len(rig.vms[0].seen) == 4)

    assert kinds_seen(rig.vms[0]) == ["STREAM_OPEN", "REQUEST_HEADERS", "RESPONSE_HEADERS", "STREAM_CLOSE"]
    assert rig.vms[0].seen[-1].flags == 0
    assert (await call.status())[0] is grpc.StatusCode.OK
    assert rig.count("streams") == 1
    assert not rig.service.streams


async def test_response_attributes_follow(rig: Rig) -> None:
    from google.protobuf.struct_pb2 import Struct

    rig.attach()
    first, second = Struct(), Struct()
    first.update({"request.path": "/x", "source.address": "10.0.0.1:1"})
    second.update({"response.code": 200})
    call = rig.call()
    await call.ask(request_headers(attributes={"envoy.filters.http.ext_proc": first}))
    await call.ask(response_headers(attributes={"envoy.filters.http.ext_proc": second}))
    opened = rig.vms[0].seen[0]
    (added,) = [event for event in rig.vms[0].seen if event.kind == layout.ATTRIBUTES]

    assert pairs.decode(opened.payload) == [(b"request\0path", b"/x")]
    assert pairs.decode(added.payload) == [(b"response\0code", (200).to_bytes(8, "little"))]
    await call.done()


# --- routing ---


@pytest.mark.parametrize(
    ("metadata", "text"),
    [
        ([], "metadata x-sandboxd-tenant is missing"),
        ([("x-sandboxd-tenant", "nobody")], "no tenant 'nobody'"),
        ([("x-sandboxd-tenant", "acme"), ("x-sandboxd-plugin", "none")], "no plugin 'none'"),
        ([("x-sandboxd-tenant", "acme")], "several plugins"),
    ],
)
async def test_unknown_plugins(rig: Rig, metadata: list[tuple[str, str]], text: str) -> None:
    rig.attach()
    rig.attach(plugin(name="second"))
    code, details = await rig.call(metadata=metadata).status()

    assert code is grpc.StatusCode.NOT_FOUND
    assert text in details
    assert rig.count("unknown_plugin", ext_proc.UNKNOWN_KEY) == 1


async def test_a_bound_socket_is_its_tenant_whatever_the_metadata_say(rig: Rig, tmp_path: Path) -> None:
    rig.attach()
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((rig.service.handler("acme"),))
    server.add_insecure_port(f"unix:{tmp_path}/bound.sock")
    await server.start()
    await rig.channel.close()
    rig.channel = grpc.aio.insecure_channel(f"unix:{tmp_path}/bound.sock")
    call = rig.call(tenant="somebody-else")

    assert (await call.ask(request_headers())).HasField("request_headers")
    await call.done()
    await server.stop(0)


# --- failure ---


async def test_no_channel(rig: Rig) -> None:
    rig.registry.down(plugin(), "module rejected", 1)
    response = await immediate(rig)

    assert (response.status.code, response.details) == (503, "sandboxd_vm_down")


async def test_failed_vm_is_answered_at_once(rig: Rig) -> None:
    rig.attach()
    rig.vms[0].fail()
    started = asyncio.get_running_loop().time()
    response = await immediate(rig)

    assert response.status.code == 503
    assert asyncio.get_running_loop().time() - started < 0.15
    assert rig.vms[0].seen == []


async def test_reload_policy_waits_for_the_next_vm(rig: Rig) -> None:
    rig.attach(plugin("failure: {policy: reload}\nlimits: {time_per_event: 2s}"))
    rig.vms[0].fail()
    call = rig.call()
    await call.send(request_headers(eos=True))
    await asyncio.sleep(0.05)
    rig.vms[0].begin()

    assert (await call.receive()).HasField("request_headers")
    await call.done()


@pytest.mark.parametrize(
    ("said", "details", "counter"),
    [
        (2, "sandboxd_cpu_limit", "failed.cpu_limit"),
        (3, "sandboxd_memory_limit", "failed.memory_limit"),
        (9, "sandboxd_host_call_limit", "failed.host_call_limit"),
        (0, "sandboxd_vm_trap", "failed.trap"),
        (4_000_000_000, "sandboxd_vm_trap", "failed.trap"),  # a hostile worker's word
    ],
)
async def test_the_limit_that_ended_the_vm_is_named(rig: Rig, said: int, details: str, counter: str) -> None:
    def fail(event: Event):  # type: ignore[no-untyped-def]
        rig.vms[0].fail(said)
        return []

    rig.attach(answer=fail)
    response = await immediate(rig)

    assert (response.status.code, response.details) == (503, details)
    assert rig.count(counter) == 1


async def test_trap_in_an_event_and_back_again(rig: Rig) -> None:
    def trap(event: Event):  # type: ignore[no-untyped-def]
        if event.kind == layout.REQUEST_HEADERS and b"/trap" in event.payload:
            rig.vms[0].fail()
            return []
        return pass_through(event)

    rig.attach(answer=trap)
    bystander = rig.call()
    await bystander.ask(request_headers())
    path = [(":method", "GET"), (":path", "/trap"), (":authority", "a"), (":scheme", "http")]
    reply = await rig.call().ask(request_headers(path, eos=True))
    assert reply.immediate_response.details == "sandboxd_vm_trap"
    assert (await immediate(rig)).details == "sandboxd_vm_down"
    rig.vms[0].begin()
    await asyncio.sleep(0.02)
    call = rig.call()
    assert (await call.ask(request_headers(eos=True))).HasField("request_headers")
    await call.done()

    # A stream of the old VM is lost, even if none of its events was outstanding.
    reply = await bystander.ask(response_headers())
    assert reply.immediate_response.details == "sandboxd_vm_down"
    assert rig.count("vm_restarts") == 1


async def test_fail_open(rig: Rig) -> None:
    rig.attach(plugin("failure: {policy: open}"))
    call = rig.call()
    await call.ask(request_headers())
    rig.vms[0].fail()

    assert (await call.ask(response_headers())).HasField("response_headers")
    assert rig.count("failure.open") == 1
    await call.done()


async def test_timeout_and_a_vm_that_never_answers(rig: Rig) -> None:
    channel = rig.attach(plugin(FAST), answer=silent)
    response = await immediate(rig)
    assert (response.status.code, response.details) == (504, "sandboxd_timeout")

    await rig.until(lambda: rig.broken)
    assert rig.broken[0][0] == channel.channel_id
    assert "no verdict" in rig.broken[0][1]
    assert (await immediate(rig)).status.code == 503


async def test_a_pause_that_nothing_frees(rig: Rig) -> None:
    rig.attach(plugin(FAST), answer=stop_requests)
    response = await immediate(rig)

    assert (response.status.code, response.details) == (504, "sandboxd_timeout")
    assert rig.broken == []
    await rig.until(lambda: kinds_seen(rig.vms[0])[-1] == "STREAM_CLOSE")


async def test_lying_vm_breaks_its_channel(rig: Rig) -> None:
    def lie(event: Event):  # type: ignore[no-untyped-def]
        if event.kind == layout.REQUEST_HEADERS:
            return [event.effect(layout.REQUEST_HEADERS, b"\1", layout.FLAG_MODIFIED), event.verdict()]
        return pass_through(event)

    rig.attach(answer=lie)
    response = await immediate(rig)

    assert response.details == "sandboxd_worker_protocol"
    assert "bad map" in rig.broken[0][1]


@pytest.mark.parametrize(
    ("code", "details"),
    [(1, "sandboxd_vm_down"), (2, "sandboxd_worker_protocol"), (3, "sandboxd_limit"), (4, "sandboxd_worker_protocol")],
)
async def test_verdict_codes(rig: Rig, code: int, details: str) -> None:
    rig.attach(answer=lambda e: [] if e.kind in layout.WITHOUT_VERDICT else [e.verdict(code)])

    assert (await immediate(rig)).details == details


async def test_detach_fails_its_streams_at_once(rig: Rig) -> None:
    channel = rig.attach(plugin("limits: {time_per_event: 10s}"), answer=stop_requests)
    call = rig.call()
    await call.send(request_headers(eos=True))
    await rig.until(lambda: len(rig.vms[0].seen) == 2)
    rig.registry.detach(channel.channel_id, "killed")

    assert (await call.receive()).immediate_response.details == "sandboxd_worker_gone"
    assert (await immediate(rig)).status.code == 503


async def test_detach_while_an_event_is_out(rig: Rig) -> None:
    channel = rig.attach(plugin("limits: {time_per_event: 10s}"), answer=silent)
    call = rig.call()
    await call.send(request_headers(eos=True))
    await rig.until(lambda: len(rig.vms[0].seen) == 2)
    rig.registry.detach(channel.channel_id, "killed")

    assert (await call.receive()).immediate_response.details == "sandboxd_worker_gone"


# --- reload ---


async def test_a_new_channel_takes_new_streams_and_the_old_one_drains(rig: Rig) -> None:
    first = rig.attach()
    old = rig.call()
    await old.ask(request_headers())
    rig.attach()
    new = rig.call()
    await new.ask(request_headers())
    assert kinds_seen(rig.vms[1]) == ["STREAM_OPEN", "REQUEST_HEADERS"]
    assert (await old.ask(response_headers())).HasField("response_headers")
    assert rig.drained == []
    await old.done()
    await rig.until(lambda: rig.drained == [first.channel_id])

    assert kinds_seen(rig.vms[0])[-1] == "STREAM_CLOSE"
    await new.done()


async def test_draining_ends_in_time(rig: Rig) -> None:
    first = rig.attach()
    old = rig.call()
    await old.ask(request_headers())
    rig.attach(drain_s=0.05)
    await rig.until(lambda: rig.drained == [first.channel_id])
    reply = await old.ask(response_headers())

    assert reply.immediate_response.status.code == 503


# --- late effects ---


async def test_one_stream_frees_another(rig: Rig) -> None:
    held: list[int] = []

    def answer(event: Event):  # type: ignore[no-untyped-def]
        if event.kind != layout.REQUEST_HEADERS:
            return pass_through(event)
        if not held:
            held.append(event.stream_id)
            return [event.verdict(0, STOPPED)]
        freed = event.effect(layout.REQUEST_HEADERS, stream_id=held[0])
        return [freed, event.effect(layout.REQUEST_HEADERS), event.verdict()]

    rig.attach(plugin("limits: {time_per_event: 5s}"), answer=answer)
    waiting = rig.call()
    await waiting.send(request_headers(eos=True))
    await rig.until(lambda: held)
    other = rig.call()
    assert (await other.ask(request_headers(eos=True))).HasField("request_headers")

    assert (await waiting.receive()).HasField("request_headers")
    await waiting.done()
    await other.done()


# --- clients ---


async def test_out_of_order_messages(rig: Rig) -> None:
    rig.attach()
    call = rig.call()
    await call.ask(request_headers(eos=True))
    await call.send(request_headers())
    code, details = await call.status()

    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "request headers after" in details
    await rig.until(lambda: kinds_seen(rig.vms[0])[-1] == "STREAM_CLOSE")
    assert rig.vms[0].seen[-1].flags == layout.FLAG_RESET
    assert rig.count("peer_error") == 1


async def test_garbage(rig: Rig) -> None:
    rig.attach()
    method = rig.channel.stream_stream(f"/{ext_proc.SERVICE}/Process")
    rpc = method(metadata=[("x-sandboxd-tenant", "acme")])
    await rpc.write(b"\xff\xff\xff")

    assert await rpc.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "no ProcessingRequest" in await rpc.details()


async def test_a_client_that_vanishes_leaves_nothing(rig: Rig) -> None:
    rig.attach(plugin("limits: {time_per_event: 5s}"), answer=stop_requests)
    calls = [rig.call() for _ in range(20)]
    for call in calls:
        await call.send(request_headers(eos=True))
    await rig.until(lambda: len(rig.vms[0].seen) == 40)
    for call in calls:
        call.rpc.cancel()
    await rig.until(lambda: kinds_seen(rig.vms[0]).count("STREAM_CLOSE") == 20)
    await rig.until(lambda: not rig.service.streams)

    assert all(e.flags == layout.FLAG_RESET for e in rig.vms[0].seen if e.kind == layout.STREAM_CLOSE)


async def test_a_client_that_never_ends_is_ended(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.attach()
    call = rig.call()
    await call.ask(request_headers())
    rig.service.end_idle()
    await asyncio.sleep(0.01)
    assert len(rig.service.streams) == 1, "it is not idle yet"
    monkeypatch.setattr(ext_proc, "IDLE_LIMIT_S", -1.0)
    rig.service.end_idle()

    assert await call.status() != (grpc.StatusCode.OK, "")
    assert not rig.service.streams
    assert rig.count("idle_stream") == 1


async def test_a_flood_of_bodies_is_answered_one_by_one(rig: Rig) -> None:
    rig.attach()
    call = rig.call()
    await call.ask(request_headers(protocol_config=modes(4)))
    data = os.urandom(50_000)

    async def flood() -> None:
        for n in range(40):
            await call.send(pb.ProcessingRequest(request_body={"body": data, "end_of_stream": n == 39}))

    sending = asyncio.ensure_future(flood())
    got = b""
    while len(got) < 40 * len(data):
        reply = await call.receive()
        got += reply.request_body.response.body_mutation.streamed_response.body
    await sending

    assert got == 40 * data
    await call.done()


async def test_observability(rig: Rig) -> None:
    rig.attach()
    call = rig.call()
    await call.send(request_headers(eos=True, observability_mode=True))
    await call.send(response_headers(eos=True, observability_mode=True))
    await call.done()
    await rig.until(lambda: len(rig.vms[0].seen) == 4)


# --- logs ---


async def test_guest_lines_cannot_forge_others(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    def talk(event: Event):  # type: ignore[no-untyped-def]
        if event.kind != layout.REQUEST_HEADERS:
            return pass_through(event)
        evil = b"fine\n2023 evil/plugin: forged \x1b[31m\xff"
        return [event.effect(layout.LOG, evil, arg=3), *pass_through(event)]

    rig.attach(answer=talk)
    with caplog.at_level(logging.INFO, "sandboxd.guest"):
        call = rig.call()
        await call.ask(request_headers(eos=True))
        await call.done()
    (record,) = [record for record in caplog.records if record.name == "sandboxd.guest"]

    assert record.levelno == logging.WARNING
    assert record.getMessage() == "acme/filter stream=1: fine\\n2023 evil/plugin: forged \\x1b[31m\ufffd"


async def test_denials_name_the_function(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    def denied(event: Event):  # type: ignore[no-untyped-def]
        if event.kind != layout.REQUEST_HEADERS:
            return pass_through(event)
        return [event.effect(layout.DENIED, arg=1), event.effect(layout.DENIED, arg=99), *pass_through(event)]

    rig.attach(answer=denied)
    with caplog.at_level(logging.WARNING):
        call = rig.call()
        await call.ask(request_headers(eos=True))
        await call.done()

    assert "denied.proxy_http_call" in caplog.text
    assert rig.count("denied.unknown") == 1
