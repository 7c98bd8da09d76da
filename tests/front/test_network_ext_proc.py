"""Network ext_proc over a real gRPC connection, with a fake VM behind it."""

from __future__ import annotations

from collections.abc import Iterable

import grpc
import pytest
from envoy.service.network_ext_proc.v3 import network_external_processor_pb2 as envoy_pb

from sandboxd.channel import layout, pairs
from sandboxd.channel.ring import Record
from sandboxd.protos import network_ext_proc_pb2 as pb
from tests.support.fake_vm import Event
from tests.support.front_rig import FUNCTIONS, Rig, kinds_seen, plugin
from tests.support.network_play import DOWN, EMPTY, FAST, HELD, READ, UP, WRITE, scripted


def lines(event: Event) -> Iterable[Record] | None:
    """Holds downstream data until a line end, as hostcore does."""
    if event.kind != DOWN:
        return None
    held = lines.held + event.payload  # type: ignore[attr-defined]
    if held.endswith(b"\n") or event.end_of_stream:
        lines.held = b""  # type: ignore[attr-defined]
        return [event.effect(DOWN, held, event.flags & layout.FLAG_END_OF_STREAM), event.verdict()]
    lines.held = held  # type: ignore[attr-defined]
    return [event.verdict(0, HELD)]


async def test_a_whole_connection(rig: Rig) -> None:
    """Both directions to their ends, what the VM hears of it, and in which order."""
    rig.attach()
    call = rig.connect()
    await call.down(b"hello")
    assert await call.reply() == (READ, b"hello", False)
    await call.up(b"answer", eos=True)
    assert await call.reply() == (WRITE, b"answer", True)
    await call.down(b"", eos=True)
    assert await call.reply() == (READ, b"", True)
    await call.done()
    await rig.until(lambda: len(rig.vms[0].seen) == 8)

    assert kinds_seen(rig.vms[0]) == [
        "STREAM_OPEN",
        "NEW_CONNECTION",
        "DOWNSTREAM_DATA",
        "UPSTREAM_DATA",
        "UPSTREAM_CLOSE",
        "DOWNSTREAM_DATA",
        "DOWNSTREAM_CLOSE",
        "STREAM_CLOSE",
    ]
    assert [event.payload for event in rig.vms[0].seen if event.kind in {19, 20}] == [bytes(4), bytes(4)]
    assert (await call.status())[0] is grpc.StatusCode.OK
    assert not rig.service.streams


async def test_the_statuses_are_envoys(rig: Rig) -> None:
    """What the replies say of the data, read with Envoy's own message."""

    def edit(event: Event) -> Iterable[Record] | None:
        if event.payload == b"edit":
            return [event.effect(DOWN, b"edited"), event.verdict()]
        return None

    rig.attach(answer=scripted(edit))
    call = rig.connect()
    got = []
    for data in (b"same", b"edit"):
        await call.down(data)
        got.append(envoy_pb.ProcessingResponse.FromString((await call.receive()).SerializeToString()))

    response = envoy_pb.ProcessingResponse
    assert [(reply.read_data.data, reply.data_processing_status) for reply in got] == [
        (b"same", response.UNMODIFIED),
        (b"edited", response.MODIFIED),
    ]


async def test_each_message_gets_exactly_one_reply(rig: Rig) -> None:
    """While bytes are held the last message waits, so that Envoy waits with closing, and others are answered empty."""
    lines.held = b""  # type: ignore[attr-defined]
    rig.attach(answer=scripted(lines))
    call = rig.connect()
    for piece in (b"a", b"b"):
        await call.down(piece)
    assert await call.reply() == EMPTY
    await call.down(b"c\n")

    assert [await call.reply() for _ in range(2)] == [EMPTY, (READ, b"abc\n", False)]
    await call.done()


async def test_a_long_pause_is_no_failure(rig: Rig) -> None:
    """The proxy is not kept waiting, and bytes that complete what is held free it at any time."""
    lines.held = b""  # type: ignore[attr-defined]
    rig.attach(plugin(FAST), answer=scripted(lines))
    call = rig.connect()
    await call.down(b"half ")
    assert await call.reply() == EMPTY
    assert rig.count("network_ext_proc.long_pause") == 1
    await call.down(b"line\n")

    assert await call.reply() == (READ, b"half line\n", False)
    assert rig.count("failed.timeout") == 0
    await call.done()


async def test_a_resume_from_the_other_direction(rig: Rig) -> None:
    """The message that waits brings the bytes."""

    def script(event: Event) -> Iterable[Record] | None:
        if event.kind == DOWN:
            return [event.verdict(0, HELD)]
        if event.kind == UP:
            return [event.effect(UP, flags=layout.FLAG_AS_SUBMITTED), event.effect(DOWN, b"held"), event.verdict()]
        return None

    rig.attach(answer=scripted(script))
    call = rig.connect()
    await call.down(b"held")
    await call.up(b"go")

    assert {await call.reply() for _ in range(2)} == {(READ, b"held", False), (WRITE, b"go", False)}
    await call.done()


async def test_a_resume_outside_events(rig: Rig) -> None:
    """From a tick, or an answer to a callout."""
    rig.attach(answer=scripted(lambda event: [event.verdict(0, HELD)] if event.kind == DOWN else None))
    call = rig.connect()
    await call.down(b"held")
    await rig.until(lambda: len(rig.vms[0].seen) == 3)
    stream_id = rig.vms[0].seen[0].stream_id
    rig.vms[0].emit([(DOWN, 0, stream_id, 0, 0, b"freed")])

    assert await call.reply() == (READ, b"freed", False)
    await call.done()


async def test_late_bytes_that_nobody_waits_for_end_the_connection(rig: Rig) -> None:
    """A reply too many would leave Envoy's connection open for ever."""
    rig.attach(plugin(FAST), answer=scripted(lambda event: [event.verdict(0, HELD)] if event.kind == DOWN else None))
    call = rig.connect()
    await call.down(b"held")
    assert await call.reply() == EMPTY
    rig.vms[0].emit([(DOWN, 0, rig.vms[0].seen[0].stream_id, 0, 0, b"freed")])

    assert await call.reply() == ("CLOSE_RST", b"", False)
    assert rig.count("network_ext_proc.cannot_carry.late_data") == 1


async def test_close_stream(rig: Rig) -> None:
    """Bytes of that very event go nowhere, as in Envoy's own filter."""

    def script(event: Event) -> Iterable[Record] | None:
        if event.kind == DOWN:
            data = event.effect(DOWN, flags=layout.FLAG_AS_SUBMITTED)
            return [data, event.effect(layout.CLOSE_STREAM, arg=2), event.verdict()]
        return None

    rig.attach(answer=scripted(script))
    call = rig.connect()
    await call.down(b"x")

    assert await call.reply() == ("CLOSE", b"", False)
    assert (await call.status())[0] is grpc.StatusCode.OK


async def test_close_in_new_connection_shows_the_vm_nothing_more(rig: Rig) -> None:
    """The bytes that came with it are not submitted."""

    def script(event: Event) -> Iterable[Record] | None:
        if event.kind == layout.NEW_CONNECTION:
            return [event.effect(layout.CLOSE_STREAM, arg=2), event.verdict()]
        return None

    rig.attach(answer=scripted(script))
    call = rig.connect()
    await call.down(b"x")

    assert await call.reply() == ("CLOSE", b"", False)
    await rig.until(lambda: kinds_seen(rig.vms[0])[-1] == "STREAM_CLOSE")
    assert "DOWNSTREAM_DATA" not in kinds_seen(rig.vms[0])


@pytest.mark.parametrize(
    ("extra", "functions", "seen"),
    [
        ("", FUNCTIONS, b"secret"),
        ("", ("proxy_log",), bytes(6)),
        ("capabilities: {preset: standard}", (), bytes(6)),
    ],
)
async def test_bytes_that_it_cannot_read_do_not_reach_the_worker(
    rig: Rig, extra: str, functions: tuple[str, ...], seen: bytes
) -> None:
    """The same promise as for bodies: zeros of the same size, and the true bytes go on."""
    del extra
    rig.attach(plugin(functions=functions))
    call = rig.connect()
    await call.down(b"secret")
    await call.up(b"SECRET")

    assert [(await call.reply())[1] for _ in range(2)] == [b"secret", b"SECRET"]
    assert [event.payload for event in rig.vms[0].seen if event.kind == DOWN] == [seen]
    await call.done()


async def test_a_direction_without_callback_passes_by(rig: Rig) -> None:
    """After the first message it does not even reach the worker."""
    rig.attach(plugin(callbacks=("proxy_on_context_create", "proxy_on_new_connection", "proxy_on_upstream_data")))
    call = rig.connect()
    for data in (b"one", b"two"):
        await call.down(data)
        assert await call.reply() == (READ, data, False)

    assert [event.payload for event in rig.vms[0].seen if event.kind == DOWN] == [bytes(3)]
    await call.done()


async def test_writes_that_the_policy_refuses(rig: Rig) -> None:
    """The true bytes go on, whatever the worker says."""

    def forge(event: Event) -> Iterable[Record] | None:
        return [event.effect(DOWN, b"forged"), event.verdict()] if event.kind == DOWN else None

    rig.attach(plugin("write: {body: false}"), answer=scripted(forge))
    call = rig.connect()
    await call.down(b"true")

    assert await call.reply() == (READ, b"true", False)
    assert rig.count("refused.denied_by_policy") == 1
    await call.done()


async def test_attributes_and_metadata(rig: Rig) -> None:
    """As properties, without what is hidden."""
    from google.protobuf.struct_pb2 import Struct

    told, dynamic = Struct(), Struct()
    told.update({"source.address": "10.0.0.1:1", "destination.port": 443})
    dynamic.update({"team": "blue"})
    rig.attach()
    call = rig.connect()
    metadata = pb.Metadata(filter_metadata={"my.space": dynamic})
    await call.down(b"x", attributes={"envoy.filters.network.ext_proc": told}, metadata=metadata)
    await call.reply()

    assert pairs.decode(rig.vms[0].seen[0].payload) == [
        (b"destination\0port", (443).to_bytes(8, "little")),
        (b"metadata\0filter_metadata\0my.space\0team", b"blue"),
    ]
    await call.done()


async def test_properties_become_dynamic_metadata(rig: Rig) -> None:
    """With the next reply."""

    def script(event: Event) -> Iterable[Record] | None:
        if event.kind == layout.NEW_CONNECTION:
            return [event.effect(layout.PROPERTY_SET, pairs.encode([(b"kind", b"odd")])), event.verdict()]
        return None

    rig.attach(answer=scripted(script))
    call = rig.connect()
    await call.down(b"x")
    got = await call.receive()

    assert got.dynamic_metadata["sandboxd.acme.filter"] == {"kind": "odd"}
    await call.done()
