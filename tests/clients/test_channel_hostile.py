"""A VM or a channel file that breaks the rules; of the records, the Python client is the judge."""

from __future__ import annotations

import ctypes as c
import os
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandboxd.channel import layout, pairs
from sandboxd.channel.client import VmClient
from sandboxd.channel.completions import LocalResponse, Verdict, encode_local_response
from sandboxd.channel.errors import ChannelBroken
from sandboxd.channel.memfd import create_channel
from sandboxd.policy.compile import compile_policy
from tests.support import c_client
from tests.support.c_client import effects_of
from tests.support.fake_vm import FakeVm
from tests.support.scripted_channel import POLICY, RING, STANDARD, Setup


def started() -> list[Any]:
    return [(layout.VM_STARTED, 0, 0, 0, 1, b"")]


NAUGHTY: dict[str, list[Any]] = {
    "honest": [(2, 0, 1, 2, 0, b""), (1, 0, 1, 2, 0, b"")],
    "unknown_kind": [(17, 0, 1, 2, 0, b"")],
    "unknown_flags": [(2, 64, 1, 2, 0, b"")],
    "stream_never_opened": [(2, 0, 9, 2, 0, b"")],
    "stream_zero": [(2, 0, 0, 2, 0, b"")],
    "event_never_submitted": [(12, 0, 1, 77, 0, b"x")],
    "effect_outside": [(2, 0, 1, 0, 0, b"")],
    "effect_outside_on_no_stream": [(2, 0, 9, 0, 0, b"")],
    "effect_outside_as_submitted": [(3, 8, 1, 0, 0, b"")],
    "effect_outside_in_pieces": [(3, 1, 1, 0, 0, b"a"), (3, 0, 1, 0, 0, b"b")],
    "effect_after_the_verdict": [(1, 0, 1, 2, 0, b""), (2, 0, 1, 2, 0, b"")],
    "verdict_outside": [(1, 0, 1, 0, 0, b"")],
    "records_outside_without_end": [(16, 0, 1, 0, 3, b"")] * 1500,
    "verdict_twice": [(1, 0, 1, 2, 0, b""), (1, 0, 1, 2, 0, b"")],
    "verdict_of_another_stream": [(1, 0, 2, 2, 0, b"")],
    "verdict_code": [(1, 0, 1, 2, 5, b"")],
    "verdict_state": [(1, 0, 1, 2, 64 << 32, b"")],
    "verdict_payload": [(1, 0, 1, 2, 0, b"x")],
    "map_unmodified_with_bytes": [(2, 0, 1, 2, 0, bytes(4))],
    "as_submitted_of_headers": [(3, 8, 1, 2, 0, b"")],
    "as_submitted_with_bytes": [(3, 8, 1, 2, 0, b"x")],
    "log_too_long": [(12, 0, 1, 2, 0, bytes(8193))],
    "log_level": [(12, 0, 1, 2, 6, b"")],
    "close_type": [(11, 0, 1, 2, 4, b"")],
    "note_with_bytes": [(16, 0, 1, 2, 0, b"x")],
    "started_inside": [(14, 0, 0, 2, 2, b"")],
    "started_again": [(14, 0, 0, 0, 1, b"")],
    "started_large": [(14, 0, 0, 0, 1 << 32, b"")],
    "restart": [(14, 0, 0, 0, 2, b"")],
    "stale_after_restart": [(14, 0, 0, 0, 2, b""), (1, 0, 1, 2, 0, b"")],
    "fragment_open_at_verdict": [(3, 1, 1, 2, 0, b"a"), (1, 0, 1, 2, 0, b"")],
    "fragments_of_two_kinds": [(3, 1, 1, 2, 0, b"a"), (6, 0, 1, 2, 0, b"b")],
    "fragments_of_two_args": [(12, 1, 1, 2, 1, b"a"), (12, 0, 1, 2, 2, b"b")],
    "fragments": [(3, 1, 1, 2, 0, b"a"), (12, 0, 0, 2, 1, b"log"), (3, 2, 1, 2, 0, b"b"), (1, 0, 1, 2, 0, b"")],
    "loose_log": [(12, 0, 0, 0, 1, b"tick")],
    "bytes_without_end": [(3, 0, 1, 2, 0, bytes(16_000))] * 3 + [(1, 0, 1, 2, 0, b"")],
    "records_without_end": [(16, 0, 1, 2, 3, b"")] * 1500 + [(1, 0, 1, 2, 0, b"")],
}


def judged_by_python(records: list[Any]) -> tuple[bool, list[Any]]:
    fds = create_channel(RING)
    vm, client = FakeVm(fds), VmClient(fds)
    vm.emit(started())
    client.drain()
    stream = client.open_stream(b"", 1)
    client.submit(stream, 2, b"", False, 1)
    vm.emit(records)
    try:
        found = client.drain()
        effects = [(e.kind, e.stream_id) for v in found if isinstance(v, Verdict) for e in v.effects]
        return True, effects
    except ChannelBroken:
        return False, []
    finally:
        vm.stop()
        client.close()


@pytest.mark.parametrize("name", NAUGHTY)
def test_both_clients_accept_and_refuse_alike(setup: Setup, name: str) -> None:
    accepted, effects = judged_by_python(NAUGHTY[name])
    setup.vm.words[layout.OFFSET_VM_STATE // 4] = layout.VM_READY
    client = setup.open(serve=False)
    setup.vm.words[layout.OFFSET_VM_GENERATION // 4] = 1
    stream = client.open()
    event = client.headers(stream, 2, [])
    setup.vm.emit(NAUGHTY[name])
    status = setup.lib.sbx_spin(event)
    assert (client.reason == "") == accepted, client.reason
    if accepted and c_client.NAMES[status] == "OK":
        verdict = setup.lib.sbx_event_verdict(event).contents
        assert [(e.kind, e.stream_id) for e in effects_of(verdict)] == effects


LOCAL = encode_local_response(LocalResponse(403, -1, False, b"no", [], b"body"), b"")
EFFECT_PAYLOADS = {layout.LOCAL_RESPONSE: LOCAL, layout.PROPERTY_SET: pairs.encode([(b"p", b"v")])}
RESTARTED = (layout.VM_STARTED, 0, 0, 0, 2, b"")
VERDICT = (layout.VERDICT, 0, 1, 2, 0, b"")


@st.composite
def record(draw: st.DrawFn) -> tuple[int, int, int, int, int, bytes]:
    """Nearly right; what stands inside a payload is right, since the Python client leaves that to its user."""
    kind = draw(st.integers(2, 16))
    flags = draw(st.sampled_from([0, 0, 0, 1, 2, 4, 8, 64]))
    payload = EFFECT_PAYLOADS.get(kind, b"")
    if kind in (layout.REQUEST_BODY, layout.RESPONSE_BODY, layout.LOG) or (
        not payload and draw(st.integers(0, 9)) == 0
    ):
        payload = draw(st.sampled_from([b"", pairs.encode([(b"a", b"1")])]))
    if kind in EFFECT_PAYLOADS or kind in (2, 4, 5, 7):
        flags &= ~layout.FLAG_MORE
    stream, seq = draw(st.sampled_from([1, 1, 1, 0, 2])), draw(st.sampled_from([2, 2, 2, 0, 0, 1, 3]))
    return kind, flags, stream, seq, draw(st.sampled_from([0, 0, 1, 3, 4, 6])), payload


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.one_of(record(), record(), record(), st.just(VERDICT), st.just(RESTARTED)), min_size=1, max_size=6))
def test_both_clients_accept_and_refuse_alike_whatever_comes(shim: c.CDLL, records: list[Any]) -> None:
    setup = Setup(shim)
    try:
        accepted, _ = judged_by_python(records)
        setup.vm.words[layout.OFFSET_VM_STATE // 4] = layout.VM_READY
        client = setup.open(serve=False)
        setup.vm.words[layout.OFFSET_VM_GENERATION // 4] = 1
        event = client.headers(client.open(), 2, [(b":path", b"/")])
        setup.vm.emit(records)
        shim.sbx_spin(event)
        shim.sbx_next(client.handle, c.byref(c.c_void_p()))
        assert (client.reason == "") == accepted, client.reason
    finally:
        setup.close()


@pytest.mark.parametrize(
    ("offset", "value"),
    [(layout.OFFSET_CQ_TAIL, 4), (layout.OFFSET_CQ_TAIL, RING + 4096), (layout.OFFSET_SQ_HEAD, 4),
     (layout.OFFSET_SQ_HEAD, RING * 2)],
)  # fmt: skip
def test_counters_that_cannot_be(setup: Setup, offset: int, value: int) -> None:
    client = setup.open(serve=False)
    stream = client.open()
    event = client.headers(stream, 2, [(b":path", b"/")])
    words = setup.vm.words
    words[offset // 4] = (words[offset // 4] + value) & 0xFFFFFFFF
    made = c.c_void_p()
    statuses = [setup.lib.sbx_spin(event)]
    chunk = (c_client.Bytes * 1)(c_client.bytes_of(bytes(15_000)))
    statuses += [setup.lib.sbx_submit_body(stream, 3, chunk, 1, False, 1, None, c.byref(made)) for _ in range(6)]
    assert c_client.NAMES.index("BROKEN") in statuses


@pytest.mark.parametrize("arm", ["sbx_arm", "sbx_arm_edge"])
def test_a_counter_that_cannot_be_as_the_client_goes_to_sleep(setup: Setup, arm: str) -> None:
    """What ends with the channel is told before that the channel has ended: nobody would look again."""
    client = setup.open(serve=False)
    stream = client.open()
    told, made = c.c_void_p(), c.c_void_p()
    chunk = (c_client.Bytes * 1)(c_client.bytes_of(bytes(200_000)))
    assert setup.lib.sbx_submit_body(stream, 3, chunk, 1, False, 1, None, c.byref(made)) == 0, "more than the ring has"
    assert c_client.NAMES[setup.lib.sbx_next(client.handle, c.byref(told))] == "AGAIN"
    setup.vm.words[layout.OFFSET_SQ_HEAD // 4] += RING * 2
    assert c_client.NAMES[setup.lib[arm](client.handle)] == "AGAIN"
    assert setup.lib.sbx_next(client.handle, c.byref(told)) == 0
    assert told.value == made.value
    assert c_client.NAMES[setup.lib.sbx_event_status(told)] == "BROKEN"
    assert c_client.NAMES[setup.lib[arm](client.handle)] == "BROKEN"


@pytest.mark.parametrize("damage", ["size", "magic", "unsealed", "ring_bytes"])
def test_only_a_sealed_channel_is_mapped(shim: c.CDLL, damage: str) -> None:
    fds = create_channel(RING)
    memfd, ring_bytes = os.dup(fds.memfd), RING
    if damage == "size":
        ring_bytes = RING * 2
    elif damage == "ring_bytes":
        ring_bytes = RING + 8
    elif damage == "magic":
        os.pwrite(memfd, b"XXXX", 0)
    else:
        os.close(memfd)
        memfd = os.memfd_create("plain", os.MFD_ALLOW_SEALING)
        os.ftruncate(memfd, layout.file_bytes(RING))
        os.pwrite(memfd, os.pread(fds.memfd, 16, 0), 0)
    policy = c_client.policy(shim, compile_policy("t", POLICY, STANDARD, bytes(32)))
    given = c_client.Descriptors(memfd, os.dup(fds.vm_event_fd), os.dup(fds.client_event_fd), -1, ring_bytes, 0, 0)
    handle, error = c.c_void_p(), c_client.Error()
    assert c_client.NAMES[shim.sbx_channel_open(c.byref(given), policy, c.byref(handle), c.byref(error))] == "PROTOCOL"
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(memfd)
    shim.sbx_policy_release(policy)
    fds.close()
