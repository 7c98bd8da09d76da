"""
Write the golden vectors of ``docs/channel.md``, chapter 4: ``python tests/channel/golden/generate.py``.

Built from the document with ``struct`` alone, on purpose not from `sandboxd.channel`: the vectors judge it.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

RING_BYTES = 65536
MORE, END_OF_STREAM, MODIFIED, AS_SUBMITTED, TRUNCATED, RESET = 1, 2, 4, 8, 16, 32
TIME_NS = 1_700_000_000_123_456_789


def pairs(*entries: tuple[bytes, bytes]) -> bytes:
    """Return Proxy-Wasm's layout of a map."""
    lengths = b"".join(struct.pack("<II", len(key), len(value)) for key, value in entries)
    strings = b"".join(key + b"\0" + value + b"\0" for key, value in entries)
    return struct.pack("<I", len(entries)) + lengths + strings


def record(kind: int, stream_id: int, seq: int, arg: int, payload: bytes = b"", flags: int = 0) -> dict[str, Any]:  # noqa: PLR0917  (a record's fields, in its order)
    """Return one record as the vectors spell it."""
    return {
        "kind": kind,
        "flags": flags,
        "stream_id": stream_id,
        "event_seq": seq,
        "arg": arg,
        "payload_hex": payload.hex(),
    }


def serialise(entry: dict[str, Any]) -> bytes:
    """Return one record as it stands in the ring."""
    payload = bytes.fromhex(entry["payload_hex"])
    size = (32 + len(payload) + 7) // 8 * 8
    head = struct.pack("<IHH", size, entry["kind"], entry["flags"])
    head += struct.pack("<QII", entry["stream_id"], entry["event_seq"], len(payload))
    return (head + struct.pack("<Q", entry["arg"]) + payload).ljust(size, b"\0")


def ring(start: int, records: list[dict[str, Any]]) -> bytes:
    """Return the bytes from ``start`` to the new tail, with a PAD where a record would wrap."""
    out = b""
    for entry in records:
        data = serialise(entry)
        to_end = RING_BYTES - (start + len(out)) % RING_BYTES
        if len(data) > to_end:
            out += struct.pack("<IHH", to_end, 0, 0).ljust(to_end, b"\0")
        out += data
    return out


def local_response() -> bytes:
    details, headers, body = b"denied_by_filter", pairs((b"x-reason", b"no token")), b"Access forbidden.\n"
    return struct.pack("<IiIIII", 403, -1, len(details), len(headers), len(body), 0) + details + headers + body


def vectors() -> list[dict[str, Any]]:
    """Return all vectors."""
    request = pairs((b":method", b"GET"), (b":path", b"/"), (b":authority", b"example.com"), (b"cookie", b""))
    attributes = pairs((b"request\0path", b"/"), (b"source\0port", struct.pack("<q", 4711)))
    binary = pairs((b"x-bin", b"a\0b"), (b"", b""))
    body = bytes(range(37))
    largest = RING_BYTES // 4 - 32
    long_body = bytes(i * 7 % 251 for i in range(2 * largest + 100))
    submissions = [
        ("stream_open", [record(1, 1, 1, TIME_NS, attributes)]),
        ("stream_open_empty", [record(1, 2, 2, TIME_NS)]),
        ("request_headers", [record(2, 1, 3, TIME_NS, request)]),
        ("request_headers_end", [record(2, 1, 3, TIME_NS, request, END_OF_STREAM)]),
        ("request_body", [record(3, 1, 4, TIME_NS, body)]),
        ("request_body_empty_end", [record(3, 1, 5, TIME_NS, b"", END_OF_STREAM)]),
        ("request_trailers", [record(4, 1, 6, TIME_NS, binary)]),
        ("response_headers", [record(5, 1, 7, TIME_NS, pairs((b":status", b"200")))]),
        ("response_body", [record(6, 1, 8, TIME_NS, body, END_OF_STREAM)]),
        ("response_trailers", [record(7, 1, 9, TIME_NS, pairs((b"grpc-status", b"0")))]),
        ("attributes", [record(8, 1, 10, TIME_NS, attributes)]),
        ("stream_close", [record(9, 1, 11, TIME_NS)]),
        ("stream_close_reset", [record(9, 1, 12, TIME_NS, b"", RESET)]),
        ("shutdown", [record(10, 0, 13, TIME_NS)]),
        ("new_connection", [record(16, 3, 16, TIME_NS)]),
        ("downstream_data", [record(17, 3, 17, TIME_NS, body)]),
        ("upstream_data", [record(18, 3, 18, TIME_NS, body, END_OF_STREAM)]),
        ("downstream_close", [record(19, 3, 19, TIME_NS, struct.pack("<I", 2))]),
        ("upstream_close", [record(20, 3, 20, TIME_NS, struct.pack("<I", 0))]),
        ("largest_ids", [record(9, 2**64 - 1, 2**32 - 1, 2**64 - 1)]),
        (
            "fragments",
            [
                record(3, 1, 14, TIME_NS, long_body[:largest], MORE | END_OF_STREAM),
                record(3, 1, 14, TIME_NS, long_body[largest : 2 * largest], MORE | END_OF_STREAM),
                record(3, 1, 14, TIME_NS, long_body[2 * largest :], END_OF_STREAM),
            ],
        ),
        (
            "fragments_interleaved",
            [
                record(3, 1, 14, TIME_NS, b"first ", MORE | END_OF_STREAM),
                record(9, 2, 15, TIME_NS),
                record(3, 1, 14, TIME_NS, b"second", END_OF_STREAM),
            ],
        ),
    ]
    paused = 1 | 4 | 16
    completions = [
        ("verdict_ok", [record(1, 1, 3, 0)]),
        ("verdict_paused", [record(1, 1, 3, paused << 32)]),
        ("verdict_unknown_stream", [record(1, 1, 3, 1)]),
        ("verdict_out_of_order", [record(1, 1, 3, 2)]),
        ("verdict_limit", [record(1, 1, 3, 3)]),
        ("verdict_stream_over", [record(1, 1, 3, 4)]),
        ("request_headers", [record(2, 1, 3, 0), record(1, 1, 3, 0)]),
        ("request_headers_modified", [record(2, 1, 3, 0, request, MODIFIED), record(1, 1, 3, 0)]),
        ("request_headers_modified_empty", [record(2, 1, 3, 0, b"", MODIFIED), record(1, 1, 3, 0)]),
        ("request_body", [record(3, 1, 4, 0, body), record(1, 1, 4, 0)]),
        (
            "request_body_as_submitted",
            [record(3, 1, 4, 0, b"", AS_SUBMITTED | END_OF_STREAM), record(1, 1, 4, 0)],
        ),
        ("request_trailers", [record(4, 1, 6, 0, binary, MODIFIED), record(1, 1, 6, 0)]),
        ("response_headers", [record(5, 1, 7, 0, pairs((b":status", b"201")), MODIFIED), record(1, 1, 7, 0)]),
        ("response_body", [record(6, 1, 8, 0, body, END_OF_STREAM), record(1, 1, 8, 0)]),
        ("response_trailers", [record(7, 1, 9, 0), record(1, 1, 9, 0)]),
        ("local_response", [record(8, 1, 3, 0, local_response()), record(1, 1, 3, 0)]),
        ("property_set", [record(9, 1, 3, 0, pairs((b"my\0key", b"\x00\xff"))), record(1, 1, 3, 0)]),
        ("clear_route_cache", [record(10, 1, 3, 0), record(1, 1, 3, 0)]),
        ("close_stream", [record(11, 1, 3, 1), record(1, 1, 3, 0)]),
        ("log", [record(12, 1, 3, 2, b"hello\nworld"), record(1, 1, 3, 0)]),
        ("log_truncated", [record(12, 1, 3, 5, b"\xff" * 9, TRUNCATED), record(1, 1, 3, 0)]),
        ("denied", [record(13, 1, 3, 17), record(1, 1, 3, 0)]),
        ("vm_started", [record(14, 0, 0, 2)]),
        ("downstream_data", [record(17, 3, 17, 0, body), record(1, 3, 17, 0)]),
        (
            "upstream_data_as_submitted",
            [record(18, 3, 18, 0, b"", AS_SUBMITTED | END_OF_STREAM), record(1, 3, 18, 0)],
        ),
        ("close_connection", [record(11, 3, 17, 2), record(1, 3, 17, 0)]),
        ("logs_dropped", [record(15, 1, 3, 1000), record(1, 1, 3, 0)]),
        ("note", [record(16, 1, 3, 5), record(1, 1, 3, 0)]),
        ("note_property_missing", [record(16, 1, 3, 8, b"upstream\0port"), record(1, 1, 3, 0)]),
        (
            "effect_on_another_stream",
            [record(2, 2, 3, 0), record(3, 2, 3, 0, b"held back"), record(2, 1, 3, 0), record(1, 1, 3, 0)],
        ),
        (
            "fragments",
            [
                record(6, 1, 8, 0, long_body[:largest], MORE),
                record(6, 1, 8, 0, long_body[largest : 2 * largest], MORE),
                record(6, 1, 8, 0, long_body[2 * largest :]),
                record(1, 1, 8, 0),
            ],
        ),
    ]
    made = [_vector(name, "submission", records) for name, records in submissions]
    made += [_vector(name, "completion", records) for name, records in completions]
    end = RING_BYTES
    wrapping = [record(3, 1, 4, TIME_NS, body), record(9, 1, 5, TIME_NS)]
    made.append(_vector("pad_smallest", "submission", wrapping, end - 8))
    made.append(_vector("pad_one_record_short", "submission", wrapping, end - 64))
    made.append(_vector("exact_end", "submission", wrapping, end - 72))
    made.append(_vector("pad", "completion", [record(6, 1, 8, 0, body), record(1, 1, 8, 0)], end - 40))
    # A counter that passes 2^32 within the vector.
    made.append(_vector("counter_wraps", "completion", [record(1, 1, 3, 0), record(1, 1, 4, 0)], 2**32 - 32))
    made.append(_vector("counter_wraps_with_pad", "submission", wrapping, 2**32 - 16))
    return made


def _vector(name: str, direction: str, records: list[dict[str, Any]], start: int = 0) -> dict[str, Any]:
    return {
        "name": name,
        "ring_bytes": RING_BYTES,
        "direction": direction,
        "records": records,
        "start": start,
        "ring_hex": ring(start, records).hex(),
    }


def main() -> None:
    folder = Path(__file__).parent
    for vector in vectors():
        path = folder / f"{vector['direction']}_{vector['name']}.json"
        path.write_text(json.dumps(vector, indent=1) + "\n")


if __name__ == "__main__":
    main()
