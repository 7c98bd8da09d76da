"""The golden vectors of the rings, through the C client's producer and consumer."""

from __future__ import annotations

import ctypes as c
import json
from pathlib import Path
from typing import Any

import pytest

from sandboxd.channel import layout
from tests.support import c_client

GOLDEN = Path(__file__).resolve().parents[1] / "channel" / "golden"
VECTORS = {path.stem: json.loads(path.read_text()) for path in sorted(GOLDEN.glob("*.json"))}


def plain_channel(vector: dict[str, Any]) -> Any:
    return c.create_string_buffer(layout.file_bytes(vector["ring_bytes"]))


def around(ring: bytes, start: int, length: int) -> bytes:
    doubled = ring + ring
    return doubled[start % len(ring) :][:length]


@pytest.mark.parametrize("name", VECTORS)
def test_producer_writes_the_vector(shim: c.CDLL, name: str) -> None:
    vector = VECTORS[name]
    shared, tail, ring_bytes = plain_channel(vector), vector["start"], vector["ring_bytes"]
    c.c_uint32.from_buffer(shared, layout.OFFSET_SQ_HEAD).value = tail
    shim.shim_put.restype = c.c_long
    for r in vector["records"]:
        payload = bytes.fromhex(r["payload_hex"])
        tail = shim.shim_put(
            shared, ring_bytes, c.c_uint32(tail), r["kind"], r["flags"], c.c_uint64(r["stream_id"]),
            c.c_uint32(r["event_seq"]), c.c_uint64(r["arg"]), payload, len(payload),
        )  # fmt: skip
        assert tail >= 0
    expected = bytes.fromhex(vector["ring_hex"])
    assert (tail - vector["start"]) & 0xFFFFFFFF == len(expected)
    ring = shared.raw[layout.HEADER_BYTES : layout.HEADER_BYTES + ring_bytes]
    assert around(ring, vector["start"], len(expected)) == expected


@pytest.mark.parametrize("name", VECTORS)
def test_consumer_reads_the_vector(shim: c.CDLL, name: str) -> None:
    vector = VECTORS[name]
    shared, start, ring_bytes = plain_channel(vector), vector["start"], vector["ring_bytes"]
    written = bytes.fromhex(vector["ring_hex"])
    for index, byte in enumerate(written):
        shared[layout.HEADER_BYTES + ring_bytes + (start + index) % ring_bytes] = byte
    c.c_uint32.from_buffer(shared, layout.OFFSET_CQ_TAIL).value = (start + len(written)) & 0xFFFFFFFF
    out = c.create_string_buffer(1 << 20)
    shim.shim_take.restype = c.c_long
    length = shim.shim_take(shared, ring_bytes, c.c_uint32(start), out, c.c_size_t(1 << 20))
    assert length >= 0
    reader = c_client.Reader(out.raw[:length])
    for r in vector["records"]:
        numbers = [int.from_bytes(reader.data[reader.at + 8 * i :][:8], "little") for i in range(5)]
        reader.at += 40
        assert numbers == [r["kind"], r["flags"], r["stream_id"], r["event_seq"], r["arg"]]
        assert reader.text().hex() == r["payload_hex"]
    assert reader.at == length
