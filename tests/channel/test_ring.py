"""Producer and consumer: order, room, wrap-around, and a hostile producer's bytes."""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxd.channel import layout
from sandboxd.channel.errors import ChannelBroken
from sandboxd.channel.ring import Consumer, Producer

SIZE = 4096


def pair(start: int = 0, size: int = SIZE) -> tuple[Producer, Consumer, memoryview, memoryview]:
    words = memoryview(bytearray(64)).cast("I")
    words[0] = words[1] = start
    ring = memoryview(bytearray(size))
    return Producer(words, ring, 0, 1), Consumer(words, ring, 0, 1), words, ring


@pytest.mark.parametrize("start", [0, SIZE - 8, 2**32 - 4096 + 8, 2**32 - 8])
def test_order_is_kept_across_ends(start: int) -> None:
    producer, consumer, _, _ = pair(start)
    chance = random.Random(start)
    sent, got = [], []
    while len(sent) < 2000:
        record = (3, 0, len(sent), 1, 2, chance.randbytes(chance.randrange(600)))
        if producer.put(*record):
            sent.append(record)
            if chance.random() < 0.5:
                producer.publish()
        else:
            producer.publish()
            got += consumer.take()
    producer.publish()
    got += consumer.take()

    assert got == sent


def test_nothing_is_seen_before_publish() -> None:
    producer, consumer, _, _ = pair()
    producer.put(3, 0, 1, 1, 0, b"x")

    assert not consumer.has_records()
    assert producer.publish()
    assert not producer.publish()
    assert consumer.has_records()


def test_full_ring_refuses_and_writes_nothing() -> None:
    producer, consumer, words, _ = pair()
    while producer.put(3, 0, 1, 1, 0, b"x" * 100):
        pass
    producer.publish()
    tail = words[0]

    assert SIZE - tail < 136
    assert not producer.put(3, 0, 1, 1, 0, b"x" * 100)
    assert not producer.publish()
    assert len(consumer.take()) == tail // 136
    assert producer.has_room(100)
    assert producer.put(3, 0, 1, 1, 0, b"x" * 100)


@pytest.mark.parametrize("head", [8, 4, 2**32 - SIZE - 8, 2**31])
def test_producer_meets_an_impossible_consumer(head: int) -> None:
    producer, _, words, _ = pair()
    words[1] = head

    with pytest.raises(ChannelBroken):
        producer.put(3, 0, 1, 1, 0, b"x")


@pytest.mark.parametrize("tail", [4, SIZE + 8, 2**31, 2**32 - 8])
def test_consumer_meets_an_impossible_producer(tail: int) -> None:
    _, consumer, words, _ = pair()
    words[0] = tail

    with pytest.raises(ChannelBroken, match="position"):
        consumer.take()


def head(size: int, kind: int = 1, payload_len: int = 0) -> bytes:
    return layout.RECORD.pack(size, kind, 0, 1, 1, payload_len, 0)


@pytest.mark.parametrize(
    ("data", "published"),
    [
        (head(0), 32),
        (head(31), 32),
        (head(40), 40),
        (head(32, payload_len=1), 32),
        (head(40, payload_len=9), 40),
        (head(32, payload_len=0xFFFFFFFF), 32),
        (head(0xFFFFFFF8), 32),
        (head(64, payload_len=32), 32),
        (head(SIZE // 4 + 8, payload_len=SIZE // 4 - 24), SIZE // 2),
        (head(32), 24),
        (head(32), 8),
        (struct.pack("<IHH", 8, 0, 0), 8),
        (struct.pack("<IHH", SIZE, 0, 0), 64),
    ],
    ids=str,
)
def test_bad_records(data: bytes, published: int) -> None:
    _, consumer, words, ring = pair()
    ring[: len(data)] = data
    words[0] = published

    with pytest.raises(ChannelBroken):
        consumer.take()


@pytest.mark.parametrize("size", [SIZE // 4, SIZE // 2, SIZE])
def test_a_pad_as_large_as_a_record_is_refused(size: int) -> None:
    """An honest one is always smaller: the record that follows did not fit into it."""
    _, consumer, words, ring = pair(SIZE - size)
    layout.PAD_HEAD.pack_into(ring, SIZE - size, size, layout.PAD, 0)
    words[0] = SIZE
    if size < SIZE:
        ring[:32] = head(32)
        words[0] = SIZE + 32

    with pytest.raises(ChannelBroken, match=f"of kind 0 and {size}"):
        consumer.take()


def test_a_pad_without_a_record_is_told() -> None:
    _, consumer, words, ring = pair(SIZE - 64)
    layout.PAD_HEAD.pack_into(ring, SIZE - 64, 64, layout.PAD, 0)
    words[0] = SIZE

    assert consumer.take() == []
    assert consumer.only_padding
    assert consumer.take() == []
    assert not consumer.only_padding


def test_a_change_after_the_copy_is_not_seen() -> None:
    producer, consumer, _, ring = pair()
    producer.put(3, 0, 1, 1, 0, b"honest")
    producer.publish()
    records = consumer.take()
    ring[:] = b"\xff" * SIZE

    assert records == [(3, 0, 1, 1, 0, b"honest")]


@given(st.integers(0, 2**32 - 1), st.integers(0, SIZE // 8), st.binary(max_size=256), st.randoms())
@settings(max_examples=3000, deadline=None)
def test_any_bytes_and_counters(start: int, published: int, data: bytes, chance: random.Random) -> None:
    _, consumer, words, ring = pair(start & ~7)
    at = start % SIZE & ~7
    for index, byte in enumerate(data):
        ring[(at + index) % SIZE] = byte
    words[0] = (start & ~7) + published * 8 & layout.COUNTER_MASK
    try:
        records = consumer.take()
    except ChannelBroken:
        return
    assert sum(len(record[5]) for record in records) <= SIZE


def test_a_hundred_thousand_hostile_rings() -> None:
    """Mutations of honest records: never anything but records or ChannelBroken."""
    chance = random.Random(1)
    words = memoryview(bytearray(64)).cast("I")
    ring = memoryview(bytearray(SIZE))
    good = broken = 0
    for _ in range(100_000):
        start = chance.getrandbits(32) & ~7
        words[0] = words[1] = start
        producer, consumer = Producer(words, ring, 0, 1), Consumer(words, ring, 0, 1)
        for _ in range(chance.randrange(4)):
            producer.put(chance.randrange(18), chance.randrange(64), 1, 1, 0, bytes(chance.randrange(40)))
        producer.publish()
        for _ in range(chance.randrange(3)):
            ring[(start + chance.randrange(96)) % SIZE] = chance.choice((0, 1, 8, 32, 40, 255))
        if chance.random() < 0.1:
            words[0] = (start + chance.randrange(0, 200, 8)) & layout.COUNTER_MASK
        try:
            consumer.take()
            good += 1
        except ChannelBroken:
            broken += 1

    assert good > 1000
    assert broken > 1000
