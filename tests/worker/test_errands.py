"""What a VM in a worker process gets and asks for beside its channel."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest
from wasmtime import wat2wasm

from sandboxd.channel import layout, pairs
from sandboxd.channel.client import VmClient
from sandboxd.channel.completions import Effect
from sandboxd.channel.memfd import create_channel, create_shared_region
from sandboxd.channel.sync_vm import SyncVm, VmLost
from sandboxd.protos import control_pb2 as control
from sandboxd.vm.artefacts import Bundle
from tests.hostcore.guest_wat import OUT, OUT_CAS, OUT_WORD
from tests.hostcore.guest_wat import guest as scripted
from tests.support.modules import bundle, guest
from tests.support.worker_process import OneVm, configuration

pytestmark = pytest.mark.long

REQUEST = pairs.encode([(b":method", b"GET"), (b":path", b"/"), (b":authority", b"x")])
PERIOD = "proxy_set_tick_period_milliseconds"


def script(callbacks: dict[str, object]) -> Bundle:
    """The bundle of a guest that is a list of calls for each callback."""
    return bundle(bytes(wat2wasm(scripted(callbacks))))  # type: ignore[arg-type]


def wait_for(one: OneVm, text: bytes, timeout_s: float = 5.0) -> Effect:
    """Wait for a log line outside events."""
    return one.vm.wait_loose(lambda effect: effect.kind == layout.LOG and effect.payload == text, timeout_s)


def test_ticks_come_to_a_vm_that_sleeps() -> None:
    """About as often as asked for, and no oftener."""
    with OneVm(script({"vm_start": [(PERIOD, 20)], "tick": [("proxy_log", 2, "tick")]})) as one:
        one.vm.wait_ready(5)
        started = time.monotonic()
        for _ in range(5):
            wait_for(one, b"tick")
            one.vm.loose.clear()

        assert 0.08 <= time.monotonic() - started < 5


def test_tick_resumes_a_stream_that_waits() -> None:
    """The headers go on outside any event, and the client is woken for it."""
    resume = [("proxy_set_effective_context", 2), ("proxy_continue_stream", 0)]
    with OneVm(script({"vm_start": [(PERIOD, 50)], "request_headers": (1, []), "tick": resume})) as one:
        one.vm.wait_ready(5)
        stream = one.vm.client.open_stream(b"", time.time_ns())
        verdict = one.vm.call(stream, layout.REQUEST_HEADERS, REQUEST, end_of_stream=True)
        assert verdict.effects == []

        effect = one.vm.wait_loose(lambda effect: effect.kind == layout.REQUEST_HEADERS, 5)

        assert (effect.stream_id, effect.event_seq) == (stream, 0)
        assert effect.flags & layout.FLAG_END_OF_STREAM


ENDLESS_TICK = guest(
    '(func (export "proxy_on_vm_start") (param i32 i32) (result i32)'
    " (drop (call $period (i32.const 10))) (i32.const 1))",
    '(func (export "proxy_on_tick") (param i32) (loop $l (br $l)))',
    imports=f'(import "env" "{PERIOD}" (func $period (param i32) (result i32)))',
)


def test_endless_tick_is_past_its_cpu_limit() -> None:
    """A tick counts as any callback."""
    with OneVm(bundle(ENDLESS_TICK)) as one:
        one.worker.receive("vm_started")
        failed = one.worker.receive("vm_failed")

        assert failed.callback == "proxy_on_tick"
        assert failed.cause == 2


@pytest.mark.parametrize("period_ms", [1000])
def test_vm_with_a_timer_sleeps_between_ticks(period_ms: int) -> None:
    """No busy waiting for the next tick."""
    with OneVm(script({"vm_start": [(PERIOD, period_ms)], "tick": []})) as one:
        one.vm.wait_ready(5)
        time.sleep(0.5)
        before = one.worker.cpu_ticks()
        time.sleep(2)

        assert one.worker.cpu_ticks() - before <= 10


# --- callouts ---

TARGET = pairs.encode([(b":method", b"POST"), (b":path", b"/check"), (b":authority", b"auth")])
ANSWERED = pairs.encode([(b":status", b"200")])
RESUME = [("proxy_set_effective_context", 2), ("proxy_continue_stream", 0)]


def asking(body: object = "question", **more: object) -> Bundle:
    """A guest that pauses each request and asks first; ``body``: text, or a number of bytes."""
    if isinstance(body, int):
        call = ("proxy_http_call", "auth", TARGET, 0, body, b"", 500, OUT_WORD)
    else:
        call = ("proxy_http_call", "auth", TARGET, body, b"", 500, OUT_WORD)
    return script({"request_headers": (1, [call]), "http_call_response": RESUME, **more})


def ask(one: OneVm) -> int:
    """Send request headers, which the guest pauses; return the stream."""
    stream = one.vm.client.open_stream(b"", time.time_ns())
    verdict = one.vm.call(stream, layout.REQUEST_HEADERS, REQUEST, end_of_stream=True)
    assert verdict.effects == []
    return stream


def asked(one: OneVm) -> tuple[int, control.CalloutRequest]:
    """Receive a callout, all its pieces."""
    data, number = b"", 0
    while True:
        frame = one.worker.receive("callout")
        assert frame.vm_id == 1
        assert number in {0, frame.call_id}
        number = frame.call_id
        data += frame.data
        if not frame.more:
            break
    request = control.CalloutRequest()
    request.ParseFromString(data)
    return number, request


def answer(one: OneVm, number: int, reply: control.CalloutReply, piece: int = 48 * 1024) -> None:
    """Send an answer in pieces."""
    data = reply.SerializeToString()
    for start in range(0, len(data) or 1, piece):
        frame = control.CalloutAnswer(call_id=number, data=data[start : start + piece], more=start + piece < len(data))
        one.worker.send(control.ToWorker(callout_answer=frame))


def test_callout_and_its_answer_resume_the_stream() -> None:
    """Out as a frame, back as a frame, on as an effect outside any event."""
    with OneVm(asking(), upstreams=("auth",)) as one:
        one.vm.wait_ready(5)
        one.worker.receive("vm_started")
        stream = ask(one)
        number, request = asked(one)
        assert request.http_call == control.HttpCall(upstream=b"auth", headers=TARGET, body=b"question", timeout_ms=500)

        answer(one, number, control.CalloutReply(http=control.HttpReply(headers=ANSWERED)))

        effect = one.vm.wait_loose(lambda effect: effect.kind == layout.REQUEST_HEADERS, 5)
        assert effect.stream_id == stream


def test_large_callouts_travel_in_pieces() -> None:
    """Larger than a frame, both ways; every byte arrives."""
    read = [("proxy_get_buffer_status", 4, OUT_WORD, 256)]
    with OneVm(asking(200_000, http_call_response=read), upstreams=("auth",)) as one:
        one.vm.wait_ready(5)
        one.worker.receive("vm_started")
        ask(one)
        number, request = asked(one)
        assert len(request.http_call.body) == 200_000

        reply = control.HttpReply(headers=ANSWERED, body=b"x" * 300_000)
        answer(one, number, control.CalloutReply(http=reply))

        length = b"\x00" + (300_000).to_bytes(8, "little")
        assert wait_for(one, length)


def test_failed_callout_reaches_the_guest() -> None:
    """As a response without headers."""
    with OneVm(asking(), upstreams=("auth",)) as one:
        one.vm.wait_ready(5)
        one.worker.receive("vm_started")
        ask(one)
        number, _ = asked(one)

        answer(one, number, control.CalloutReply(http=control.HttpReply(failure="denied")))

        assert one.vm.wait_loose(lambda effect: effect.kind == layout.REQUEST_HEADERS, 5)


def test_answer_for_a_vm_that_was_started_anew_is_dropped() -> None:
    """hostcore's ids begin again, the numbers of the frames do not."""
    module = asking(http_call_response=[("proxy_log", 2, "answer")], done=[("trap",)])
    with OneVm(module, upstreams=("auth",)) as one:
        one.vm.wait_ready(5)
        one.worker.receive("vm_started")
        old_stream = ask(one)
        old, _ = asked(one)
        with pytest.raises(VmLost):
            one.vm.close_stream(old_stream)
        one.worker.receive("vm_failed")
        one.worker.receive("vm_started")
        one.vm.wait_ready(5)
        ask(one)
        new, _ = asked(one)
        assert new != old

        reply = control.CalloutReply(http=control.HttpReply(headers=ANSWERED))
        answer(one, old, reply)
        with pytest.raises(TimeoutError):
            wait_for(one, b"answer", 0.3)
        answer(one, new, reply)

        assert wait_for(one, b"answer")


def test_grpc_stream_by_frames() -> None:
    """Open, send, half-close; metadata, message, close."""
    callbacks = {
        "request_headers": (
            1,
            [
                ("proxy_grpc_stream", "auth", "a.S", "M", b"", OUT_WORD),
                ("proxy_grpc_send", 6, "hello", 0),
                ("proxy_grpc_close", 6),
            ],
        ),
        "grpc_receive": [("proxy_get_buffer_bytes", 5, 0, 100, OUT)],
        "grpc_close": RESUME,
    }
    with OneVm(script(callbacks), upstreams=("auth",)) as one:
        one.vm.wait_ready(5)
        one.worker.receive("vm_started")
        ask(one)
        requests = [asked(one) for _ in range(3)]
        number = requests[0][0]
        assert [request.WhichOneof("request") for _, request in requests] == [
            "grpc_stream",
            "grpc_send",
            "grpc_half_close",
        ]
        assert {found for found, _ in requests} == {number}

        answer(one, number, control.CalloutReply(initial_metadata=control.GrpcMetadata()))
        answer(one, number, control.CalloutReply(message=control.GrpcMessage(message=b"hi")))
        answer(one, number, control.CalloutReply(closed=control.GrpcClosed(status=0)))

        assert wait_for(one, b"\x00hi")
        assert one.vm.wait_loose(lambda effect: effect.kind == layout.REQUEST_HEADERS, 5)


# --- shared data and queues ---


@pytest.fixture
def region() -> Iterator[int]:
    """A tenant's region."""
    fd = create_shared_region(1 << 20)
    yield fd
    os.close(fd)


def test_two_vms_share_data_and_a_queue(region: int) -> None:
    """Of different plugins in one worker; the consumer sleeps, and is woken for the item."""
    producer = script(
        {
            "request_headers": [
                ("proxy_set_shared_data", "k", "v", 0),
                ("proxy_resolve_shared_queue", "", "q", OUT_WORD),
                ("proxy_enqueue_shared_queue", 1, "item"),
            ]
        }
    )
    consumer = script(
        {
            "vm_start": [("proxy_register_shared_queue", "q", OUT_WORD)],
            "queue_ready": [("proxy_dequeue_shared_queue", 1, OUT), ("proxy_get_shared_data", "k", OUT_CAS)],
        }
    )
    with OneVm(consumer, more={2: producer}, shared_fd=region) as one:
        one.vm.wait_ready(5)
        fds = create_channel(65536)
        sending = SyncVm(VmClient(fds))
        try:
            blob = configuration(producer.manifest, 65536)
            one.worker.receive("vm_started")
            one.worker.open(fds, blob, 2, 2, shared_fd=region)
            sending.wait_ready(5)
            stream = sending.client.open_stream(b"", time.time_ns())
            started = time.monotonic()
            verdict = sending.call(stream, layout.REQUEST_HEADERS, REQUEST, end_of_stream=True)
            assert [notice.payload[0] for notice in verdict.notices] == [0, 0, 0]

            wait_for(one, b"\x00item")

            assert time.monotonic() - started < 5
            wait_for(one, b"\x00v\x01\0\0\0")
        finally:
            sending.close()


def test_consumer_finds_items_of_another_worker(region: int) -> None:
    """Nobody wakes it; it looks now and then."""
    consumer = script(
        {
            "vm_start": [("proxy_register_shared_queue", "q", OUT_WORD)],
            "queue_ready": [("proxy_dequeue_shared_queue", 1, OUT)],
        }
    )
    producer = script(
        {
            "request_headers": [
                ("proxy_resolve_shared_queue", "", "q", OUT_WORD),
                ("proxy_enqueue_shared_queue", 1, "item"),
            ]
        }
    )
    with OneVm(consumer, shared_fd=region) as one, OneVm(producer, shared_fd=region, vm_number=2) as other:
        one.vm.wait_ready(5)
        other.vm.wait_ready(5)
        stream = other.vm.client.open_stream(b"", time.time_ns())
        other.vm.call(stream, layout.REQUEST_HEADERS, REQUEST, end_of_stream=True)

        wait_for(one, b"\x00item")


# --- metrics ---


def test_metrics_are_reported_when_asked_for() -> None:
    """All three types, with a histogram's buckets; in pieces if they are many."""
    steps = [
        ("proxy_define_metric", 0, "requests", OUT_WORD),
        ("proxy_define_metric", 1, "open", OUT_WORD),
        ("proxy_define_metric", 2, "time", OUT_WORD),
        ("proxy_increment_metric", 4, 3),
        ("proxy_record_metric", 5, 7),
        ("proxy_record_metric", 6, 0),
        ("proxy_record_metric", 6, 1),
        ("proxy_record_metric", 6, 1000),
        *[("proxy_define_metric", 0, f"{n:03}" + "x" * 500, OUT_WORD) for n in range(200)],
    ]
    with OneVm(script({"vm_start": steps})) as one:
        one.vm.wait_ready(5)
        one.worker.receive("vm_started")
        one.worker.send(control.ToWorker(read_metrics=control.ReadMetrics()))
        frames = [one.worker.receive("vm_metrics")]
        while frames[-1].more:
            frames.append(one.worker.receive("vm_metrics"))

    assert len(frames) > 1
    assert {(frame.vm_id, frame.generation) for frame in frames} == {(1, 1)}
    metrics = {metric.name: metric for frame in frames for metric in frame.metrics}
    assert len(metrics) == 203
    assert (metrics[b"requests"].type, metrics[b"requests"].value) == (0, 3)
    assert (metrics[b"open"].type, metrics[b"open"].value) == (1, 7)
    assert (metrics[b"time"].type, metrics[b"time"].value) == (2, 1001)
    assert list(metrics[b"time"].buckets) == [1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1]
