"""Callouts: what goes into the outbox, what comes back, and every status."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from sandboxd.vm.config_blob import Flag
from sandboxd.vm.hostcore_answers import Delivered
from sandboxd.vm.messages import Delivery, DeliveryKind, Request, RequestKind
from tests.hostcore.driver import LOG, REQUEST_HEADERS, Driver, Record, encode_pairs
from tests.hostcore.guest_wat import OUT, OUT_WORD, OUT_WORDS, guest

HTTP_CALL, GRPC_CALL, GRPC_STREAM = "proxy_http_call", "proxy_grpc_call", "proxy_grpc_stream"
SEND, CANCEL, CLOSE = "proxy_grpc_send", "proxy_grpc_cancel", "proxy_grpc_close"
GET, BYTES, STATUS = "proxy_get_header_map_value", "proxy_get_buffer_bytes", "proxy_get_status"
MARKERS = ["proxy_abi_version_0_1_0", "proxy_abi_version_0_2_0", "proxy_abi_version_0_2_1"]
WILD = 0xFFFF0000 - (1 << 32)
HEADERS = encode_pairs([(b":method", b"GET"), (b":path", b"/check"), (b":authority", b"auth"), (b"x", b"y")])
TRAILERS = encode_pairs([(b"t", b"u")])
METADATA = encode_pairs([(b"m", b"n")])
UPSTREAMS = ("auth", "rpc")

CALL = (HTTP_CALL, "auth", HEADERS, "body", TRAILERS, 500, OUT_WORD)
UNARY = (GRPC_CALL, "rpc", "a.Service", "Method", METADATA, "message", 700, OUT_WORD)
STREAM = (GRPC_STREAM, "rpc", "a.Service", "Method", METADATA, OUT_WORD)


def driver(callbacks: dict[str, Any], marker: str = MARKERS[2], **more: Any) -> Driver:
    """A VM of a scripted guest that may call the upstreams."""
    return Driver(guest(callbacks, marker=marker), **{"upstreams": UPSTREAMS, **more})


def logs(records: list[Record]) -> list[bytes]:
    """The guest's reports."""
    return [record.payload for record in records if record.kind == LOG]


def given(report: bytes) -> int:
    """The id in a report of `OUT_WORD`."""
    assert report[0] == 0
    return int.from_bytes(report[1:], "little")


def statuses(vm: Driver) -> list[int]:
    """Of the calls that a request makes."""
    return [report[0] for report in vm.request()[1].reports]


@pytest.mark.parametrize("marker", MARKERS)
def test_requests_go_out_as_the_guest_made_them(marker: str) -> None:
    """All kinds, with ids that tell the kind and count up; in every ABI version."""
    steps = [CALL, UNARY, STREAM, CALL, (SEND, 6, "first", 0), (SEND, 6, b"", 1), (CANCEL, 5)]
    with driver({"request_headers": steps}, marker) as vm:
        reports = vm.request()[1].reports
        requests = vm.requests()

    assert [given(report) for report in reports[:4]] == [4, 5, 6, 8]
    assert [report[0] for report in reports[4:]] == [0, 0, 0]
    http = (b"auth", HEADERS, b"body", TRAILERS, b"")
    assert requests == [
        Request(RequestKind.HTTP_CALL, 4, 500, http),
        Request(RequestKind.GRPC_CALL, 5, 700, (b"rpc", b"a.Service", b"Method", METADATA, b"message")),
        Request(RequestKind.GRPC_STREAM, 6, 0, (b"rpc", b"a.Service", b"Method", METADATA, b"")),
        Request(RequestKind.HTTP_CALL, 8, 500, http),
        Request(RequestKind.GRPC_SEND, 6, 0, (b"", b"first", b"", b"", b"")),
        Request(RequestKind.GRPC_SEND, 6, 1, (b"",) * 5),
        Request(RequestKind.GRPC_CANCEL, 5, 0, (b"",) * 5),
    ]


def test_http_answer_is_readable_in_its_callback_alone() -> None:
    """Headers, body and trailers; read-only; gone afterwards; once."""
    reads = [
        (GET, 6, ":STATUS", OUT),
        (GET, 7, "t", OUT),
        (BYTES, 4, 0, 100, OUT),
        (STATUS, 64, 68, 72),
        ("proxy_add_header_map_value", 6, "a", "b"),
        ("proxy_set_buffer_bytes", 4, 0, 0, "x"),
        (BYTES, 5, 0, 100, OUT),
    ]
    answer = Delivery(
        DeliveryKind.HTTP_RESPONSE, 4, headers=encode_pairs([(b":status", b"200")]), body=b"yes", trailers=TRAILERS
    )
    callbacks = {"request_headers": (1, [CALL]), "http_call_response": reads, "request_body": reads}
    with driver(callbacks) as vm:
        stream, _ = vm.request(end=False)
        vm.requests()
        result, records = vm.turn(answer)
        again = vm.turn(answer)
        vm.vm.poll(0)

    assert result is Delivered.DONE
    assert logs(records) == [b"\x00200", b"\x00u", b"\x00yes", b"\x00", b"\x02", b"\x02", b"\x01"]
    assert again == (Delivered.DONE, [])
    assert stream


def test_answers_outside_their_callbacks_are_not_readable() -> None:
    """As for any map or buffer that is not at hand."""
    with driver(
        {"request_headers": [(GET, 6, "a", OUT), (GET, 4, "a", OUT), (BYTES, 4, 0, 9, OUT), (BYTES, 5, 0, 9, OUT)]}
    ) as vm:
        assert statuses(vm) == [2, 2, 1, 1]
    calls = [(GET, 6, "a", OUT), (GET, 7, "a", OUT)]
    with driver({"request_headers": calls}, flags=Flag.LENIENT_MAPS) as vm:
        assert statuses(vm) == [1, 1]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Delivery(DeliveryKind.HTTP_RESPONSE, 4, status=1), b"reset"),
        (Delivery(DeliveryKind.HTTP_RESPONSE, 4, status=1, body=b"refused"), b"refused"),
        (Delivery(DeliveryKind.HTTP_RESPONSE, 4, headers=b"\xff" * 9), b"reset"),
    ],
)
def test_failed_call_has_no_headers_and_a_status(answer: Delivery, message: bytes) -> None:
    """Zero headers; proxy_get_status says 11."""
    module = f"""(module
      (import "env" "proxy_http_call" (func $call (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
      (import "env" "proxy_log" (func $log (param i32 i32 i32) (result i32)))
      (import "env" "proxy_get_status" (func $status (param i32 i32 i32) (result i32)))
      (memory (export "memory") 1)
      (func (export "proxy_abi_version_0_2_1"))
      (func (export "proxy_on_memory_allocate") (param i32) (result i32) (i32.const 4096))
      (data (i32.const 1024) "auth")
      (data (i32.const 2048) "{"".join(f"{chr(92)}{byte:02x}" for byte in HEADERS)}")
      (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
        (drop (call $call (i32.const 1024) (i32.const 4) (i32.const 2048) (i32.const {len(HEADERS)}) (i32.const 0)
          (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 64))) (i32.const 1))
      (func (export "proxy_on_http_call_response") (param i32 i32 i32 i32 i32)
        (i32.store (i32.const 100) (local.get 0)) (i32.store (i32.const 104) (local.get 1))
        (i32.store (i32.const 108) (local.get 2)) (i32.store (i32.const 112) (local.get 3))
        (i32.store (i32.const 116) (local.get 4))
        (drop (call $status (i32.const 120) (i32.const 64) (i32.const 68)))
        (drop (call $log (i32.const 2) (i32.const 100) (i32.const 24)))
        (drop (call $log (i32.const 2) (i32.load (i32.const 64)) (i32.load (i32.const 68))))))"""
    with Driver(module, upstreams=UPSTREAMS) as vm:
        vm.request()
        assert len(vm.requests()) == 1
        _, records = vm.turn(answer)

    numbers, text = logs(records)
    assert struct.unpack("<6I", numbers) == (1, 4, 0, 0, 0, 11)
    assert text == message


def test_answer_resumes_the_stream_that_waits() -> None:
    """The usual filter: pause, call, go on at the answer."""
    resume = [("proxy_set_effective_context", 2), ("proxy_continue_stream", 0)]
    with driver({"request_headers": (1, [CALL]), "http_call_response": resume}) as vm:
        stream, outcome = vm.request()
        vm.requests()
        _, records = vm.turn(Delivery(DeliveryKind.HTTP_RESPONSE, 4, headers=METADATA))

    assert outcome.effects == []
    assert [(r.kind, r.stream_id) for r in records if r.kind < LOG] == [(REQUEST_HEADERS, stream)]


def test_answer_after_the_stream_ended() -> None:
    """It still comes, to the root context; the stream's context is not there any more."""
    callbacks = {"request_headers": (1, [CALL]), "http_call_response": [("proxy_set_effective_context", 2)]}
    with driver(callbacks) as vm:
        stream, _ = vm.request()
        vm.requests()
        vm.event(9, stream)
        _, records = vm.turn(Delivery(DeliveryKind.HTTP_RESPONSE, 4, headers=METADATA))

    assert logs(records) == [b"\x02"]


def test_unary_call_ends_with_its_message_or_with_a_close() -> None:
    """One of the two, never both; metadata is for streams."""
    receive = [(BYTES, 5, 0, 100, OUT), ("proxy_log", 2, "message")]
    close = [("proxy_log", 2, "closed")]
    callbacks = {
        "request_headers": [UNARY, UNARY],
        "grpc_receive": receive,
        "grpc_close": close,
        "grpc_receive_initial_metadata": [("proxy_log", 2, "metadata")],
    }
    with driver(callbacks) as vm:
        vm.request()
        vm.requests()
        heard = [
            logs(vm.turn(Delivery(kind, call_id, status, headers=METADATA if kind == 4 else b"", body=body))[1])
            for kind, call_id, status, body in (
                (DeliveryKind.GRPC_INITIAL_METADATA, 5, 0, b""),
                (DeliveryKind.GRPC_MESSAGE, 5, 0, b"hello"),
                (DeliveryKind.GRPC_CLOSE, 5, 0, b""),
                (DeliveryKind.GRPC_CLOSE, 9, 14, b"gone"),
                (DeliveryKind.GRPC_MESSAGE, 9, 0, b"late"),
                (DeliveryKind.HTTP_RESPONSE, 9, 0, b""),
            )
        ]

    assert heard[0] == []
    assert heard[1][0] == b"\x00hello"
    assert b"message" in heard[1]
    assert heard[2] == []
    assert b"closed" in heard[3]
    assert heard[4:] == [[], []]


def test_stream_life() -> None:
    """Initial metadata, messages, trailing metadata, close; the peer speaks on after our half is closed."""
    callbacks = {
        "request_headers": [STREAM],
        "grpc_receive_initial_metadata": [(GET, 4, "m", OUT)],
        "grpc_receive": [(BYTES, 5, 0, 100, OUT)],
        "grpc_receive_trailing_metadata": [(GET, 5, "t", OUT)],
        "grpc_close": [(STATUS, OUT_WORD, 256, 260)],
        "request_body": [(SEND, 6, "x", 0), (CLOSE, 6), (CLOSE, 6), (SEND, 6, "y", 0)],
        "request_trailers": [(SEND, 6, "z", 0), (CLOSE, 6), (CANCEL, 6)],
    }
    with driver(callbacks) as vm:
        stream, _ = vm.request(end=False)
        vm.requests()
        half = vm.event(3, stream, b"b")
        sent = vm.requests()
        heard = [
            vm.turn(Delivery(DeliveryKind.GRPC_INITIAL_METADATA, 6, headers=METADATA))[1],
            vm.turn(Delivery(DeliveryKind.GRPC_MESSAGE, 6, body=b"one"))[1],
            vm.turn(Delivery(DeliveryKind.GRPC_MESSAGE, 6, body=b""))[1],
            vm.turn(Delivery(DeliveryKind.GRPC_TRAILING_METADATA, 6, trailers=TRAILERS))[1],
            vm.turn(Delivery(DeliveryKind.GRPC_CLOSE, 6, status=7, body=b"denied"))[1],
        ]
        over = vm.event(4, stream, METADATA)

    assert [report[0] for report in half.reports] == [0, 0, 0, 1]
    assert [request.kind for request in sent] == [RequestKind.GRPC_SEND, RequestKind.GRPC_CLOSE]
    assert [logs(records) for records in heard[:4]] == [[b"\x00n"], [b"\x00one"], [b"\x00"], [b"\x00u"]]
    assert logs(heard[4])[0][:5] == b"\x00\x07\0\0\0"
    assert [report[0] for report in over.reports] == [1, 1, 1]


def test_ids_are_checked_by_kind() -> None:
    """A call is no stream, and nothing that was never given is either."""
    steps = [
        CALL,
        UNARY,
        (SEND, 4, "x", 0),
        (SEND, 5, "x", 0),
        (SEND, 10, "x", 0),
        (CANCEL, 4),
        (CLOSE, 7),
        (CANCEL, 9),
        (CLOSE, 5),
    ]
    with driver({"request_headers": steps}) as vm:
        assert statuses(vm) == [0, 0, 2, 2, 1, 2, 2, 1, 0]


def grpc_service(name: bytes) -> bytes:
    """Envoy's GrpcService with envoy_grpc.cluster_name."""
    inner = b"\x0a" + bytes([len(name)]) + name
    return b"\x0a" + bytes([len(inner)]) + inner + b"\x1a\x02\x08\x05"


def test_upstreams() -> None:
    """By name; for gRPC also as Envoy's GrpcService. What the policy does not name is unknown."""
    names: list[bytes] = [
        b"nope",
        b"",
        b"aut",
        b"authh",
        grpc_service(b"rpc"),
        b"\x0a\xff\xff\xff\xff\xff\x01",
        b"\x0a\x05\x0a",
    ]
    steps = [(HTTP_CALL, name, HEADERS, b"", b"", 0, OUT_WORD) for name in names]
    steps += [(GRPC_STREAM, name, "s", "m", b"", OUT_WORD) for name in names]
    with driver({"request_headers": steps}) as vm:
        assert statuses(vm) == [2, 2, 2, 2, 2, 2, 2, 4, 4, 4, 4, 0, 4, 4]
        assert [request.parts[0] for request in vm.requests()] == [*names[:7], *names[:4], b"rpc", *names[5:]]
    with driver({"request_headers": [CALL, UNARY]}, upstreams=()) as vm:
        assert statuses(vm) == [2, 4]


def test_an_upstream_that_nobody_knows_is_told_outside_and_never_answered() -> None:
    """So that it is counted and logged; the guest has its refusal, and is called no more."""
    with driver({"request_headers": [(HTTP_CALL, b"nope", HEADERS, b"", b"", 0, OUT_WORD)]}) as vm:
        assert statuses(vm) == [2]
        (request,) = vm.requests()
        assert (request.kind, request.parts) == (RequestKind.HTTP_CALL, (b"nope", b"", b"", b"", b""))


def test_the_target_of_a_google_grpc_service_names_an_upstream() -> None:
    service = b"\x12\x05\x0a\x03rpc"  # google_grpc (2), target_uri (1)
    other = b"\x1a\x05\x0a\x03rpc"  # field 3
    steps = [(GRPC_STREAM, name, "s", "m", b"", OUT_WORD) for name in (service, other)]
    with driver({"request_headers": steps}) as vm:
        assert statuses(vm) == [0, 4]


def test_malformed_requests_and_limits() -> None:
    """Headers without a target, maps that are none, too long a time, too many bytes, too many in flight."""
    steps = [
        (HTTP_CALL, "auth", METADATA, b"", b"", 0, OUT_WORD),
        (HTTP_CALL, "auth", HEADERS[:-1], b"", b"", 0, OUT_WORD),
        (HTTP_CALL, "auth", HEADERS, b"", b"xx", 0, OUT_WORD),
        (HTTP_CALL, "auth", HEADERS, b"", b"", -1, OUT_WORD),
        (HTTP_CALL, "auth", HEADERS, 0, 5000, b"", 0, OUT_WORD),
        (GRPC_CALL, "rpc", "s", "m", b"xx", b"", 0, OUT_WORD),
        (GRPC_CALL, "rpc", 0, 1025, "m", b"", b"", 0, OUT_WORD),
        CALL,
        STREAM,
        CALL,
        UNARY,
        (SEND, 6, 0, 5000, 0),
    ]
    with driver({"request_headers": steps}, limits={"callouts": 2, "callout_bytes": 4096}) as vm:
        assert statuses(vm) == [2, 2, 2, 2, 10, 10, 10, 0, 0, 10, 10, 2]


def test_wild_pointers() -> None:
    """Each pointer in its turn; nothing goes out."""
    good = [1024, 0, 1024, 0, 1024, 0, 1024, 0, 0, 64]
    steps: list[tuple[Any, ...]] = []
    for index in (0, 2, 4, 6, 9):
        bad = list(good)
        bad[index] = WILD
        if index != 9:
            bad[index + 1] = 8
        steps.append((HTTP_CALL, *bad))
    grpc = [1024, 0, 1024, 0, 1024, 0, 1024, 0, 64]
    for index in (0, 2, 4, 6, 8):
        bad = list(grpc)
        bad[index] = WILD
        if index != 8:
            bad[index + 1] = 8
        steps.append((GRPC_STREAM, *bad))
    steps.append((STREAM[0], *STREAM[1:]))
    steps.append((SEND, 6, WILD, 8, 0))
    with driver({"request_headers": steps}) as vm:
        assert statuses(vm) == [6] * 10 + [0, 6]
        assert len(vm.requests()) == 1


def test_denied_calls() -> None:
    """The ABI's answer for a call that is not granted; nothing goes out."""
    names = [HTTP_CALL, GRPC_CALL, GRPC_STREAM, SEND, CANCEL, CLOSE, STATUS]
    steps = [CALL, UNARY, STREAM, (SEND, 6, "x", 0), (CANCEL, 6), (CLOSE, 6), (STATUS, OUT_WORDS, 72)]
    with driver({"request_headers": steps}, denied=names) as vm:
        assert statuses(vm) == [10] * 7
        assert vm.requests() == []


def test_callouts_while_the_plugin_starts() -> None:
    """Allowed from proxy_on_configure on, and from the root context."""
    with driver({"configure": [CALL], "http_call_response": [("proxy_log", 2, "answer")]}) as vm:
        assert [request.call_id for request in vm.requests()] == [4]
        _, records = vm.turn(Delivery(DeliveryKind.HTTP_RESPONSE, 4, headers=METADATA))

    assert b"answer" in logs(records)
