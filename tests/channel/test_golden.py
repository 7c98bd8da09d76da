"""The golden vectors: what the rings' both sides read and write, byte for byte."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sandboxd.channel import layout
from sandboxd.channel.ring import Consumer, Producer

GOLDEN = Path(__file__).parent / "golden"
VECTORS = [json.loads(path.read_text()) for path in sorted(GOLDEN.glob("*.json"))]


def name_of(vector: dict[str, Any]) -> str:
    return f"{vector['direction']}_{vector['name']}"


def records_of(vector: dict[str, Any]) -> list[tuple[int, int, int, int, int, bytes]]:
    return [
        (r["kind"], r["flags"], r["stream_id"], r["event_seq"], r["arg"], bytes.fromhex(r["payload_hex"]))
        for r in vector["records"]
    ]


def rings(vector: dict[str, Any]) -> tuple[memoryview, memoryview]:
    """Header words with both counters at the vector's start, and an empty ring."""
    words = memoryview(bytearray(64)).cast("I")
    words[0] = words[1] = vector["start"]
    return words, memoryview(bytearray(vector["ring_bytes"]))


def around(ring: memoryview, start: int, length: int) -> bytes:
    position = start % len(ring)
    first = bytes(ring[position : position + length])
    return first + bytes(ring[: length - len(first)])


def test_every_kind_has_a_vector() -> None:
    kinds = {(v["direction"], r["kind"]) for v in VECTORS for r in v["records"]}

    assert {("submission", kind) for kind in layout.SUBMISSION_NAMES} <= kinds
    assert {("completion", kind) for kind in layout.COMPLETION_NAMES} <= kinds


@pytest.mark.parametrize("vector", VECTORS, ids=name_of)
def test_producer_writes_the_vector(vector: dict[str, Any]) -> None:
    words, ring = rings(vector)
    producer = Producer(words, ring, 0, 1)

    for record in records_of(vector):
        assert producer.put(*record)
    assert producer.publish()

    expected = bytes.fromhex(vector["ring_hex"])
    assert (words[0] - vector["start"]) & layout.COUNTER_MASK == len(expected)
    assert around(ring, vector["start"], len(expected)) == expected


@pytest.mark.parametrize("vector", VECTORS, ids=name_of)
def test_consumer_reads_the_vector(vector: dict[str, Any]) -> None:
    words, ring = rings(vector)
    written = bytes.fromhex(vector["ring_hex"])
    for index, byte in enumerate(written):
        ring[(vector["start"] + index) % len(ring)] = byte
    consumer = Consumer(words, ring, 0, 1)
    words[0] = (vector["start"] + len(written)) & layout.COUNTER_MASK

    assert consumer.take() == records_of(vector)
    assert words[1] == words[0]


def test_files_are_what_the_generator_writes(tmp_path: Path) -> None:
    script = tmp_path / "generate.py"
    script.write_text((GOLDEN / "generate.py").read_text())
    subprocess.run([sys.executable, str(script)], check=True, timeout=60)

    made = {path.name: path.read_text() for path in tmp_path.glob("*.json")}

    assert made == {path.name: path.read_text() for path in GOLDEN.glob("*.json")}
