"""Properties: attributes, what follows from the headers, the plugin's own, and values that the guest sets."""

from __future__ import annotations

import struct

import pytest

from tests.hostcore.driver import (
    ATTRIBUTES,
    CLOSE,
    END,
    OUT_OF_ORDER,
    PROPERTY_SET,
    REQUEST_BODY,
    RESPONSE_BODY,
    RESPONSE_HEADERS,
    RESPONSE_TRAILERS,
    Driver,
    encode_pairs,
)
from tests.hostcore.guest_wat import OUT, guest

GET, SET = "proxy_get_property", "proxy_set_property"


def get(path: str) -> tuple[object, ...]:
    """A look-up; segments are joined by dots here."""
    return (GET, path.replace(".", "\0"), OUT)


def number(value: int) -> bytes:
    """A number as a property value."""
    return b"\0" + struct.pack("<Q", value)


def test_what_follows_from_the_request() -> None:
    """Envoy's names and encodings; an absent header is not found, an object cannot be serialised."""
    names = {
        "request.path": b"\0/a?b=c",
        "request.url_path": b"\0/a",
        "request.query": b"\0" + b"b=c",
        "request.host": b"\0example.com",
        "request.scheme": b"\0https",
        "request.method": b"\0GET",
        "request.useragent": b"\0test",
        "request.referer": b"\1",
        "request.id": b"\0an-id",
        "request.headers.x-dup": b"\0" + b"1,2",
        "request.headers.X-Dup": b"\0" + b"1,2",
        "request.headers.none": b"\1",
        "request.headers.x-dup.more": b"\1",
        "request.path.more": b"\1",
        "request.size": number(77),
        "request.time": b"\1",
        "request.nonsense": b"\1",
        "request": b"\3",
        "connection": b"\3",
        "response.code": b"\1",
        "response.headers": b"\1",
        "": b"\3",
        "\0": b"\3",
        "plugin_name": b"\0a plugin",
        "plugin_root_id\0": b"\0a root",
        "plugin_vm_id": b"\0a vm",
    }
    more = [(b"x-dup", b"1"), (b"x-dup", b"2"), (b"x-request-id", b"an-id"), (b"content-length", b"77")]
    with Driver(guest({"request_headers": [get(name) for name in names]})) as vm:
        _, outcome = vm.request(*more)

    assert dict(zip(names, outcome.reports, strict=True)) == names


def test_whole_maps() -> None:
    """Every name once, its values joined."""
    with Driver(guest({"request_headers": [get("request.headers")]})) as vm:
        _, outcome = vm.request((b"x-dup", b"1"), (b"a", b""), (b"x-dup", b"2"))

    (report,) = outcome.reports
    assert report[:1] == b"\0"
    assert (b"x-dup\0" + b"1,2\0") in report
    assert report.count(b"x-dup") == 1


def test_what_follows_from_the_response() -> None:
    """Code, sizes and status as 8 bytes; trailers before headers."""
    names = ["response.code", "response.headers.content-type", "response.size", "response.grpc_status",
             "response.trailers.t", "request.size", "request.total_size"]  # fmt: skip
    with Driver(guest({"response_trailers": [get(name) for name in names]})) as vm:
        stream, _ = vm.request(end=False)
        vm.event(REQUEST_BODY, stream, b"12345", END)
        vm.headers(stream, (b"grpc-status", b"3"), kind=RESPONSE_HEADERS, end=False)
        vm.event(RESPONSE_BODY, stream, b"123")
        outcome = vm.event(RESPONSE_TRAILERS, stream, encode_pairs([(b"t", b"x"), (b"grpc-status", b"14")]))

    size = 5 + sum(len(key) + len(value) for key, value in [
        (b":method", b"GET"), (b":path", b"/a?b=c"), (b":authority", b"example.com"), (b":scheme", b"https"),
        (b"user-agent", b"test"),
    ])  # fmt: skip
    assert outcome.reports == [
        number(200), b"\0text/plain", number(3), number(14), b"\0x", number(5), number(size),
    ]  # fmt: skip


def test_attributes_come_from_the_client() -> None:
    """Exact paths, with or without a NUL at the end; later ones replace earlier ones, all beat headers."""
    calls = [
        get("source.address"),
        (GET, "source\0address\0", OUT),
        get("source"),
        get("request.path"),
        get("source.port"),
    ]
    attributes = {b"source\0address": b"10.0.0.1:2", b"request\0path": b"/from-attributes"}
    with Driver(guest({"request_headers": calls, "response_headers": calls})) as vm:
        stream = vm.open(attributes)
        first = vm.headers(stream)
        vm.submit(ATTRIBUTES, stream, encode_pairs([(b"source\0address", b"new"), (b"source\0port", b"12345678")]))
        second = vm.headers(stream, kind=RESPONSE_HEADERS)

    assert first.reports == [b"\0" + b"10.0.0.1:2"] * 2 + [b"\3", b"\0/from-attributes", b"\1"]
    assert second.reports == [b"\0new", b"\0new", b"\3", b"\0/from-attributes", b"\0" + b"12345678"]


def test_malformed_attributes_are_out_of_order() -> None:
    """The one case in which these events have a verdict."""
    with Driver(guest({})) as vm:
        stream = vm.open()
        assert vm.event(ATTRIBUTES, stream, b"\1\0\0\0").code == OUT_OF_ORDER
        assert vm.headers(stream).code == 0


def test_what_nobody_knows_is_told_once() -> None:
    """Neither what is known, nor what is hidden, nor a header is told; nor anything twice."""
    known = ["plugin_name", "source.address", "request.path", "request", "own", ""]
    headers = ["request.headers.none", "request.headers", "response.trailers"]
    names = [*known, *headers, "secret.thing", "upstream.port", "upstream.port", "xds.name\0"]
    calls = [(SET, "own", "1"), *(get(name) for name in names)]
    with Driver(guest({"request_headers": calls}), denied_properties=(("secret",),)) as vm:
        stream = vm.open({b"source\0address": b"10.0.0.1:2"})
        first = vm.headers(stream)
        _, second = vm.request()

    assert first.missed == [b"upstream\0port", b"xds\0name"]
    assert second.missed == [b"source\0address"]


def test_what_is_told_is_bounded() -> None:
    """By number and by length: a guest that looks up nonsense costs the client nothing."""
    calls = [get(f"made.up.{n}") for n in range(200)]
    with Driver(guest({"request_headers": [get("x" * 257), get("y" * 256), *calls]})) as vm:
        _, outcome = vm.request()
        _, again = vm.request()

    assert outcome.missed == [b"y" * 256, *(f"made\0up\0{n}".encode() for n in range(63))]
    assert again.missed == []


def test_values_that_the_guest_sets() -> None:
    """Kept with the stream, sent once per event as they are at its end; built-in names win."""
    calls = [(SET, "own", "1"), (SET, "own\0", "2"), (SET, "request\0method", "mine"), (SET, "empty", "")]
    reads = [get("own"), get("request.method"), get("empty"), (SET, "own", "3")]
    with Driver(guest({"request_headers": calls, "response_headers": reads})) as vm:
        stream, first = vm.request()
        second = vm.headers(stream, kind=RESPONSE_HEADERS)
        end = vm.event(CLOSE, stream)

    sent = [effect.pairs[0] for effect in first.effects if effect.kind == PROPERTY_SET]
    assert sent == [(b"own", b"2"), (b"request\0method", b"mine"), (b"empty", b"")]
    assert second.reports == [b"\0" + b"2", b"\0GET", b"\0", b"\0"]
    assert second.one(PROPERTY_SET).pairs == [(b"own", b"3")]
    assert end.effects == []


def test_set_values_are_bounded() -> None:
    """All values of a stream together; replacing frees the old one."""
    calls = [
        (SET, "a", b"x" * 900),
        (SET, "b", b"x" * 200),
        (SET, "a", b"x" * 10),
        (SET, "b", b"x" * 200),
        (SET, b"p" * 5000, b""),
    ]
    with Driver(guest({"request_headers": calls}), limits={"property_bytes": 1000}) as vm:
        _, outcome = vm.request()

    assert outcome.reports == [b"\0", b"\2", b"\0", b"\0", b"\2"]


def test_a_large_value_goes_in_fragments() -> None:
    """Larger than one record."""
    with Driver(guest({"request_headers": [(SET, "a", b"x" * 50_000)]})) as vm:
        _, outcome = vm.request()

    assert outcome.one(PROPERTY_SET).pairs == [(b"a", b"x" * 50_000)]


def test_the_root_context_has_no_stream() -> None:
    """Only the plugin's own names, from its first callback on."""
    calls = [get("plugin_root_id"), get("request.path"), (SET, "a", "b")]
    with Driver(guest({"context_create": calls, "vm_start": [get("plugin_name")]})) as vm:
        reports = [record.payload for record in vm.start_records if record.kind == 12]

    assert reports == [b"\0a root", b"\1", b"\1", b"\0a plugin"]


@pytest.mark.parametrize("denied", [("request", "headers", "Cookie"), ("request", "headers"), ("request",)])
def test_denied_paths(denied: tuple[str, ...]) -> None:
    """The path and everything below it, in any case; in a whole map the header is left out."""
    calls = [
        get("request.headers.cookie"),
        get("request.headers.COOKIE"),
        get("request.headers"),
        get("request.path"),
    ]
    with Driver(guest({"request_headers": calls}), denied_properties=(denied,)) as vm:
        _, outcome = vm.request((b"cookie", b"secret"))

    assert outcome.reports[:2] == [b"\1", b"\1"]
    assert not any(b"secret" in report for report in outcome.reports)
    assert (outcome.reports[2] == b"\1") == (len(denied) < 3)
    assert (outcome.reports[3] == b"\1") == (len(denied) < 2)


def test_a_denied_prefix_ends_at_a_segment() -> None:
    """request.pat does not deny request.path."""
    with Driver(guest({"request_headers": [get("request.path")]}), denied_properties=(("request", "pat"),)) as vm:
        _, outcome = vm.request()

    assert outcome.reports == [b"\0/a?b=c"]
