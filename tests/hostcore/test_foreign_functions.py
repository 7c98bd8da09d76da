"""Envoy's foreign functions: packing against zlib, filter state, declared properties; the others are not found."""

from __future__ import annotations

import random
import struct
import zlib
from typing import Any

import pytest

from tests.hostcore.driver import PROPERTY_SET, Driver, Outcome
from tests.hostcore.guest_wat import OUT, OUT_WORDS, guest

FOREIGN = "proxy_call_foreign_function"
WILD = 0xFFFF0000 - (1 << 32)


def call(name: str, arguments: bytes | str = b"") -> tuple[Any, ...]:
    """A call that reports its result."""
    return (FOREIGN, name, arguments, OUT)


def ran(calls: list[tuple[Any, ...]], **more: Any) -> Outcome:
    """Run the calls in a request callback."""
    with Driver(
        guest({"request_headers": calls}), limits={"log_message_bytes": 1 << 20}, ring_bytes=1 << 20, **more
    ) as vm:
        return vm.request()[1]


def results(calls: list[tuple[Any, ...]]) -> list[tuple[int, bytes]]:
    """Status and result of each call."""
    return [(report[0], report[1:]) for report in ran(calls).reports]


def texts() -> list[bytes]:
    """What is worth packing."""
    choose = random.Random(7)
    return [
        b"",
        b"a",
        b"abc" * 1000,
        bytes(20_000),
        bytes(range(256)) * 10,
        choose.randbytes(5_000),
        b"".join(choose.choice([b"the ", b"quick ", b"brown ", b"fox ", b"\0\xff"]) for _ in range(4_000)),
        b"x" * 40_000 + choose.randbytes(300) + b"x" * 2_000,
    ]


def test_what_is_packed_here_zlib_unpacks() -> None:
    """And it is smaller where there is something to gain."""
    found = results([call("compress", text) for text in texts()])

    for (status, packed), text in zip(found, texts(), strict=True):
        assert status == 0
        assert zlib.decompress(packed) == text
        assert len(packed) <= len(text) * 9 // 8 + 16
    assert len(found[2][1]) < 60
    assert len(found[6][1]) < len(texts()[6]) // 2


@pytest.mark.parametrize("level", [0, 1, 6, 9])
def test_what_zlib_packed_is_unpacked_here(level: int) -> None:
    """Stored, fixed and dynamic blocks; what follows the stream is ignored."""
    packed = [zlib.compress(text, level) for text in texts()]
    fixed = zlib.compressobj(level, strategy=zlib.Z_FIXED)
    packed.append(fixed.compress(texts()[6]) + fixed.flush() + b"more")
    found = results([call("uncompress", data) for data in packed])

    assert found == [(0, text) for text in [*texts(), texts()[6]]]


def test_broken_streams_are_told_from_whole_ones_as_zlib_does() -> None:
    """Cut short, and with bytes changed: never a wrong answer, never a fault."""
    choose = random.Random(11)
    whole = [zlib.compress(text[:600], level) for text in texts() for level in (0, 6)]
    whole.append(zlib.compress(b"".join(choose.randbytes(3) * 2 for _ in range(300)), 9))
    broken: list[bytes] = [b"", b"x", b"\x78\x9c", b"\x78\x9c\x03\x00\x00\x00\x00"]
    for data in whole:
        broken += [data[: choose.randrange(len(data))], data[:-1]]
        for _ in range(15):
            changed = bytearray(data)
            changed[choose.randrange(len(data))] ^= 1 << choose.randrange(8)
            broken.append(bytes(changed))
    found = results([call("uncompress", data) for data in broken])

    for (status, text), data in zip(found, broken, strict=True):
        try:
            expected = (0, zlib.decompress(data))
        except zlib.error:
            expected = (3, b"")
        assert (status, text if status == 0 else b"") == expected, data.hex()


def test_a_bomb_is_refused() -> None:
    """More than 16 MiB do not come out, whatever the heap has."""
    assert results([call("uncompress", zlib.compress(bytes(17 << 20), 9))])[0][0] == 3


def test_results_need_not_be_wanted() -> None:
    """Either out-parameter may be 0; a wild one is told before anything is done."""
    calls = [
        (FOREIGN, "compress", "text", 0, 0),
        (FOREIGN, "compress", "text", 0, 64),
        (FOREIGN, "compress", "text", WILD, 64),
        (FOREIGN, "compress", "text", 64, WILD),
        (FOREIGN, "compress", WILD, 5, 64, 68),
        (FOREIGN, WILD, 5, "text", 64, 68),
        (FOREIGN, "n" * 257, "text", 64, 68),
    ]
    assert [status for status, _ in results(calls)] == [0, 0, 6, 6, 6, 6, 1]


def field(number: int, value: bytes | int) -> bytes:
    """One protobuf field."""
    if isinstance(value, int):
        return bytes([number << 3, value])
    return bytes([number << 3 | 2, len(value)]) + value


def test_filter_state_goes_out_as_a_property() -> None:
    """Under the key that Envoy's own filter sets, with a name of ours before it; readable as such."""
    state = field(1, b"envoy.tcp_proxy.cluster") + field(2, b"blue") + field(3, 1)
    calls = [
        call("set_envoy_filter_state", state),
        ("proxy_get_property", "filter_state\0envoy.tcp_proxy.cluster", OUT),
        call("set_envoy_filter_state", field(2, b"no path")),
        call("set_envoy_filter_state", b"\x0a\x7fshort"),
        call("set_envoy_filter_state", field(1, b"long") + b"\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f"),
    ]
    outcome = ran(calls)

    assert outcome.reports == [b"\0", b"\0blue", b"\1", b"\2", b"\2"]
    assert outcome.one(PROPERTY_SET).pairs == [(b"filter_state\0envoy.tcp_proxy.cluster", b"blue")]


def test_filter_state_needs_a_stream() -> None:
    """In the root context there is none."""
    calls = [call("set_envoy_filter_state", field(1, b"a") + field(2, b"b"))]
    with Driver(guest({"configure": calls})) as vm:
        assert [record.payload for record in vm.start_records if record.kind == 12] == [b"\1"]


def test_declared_properties() -> None:
    """Once each; one that is read-only is set once. Others are set as often as one likes."""
    calls = [
        call("declare_property", field(1, b"once") + field(2, 1) + field(3, 1)),
        call("declare_property", field(1, b"often")),
        call("declare_property", field(1, b"once")),
        call("declare_property", field(2, 1)),
        call("declare_property", b"\xff"),
        *[("proxy_set_property", name, value) for name in ("once", "often", "other") for value in ("1", "2")],
        ("proxy_get_property", "once", OUT),
    ]
    reports = ran(calls).reports

    assert [report[0] for report in reports[:-1]] == [0, 0, 2, 0, 2, 0, 2, 0, 0, 0, 0]
    assert reports[-1] == b"\x001"


def test_declarations_are_bounded() -> None:
    """64 of them."""
    calls = [call("declare_property", field(1, f"name {number}".encode())) for number in range(65)]
    assert [status for status, _ in results(calls)] == [0] * 64 + [2]


@pytest.mark.parametrize(
    "name", ["expr_create", "expr_evaluate", "expr_delete", "verify_signature", "sign", "", "compres"]
)
def test_the_others_are_not_found(name: str) -> None:
    """CEL and signatures, and names that nobody has."""
    assert results([call(name, struct.pack("<I", 0)), (FOREIGN, name, b"", OUT_WORDS)]) == [(1, b""), (1, bytes(8))]
