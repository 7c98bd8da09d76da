"""The C client and a scripted VM: what one VM can cost its caller in time, memory, streams and records."""

from __future__ import annotations

import ctypes as c
import threading
import time
from dataclasses import replace

import pytest

from sandboxd.channel import layout
from sandboxd.policy.model import PluginLimits
from tests.support import c_client
from tests.support.scripted_channel import FIRST_EVENT, POLICY, RING, Setup, answering


@pytest.mark.long
def test_a_vm_that_always_has_something_does_not_keep_the_caller(setup: Setup) -> None:
    """sbx_arm gives the thread back after 16 rings full at most, and the descriptor is readable at once."""
    client = setup.open(serve=False)
    stop = False

    def talk() -> None:
        while not stop:
            setup.vm.emit([(16, 0, 0, 0, 3, b"")])

    thread = threading.Thread(target=talk, daemon=True)
    thread.start()
    try:
        for _ in range(200):
            told = len(client.notices)
            if (status := setup.lib.sbx_arm(client.handle)) != 0:
                assert c_client.NAMES[status] in ("AGAIN", "BROKEN")
            assert len(client.notices) - told <= 16 * layout.MIN_RING_BYTES // layout.RECORD_BYTES
    finally:
        stop = True
        thread.join()
    assert client.reason in ("", "more outside events than the limits allow")


@pytest.mark.parametrize(("records", "breaks"), [(200, False), (12_000, True)])
def test_what_large_events_bring_is_bounded_in_the_long_run(setup: Setup, records: int, breaks: bool) -> None:
    """Each event keeps to its own limit, and all of them together would still cost the caller all of its time."""
    client = setup.open(answering(lambda e: [e.effect(layout.LOG, b"x", arg=2)] * records))
    for _ in range(50):
        event = client.headers(client.open(), 2, [(b":path", b"/")])
        if setup.lib.sbx_wait(event, 5_000_000_000):
            break
    assert ("more or larger effects" in client.reason) is breaks


@pytest.mark.parametrize(("events", "breaks"), [(2, False), (12, True)])
def test_what_events_without_a_verdict_hold_is_bounded_together(setup: Setup, events: int, breaks: bool) -> None:
    client = setup.open(serve=False)
    stream = client.open()
    for number in range(events):
        if client.reason:
            break
        client.body(stream, 3, [b"x"])
        for _ in range(100):
            setup.vm.emit([(3, 0, 1, FIRST_EVENT + number, 0, bytes(20_000))])
            setup.lib.sbx_ready(client.handle)
            setup.lib.sbx_next(client.handle, c.byref(c.c_void_p()))
    assert ("hold too much together" in client.reason) is breaks


@pytest.mark.parametrize(("code", "size"), [(8, 257), (3, 1)])
def test_notes_are_bounded(setup: Setup, code: int, size: int) -> None:
    client = setup.open(answering(lambda e: [e.effect(layout.NOTE, b"x" * size, arg=code)]))
    event = client.headers(client.open(), 2, [(b":path", b"/")])
    assert c_client.NAMES[setup.lib.sbx_wait(event, 0)] == "BROKEN"


def test_backlogs_are_bounded(setup: Setup) -> None:
    client = setup.open(serve=False)
    stream = client.open()
    made = c.c_void_p()
    chunk = (c_client.Bytes * 1)(c_client.bytes_of(bytes(1_000_000)))
    statuses = {
        setup.lib.sbx_submit_body(stream, 3, chunk, 1, False, 1, None, c.byref(made)) for _ in range(30)
    }  # fmt: skip
    assert {c_client.NAMES[status] for status in statuses} == {"OK", "FULL"}


def test_open_streams_are_bounded(setup: Setup) -> None:
    client = setup.open(policy=replace(POLICY, limits=PluginLimits(open_streams=2)))
    client.open()
    client.open()
    made = c.c_void_p()
    assert c_client.NAMES[setup.lib.sbx_stream_open(client.handle, None, 0, 1, None, c.byref(made))] == "LIMIT"


def test_padding_without_end_does_not_keep_the_client(setup: Setup) -> None:
    """A worker that publishes a ring full of padding again and again, faster than the client reads."""
    client = setup.open(serve=False)
    tail = layout.OFFSET_CQ_TAIL // 4
    words = setup.vm.words
    client.headers(client.open(), 2, [(b":path", b"/")])
    setup.lib.sbx_next(client.handle, c.byref(c.c_void_p()))
    position = words[tail] % RING
    ring = setup.vm._views[3]
    layout.PAD_HEAD.pack_into(ring, position, RING - position, 0, 0)
    layout.PAD_HEAD.pack_into(ring, 0, RING, 0, 0)
    words[tail] += RING - position
    setup.lib.sbx_next(client.handle, c.byref(c.c_void_p()))
    stop = False

    def publish() -> None:
        while not stop:
            words[tail] = (words[layout.OFFSET_CQ_HEAD // 4] + RING) & 0xFFFFFFFF

    thread = threading.Thread(target=publish, daemon=True)
    thread.start()
    begin = time.monotonic()
    try:
        while setup.lib.sbx_arm(client.handle) in (0, 1) and time.monotonic() - begin < 20:
            setup.lib.sbx_next(client.handle, c.byref(c.c_void_p()))
    finally:
        stop = True
        thread.join()
    assert client.reason == "malformed record"  # no honest VM's padding is as large as a record
