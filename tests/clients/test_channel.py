"""The C client against a scripted VM: every verdict, every failure, and the same rules as the Python client."""

from __future__ import annotations

import ctypes as c
import json
import os
import select
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandboxd.channel import layout, pairs
from sandboxd.channel.client import VmClient
from sandboxd.channel.completions import LocalResponse, Verdict, encode_local_response
from sandboxd.channel.errors import ChannelBroken
from sandboxd.channel.memfd import ChannelFds, create_channel
from sandboxd.policy import capabilities
from sandboxd.policy.compile import compile_policy
from sandboxd.policy.model import (
    HeaderRule,
    ModuleRef,
    PluginLimits,
    PluginPolicy,
    PropertyRule,
    RedactionPolicy,
    RedactMode,
    WritePolicy,
)
from tests.support import c_client
from tests.support.c_client import CChannel, effects_of, refusals_of
from tests.support.fake_vm import Answer, Event, FakeVm, pass_through

RING = 65536
STANDARD = capabilities.needs(capabilities.PRESETS["standard"], capabilities.HTTP_CALLBACKS)
POLICY = PluginPolicy(
    "filter",
    ModuleRef(Path("a.wasm"), "0" * 64),
    redact=RedactionPolicy(request_headers=(HeaderRule("cookie", RedactMode.DROP), HeaderRule("x-h", RedactMode.HASH))),
    limits=PluginLimits(body_buffer_bytes=200_000, time_per_event_ns=2_000_000_000),
)


class Setup:
    """A channel with the C client on one end and a fake VM on the other."""

    def __init__(self, lib: c.CDLL) -> None:
        self.lib = lib
        self.fds: ChannelFds = create_channel(RING)
        self.vm = FakeVm(self.fds)
        self.client: CChannel | None = None

    def open(
        self, answer: Answer = pass_through, policy: PluginPolicy = POLICY, *,
        needs: capabilities.DataNeeds = STANDARD, serve: bool = True, spin_ns: int = 20_000,
    ) -> CChannel:  # fmt: skip
        self.vm.answer = answer
        self.vm.begin()
        self.client = CChannel(self.lib, self.fds, compile_policy("t", policy, needs, bytes(32)), spin_ns)
        if serve:
            self.vm.start()
        assert self.lib.sbx_ready(self.client.handle)
        return self.client

    def close(self) -> None:
        if self.client is not None:
            self.client.close()
        self.vm.stop()
        self.fds.close()


@pytest.fixture
def setup(shim: c.CDLL) -> Iterator[Setup]:
    made = Setup(shim)
    yield made
    made.close()


def answering(records: Callable[[Event], list[Any]]) -> Answer:
    """The given effects before the verdict of every event that gets one."""
    return lambda event: [] if event.kind in layout.WITHOUT_VERDICT else [*records(event), event.verdict()]


# --- events and verdicts --------------------------------------------------------------------------


def test_an_exchange_passes_through(setup: Setup) -> None:
    client = setup.open()
    stream = client.open([(b"request\0id", b"7"), (b"source\0address", b"1.2.3.4"), (b"request\0headers", b"")])
    event = client.headers(stream, 2, [(b":path", b"/"), (b"cookie", b"secret"), (b"x-h", b"v")])
    verdict = client.wait(event)
    assert (verdict.code, verdict.state) == (0, 0)
    assert [(e.kind, e.flags, bool(e.changes)) for e in effects_of(verdict)] == [(2, 0, False)]
    client.lib.sbx_event_free(event)

    event = client.body(stream, 3, [b"one", b"", b"two"], end=True)
    (effect,) = effects_of(client.wait(event))
    assert (effect.kind, effect.flags, effect.data.len, effect.data.data) == (3, 10, 6, None)
    client.lib.sbx_stream_close(stream, False, 9)

    seen = {(e.kind, e.payload) for e in setup.vm.seen}
    hashed = pairs.encode([(b":path", b"/"), (b"x-h", b"5a5e1bd6a8bdbbcd4d6fcd1d4e8b2b9b")])
    assert (1, pairs.encode([(b"request\0id", b"7")])) in seen
    assert (3, b"onetwo") in seen
    (headers,) = (payload for kind, payload in seen if kind == 2)
    assert len(headers) == len(hashed)
    assert b"secret" not in headers


def test_changes_come_redacted_back_and_checked(setup: Setup) -> None:
    after = [(b":path", b"/new"), (b"x-new", b" 1 "), (b"connection", b"close")]
    client = setup.open(answering(lambda e: [e.effect(e.kind, pairs.encode(after), layout.FLAG_MODIFIED)]))
    stream = client.open()
    event = client.headers(stream, 2, [(b":path", b"/"), (b"cookie", b"secret"), (b"a", b"1")])
    verdict = client.wait(event)
    changes = effects_of(verdict)[0].changes.contents
    assert [changes.removed[i].get() for i in range(changes.removed_count)] == [b"a"]
    assert changes.set[0].name.get() == b":path"
    assert changes.set[0].values[0].get() == b"/new"
    assert changes.added[0].name.get() == b"x-new"
    assert changes.added[0].value.get() == b"1"
    assert changes.added_count == changes.set_count == 1
    assert refusals_of(verdict) == [(4, b"connection")]


def test_bodies_larger_than_the_ring_go_and_come_in_pieces(setup: Setup) -> None:
    client = setup.open(answering(lambda e: [e.effect(3, e.payload[::-1])]))
    stream = client.open()
    body = os.urandom(190_000)
    event = client.body(stream, 3, [body[:100_000], body[100_000:]])
    (effect,) = effects_of(client.wait(event))
    assert effect.data.get() == body[::-1]
    assert effect.refused == 0


def test_a_body_past_the_limit_is_refused(setup: Setup) -> None:
    client = setup.open(answering(lambda e: [e.effect(3, bytes(200_001))]))
    verdict = client.wait(client.body(client.open(), 3, [b"x"]))
    assert effects_of(verdict)[0].refused == 7
    assert refusals_of(verdict) == [(7, b"body")]


def test_who_may_not_write_bodies_says_when_they_go_on(setup: Setup) -> None:
    turns = iter([[], [b"abcXY"], [b"Z" * 100]])

    def answer(event: Event) -> list[Any]:
        flags = layout.FLAG_END_OF_STREAM if event.end_of_stream else 0
        return [event.effect(3, piece, flags) for piece in next(turns)]

    client = setup.open(answering(answer), replace(POLICY, write=WritePolicy(body=False)))
    stream = client.open()
    assert effects_of(client.wait(client.body(stream, 3, [b"abc"]))) == []
    verdict = client.wait(client.body(stream, 3, [b"defg"]))
    assert [e.data.get() for e in effects_of(verdict)] == [b"abcdefg"]
    assert refusals_of(verdict) == [(5, b"body")]
    verdict = client.wait(client.body(stream, 3, [b"h"], end=True))
    assert [e.data.get() for e in effects_of(verdict)] == [b"h"]


FIRST_EVENT = 2
"""Its number: the opening of the first stream has the one before."""

CALLBACKS = ("proxy_on_request_headers", "proxy_on_request_body")
CALLED_FOR_BODIES = capabilities.needs(frozenset({"proxy_get_header_map_value", *CALLBACKS}), CALLBACKS)


def test_who_cannot_read_a_body_sees_its_size_and_says_when_it_goes_on(setup: Setup) -> None:
    turns = iter([[], [b"\0" * 5], [b"Z" * 100]])

    def answer(event: Event) -> list[Any]:
        flags = layout.FLAG_END_OF_STREAM if event.end_of_stream else 0
        return [event.effect(3, piece, flags) for piece in next(turns)]

    client = setup.open(answering(answer), needs=CALLED_FOR_BODIES)
    stream, made = client.open(), c.c_void_p()
    assert c_client.NAMES[setup.lib.sbx_submit_nothing(stream, 3, True, 1, None, c.byref(made))] == "INVALID"
    assert effects_of(client.wait(client.body(stream, 3, [b"abc"]))) == []
    verdict = client.wait(client.body(stream, 3, [b"de", b"fg"]))
    assert [e.data.get() for e in effects_of(verdict)] == [b"abcdefg"]
    assert refusals_of(verdict) == []
    verdict = client.wait(client.body(stream, 3, [b"h"], end=True))
    assert [e.data.get() for e in effects_of(verdict)] == [b"h"]
    assert [event.payload for event in setup.vm.seen if event.kind == 3] == [bytes(3), bytes(4), bytes(1)]


def test_a_body_that_cannot_be_read_passes_without_being_copied_out(setup: Setup) -> None:
    client = setup.open(needs=CALLED_FOR_BODIES)
    (effect,) = effects_of(client.wait(client.body(client.open(), 3, [b"secret"], end=True)))
    assert (effect.flags, effect.data.len) == (layout.FLAG_AS_SUBMITTED | layout.FLAG_END_OF_STREAM, 6)


@pytest.mark.parametrize("readable", [True, False])
@pytest.mark.parametrize("told", [0, 2, 9])
def test_what_is_left_behind_of_a_body_goes_on_before_the_trailers(setup: Setup, readable: bool, told: int) -> None:
    """Of a body that the plugin may not write, or cannot read: it cannot cut it short either."""
    policy = replace(POLICY, write=WritePolicy(body=False)) if readable else POLICY

    def answer(event: Event) -> list[Any]:
        if event.kind != 4:
            return []
        note = event.effect(9, pairs.encode([(b"p", b"v")]))
        return [note, *([event.effect(3, b"abcdefghi"[:told])] if told else []), event.effect(4), note]

    client = setup.open(answering(answer), policy, needs=STANDARD if readable else CALLED_FOR_BODIES)
    stream = client.open()
    client.wait(client.body(stream, 3, [b"abcdefg"]))
    client.wait(client.body(stream, 3, [b"hi"]))
    effects = effects_of(client.wait(client.headers(stream, 4, [(b"t", b"1")])))

    assert [effect.kind for effect in effects if effect.kind != 3] == [9, 4, 9]
    assert effects[-2].kind == 4
    assert b"".join(effect.data.get() for effect in effects if effect.kind == 3) == b"abcdefghi"


def test_what_is_left_behind_goes_on_outside_events_too(setup: Setup) -> None:
    client = setup.open(serve=False, policy=replace(POLICY, write=WritePolicy(body=False)))
    stream = client.open()
    client.body(stream, 3, [b"abc"])
    event = client.headers(stream, 4, [(b"t", b"1")])
    setup.vm.emit([(layout.VERDICT, 0, 1, FIRST_EVENT, 0, b""), (4, 0, 1, 0, 0, b"")])
    assert c_client.NAMES[setup.lib.sbx_spin(event)] == "AGAIN"
    assert [(kind, data) for kind, _, _, data in client.late] == [(3, b"abc"), (4, b"")]


@pytest.mark.parametrize("readable", [True, False])
def test_pieces_without_a_verdict_are_not_let_go_with_others(setup: Setup, readable: bool) -> None:
    """The plugin has yet to see them. It decides about the first alone, whatever it says of the end."""
    policy = replace(POLICY, write=WritePolicy(body=False)) if readable else POLICY
    client = setup.open(serve=False, policy=policy, needs=STANDARD if readable else CALLED_FOR_BODIES)
    stream = client.open()
    client.body(stream, 3, [b"abc"])
    event = client.body(stream, 3, [b"def"], end=True)
    setup.vm.emit([
        (3, layout.FLAG_END_OF_STREAM, 1, FIRST_EVENT, 0, b"abcdef"), (layout.VERDICT, 0, 1, FIRST_EVENT, 0, b""),
        (3, layout.FLAG_END_OF_STREAM, 1, 0, 0, b"def"), (4, 0, 1, 0, 0, b""),
        (3, layout.FLAG_END_OF_STREAM | layout.FLAG_AS_SUBMITTED, 1, FIRST_EVENT + 1, 0, b""),
        (layout.VERDICT, 0, 1, FIRST_EVENT + 1, 0, b""),
    ])  # fmt: skip
    assert setup.lib.sbx_wait(event, 0) == 0
    verdict = setup.lib.sbx_event_verdict(event).contents
    assert client.late == [(3, 0, 1, b"")]
    (effect,) = effects_of(verdict)
    assert (effect.flags, effect.data.len) == (layout.FLAG_END_OF_STREAM | layout.FLAG_AS_SUBMITTED, 3)


@pytest.mark.parametrize("kind", [2, 3, 4])
def test_a_direction_does_not_end_before_its_end_was_submitted(setup: Setup, kind: int) -> None:
    """Neither by the flag of an effect nor by trailers; and trailers that came too early still come later."""

    def answer(event: Event) -> list[Any]:
        map_ = [event.effect(event.kind)] if event.kind in (2, 4) else []
        return [*map_, event.effect(kind, b"", layout.FLAG_END_OF_STREAM)]

    client = setup.open(answering(answer), replace(POLICY, write=WritePolicy(body=False)))
    stream = client.open()
    for event in (client.headers(stream, 2, [(b":path", b"/")]), client.body(stream, 3, [b"abc"])):
        for effect in effects_of(client.wait(event)):
            assert effect.kind != 4
            assert not effect.flags & layout.FLAG_END_OF_STREAM
    effects = effects_of(client.wait(client.headers(stream, 4, [(b"t", b"1")])))
    assert 4 in [effect.kind for effect in effects]
    assert client.reason == ""


def test_local_responses_and_properties(setup: Setup) -> None:
    given = LocalResponse(403, -1, False, b"no way", [(b"X-Why", b"1"), (b"content-length", b"9")], b"denied")
    local = encode_local_response(given, pairs.encode(given.headers))
    path = b"a\0b"

    def answer(event: Event) -> list[Any]:
        return [event.effect(9, pairs.encode([(path, b"v")])), event.effect(8, local), event.effect(10)]

    client = setup.open(answering(answer))
    effects = effects_of(client.wait(client.headers(client.open(), 2, [(b":path", b"/")])))
    assert [e.kind for e in effects] == [9, 8, 10]
    assert (effects[0].property.name.get(), effects[0].property.value.get()) == (path, b"v")
    found = effects[1].local.contents
    assert (found.status, found.grpc_status, found.details.get(), found.body.get()) == (403, -1, b"no_way", b"denied")
    assert [(found.headers[i].name.get(), found.headers[i].value.get()) for i in range(found.header_count)] == [
        (b"x-why", b"1")
    ]


def test_denied_local_responses_still_end_the_exchange(setup: Setup) -> None:
    local = encode_local_response(LocalResponse(403, -1, False, b"", [], b""), b"")
    policy = replace(POLICY, write=WritePolicy(local_response=False))
    client = setup.open(answering(lambda e: [e.effect(8, local)]), policy)
    (effect,) = effects_of(client.wait(client.headers(client.open(), 2, [(b":path", b"/")])))
    assert effect.refused == 5
    assert not effect.local


def test_effects_on_other_streams_come_late(setup: Setup) -> None:
    client = setup.open(answering(lambda e: [e.effect(e.kind), e.effect(3, b"held", stream_id=1)]))
    first, second = client.open(), client.open()
    verdict = client.wait(client.headers(second, 2, [(b":path", b"/")]))
    assert [e.kind for e in effects_of(verdict)] == [2]
    assert client.late == [(3, 0, 1, b"held")]
    client.lib.sbx_stream_close(first, False, 1)
    client.wait(client.headers(second, 5, [(b":status", b"200")]))
    assert len(client.late) == 1  # the stream is gone: dropped


def test_effects_outside_events_come_late(setup: Setup) -> None:
    client = setup.open(serve=False)
    stream = client.open()
    event = client.headers(stream, 2, [(b":path", b"/"), (b"cookie", b"secret")])
    after = pairs.encode([(b":path", b"/x"), (b"connection", b"close")])
    effects = [
        (2, layout.FLAG_MODIFIED, 1, 0, 0, after), (2, layout.FLAG_MODIFIED, 1, 0, 0, after),  # once alone
        (3, layout.FLAG_MORE, 1, 0, 0, b"he"), (3, layout.FLAG_END_OF_STREAM, 1, 0, 0, b"ld"),
        (12, 0, 0, 0, 2, b"tick"), (11, 0, 1, 0, 1, b""),
    ]  # fmt: skip
    setup.vm.emit(effects)
    assert c_client.NAMES[setup.lib.sbx_spin(event)] == "AGAIN"
    assert [(kind, data) for kind, _, _, data in client.late] == [(2, b""), (3, b"held"), (11, b"")]
    assert client.late_changes == [([], [(b":path", [b"/x"])], [])]
    assert client.notices[-1] == (12, 0, 2, b"tick")

    setup.lib.sbx_stream_close(stream, False, 3)
    setup.vm.emit([(11, 0, 1, 0, 1, b"")])
    setup.lib.sbx_ready(client.handle)
    setup.lib.sbx_next(client.handle, c.byref(c.c_void_p()))
    assert len(client.late) == 3  # the stream is gone
    assert client.reason == ""


def test_properties_written_outside_events_are_counted_per_stream(setup: Setup) -> None:
    client = setup.open(serve=False)
    client.open()
    other = client.open()
    for number in range(70):
        setup.vm.emit([(9, 0, 1, 0, 0, pairs.encode([(b"p%d" % number, b"v")]))])
    setup.vm.emit([(9, 0, 2, 0, 0, pairs.encode([(b"p", b"v")]))])
    event = client.headers(other, 2, [(b":path", b"/")])
    setup.lib.sbx_spin(event)
    assert [kind for kind, *_ in client.late] == [9] * 71
    assert client.late_refused == [0] * 64 + [6] * 6 + [0]


def test_maps_go_on_once(setup: Setup) -> None:
    after = pairs.encode([(b":path", b"/"), (b"x", b"1")])
    client = setup.open(answering(lambda e: [e.effect(2, after, layout.FLAG_MODIFIED)] * 3))
    effects = effects_of(client.wait(client.headers(client.open(), 2, [(b":path", b"/")])))
    assert [e.kind for e in effects] == [2]
    assert client.reason == ""


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


def test_notices_come_with_their_event_or_through_the_hook(setup: Setup) -> None:
    client = setup.open(answering(lambda e: [e.effect(layout.LOG, b"hello", arg=2)]))
    stream = client.open()
    verdict = client.wait(client.headers(stream, 2, [(b":path", b"/")]))
    assert [(verdict.notices[i].arg, verdict.notices[i].data.get()) for i in range(verdict.notice_count)] == [
        (2, b"hello")
    ]
    assert (layout.VM_STARTED, 0, 1, b"") in client.notices or client.lib.sbx_channel_generation(client.handle) == 1
    client.lib.sbx_stream_close(stream, False, 9)
    event = client.headers(client.open(), 2, [(b":path", b"/")])
    client.wait(event)
    assert (layout.LOG, 1, 2, b"hello") in client.notices  # of the close, which nobody waits for


def missing(path: bytes) -> Answer:
    """An answer in which the plugin asks for a property."""
    return answering(lambda e: [e.effect(layout.NOTE, path, arg=layout.NOTE_PROPERTY_MISSING)])


def test_a_missing_property_is_told_if_the_policy_shows_it(setup: Setup) -> None:
    """The worker is a stranger: what the policy hides is nothing that its plugin could have asked for."""
    hidden = replace(POLICY, redact=RedactionPolicy(properties=(PropertyRule(("source",)),)))
    client = setup.open(missing(b"upstream\0port"), hidden)
    stream = client.open()
    verdict = client.wait(client.headers(stream, 2, [(b":path", b"/")]))
    assert [(n.kind, n.arg, n.data.get()) for n in verdict.notices[: verdict.notice_count]] == [
        (layout.NOTE, 8, b"upstream\0port")
    ]
    client.lib.sbx_stream_close(stream, False, 9)
    stream = client.open()
    client.wait(client.headers(stream, 2, [(b":path", b"/")]))
    assert (layout.NOTE, 1, 8, b"upstream\0port") in client.notices  # at the close, which nobody waits for
    setup.vm.answer = missing(b"source\0address")
    client.lib.sbx_stream_close(stream, False, 9)
    stream = client.open()
    verdict = client.wait(client.headers(stream, 2, [(b":path", b"/")]))
    assert verdict.notice_count == 0
    assert not any(data.startswith(b"source") for *_, data in client.notices)


@pytest.mark.parametrize(("code", "size"), [(8, 257), (3, 1)])
def test_notes_are_bounded(setup: Setup, code: int, size: int) -> None:
    client = setup.open(answering(lambda e: [e.effect(layout.NOTE, b"x" * size, arg=code)]))
    event = client.headers(client.open(), 2, [(b":path", b"/")])
    assert c_client.NAMES[setup.lib.sbx_wait(event, 0)] == "BROKEN"


def test_what_the_plugin_cannot_read_is_not_sent(setup: Setup) -> None:
    needs = capabilities.needs(frozenset({"proxy_on_context_create"}), ["proxy_on_request_headers"])
    client = setup.open(needs=needs)
    stream = client.open([(b"request\0id", b"7")])
    client.wait(client.headers(stream, 2, [(b":path", b"/secret")]))
    made = c.c_void_p()
    assert setup.lib.sbx_submit_body(stream, 3, None, 0, True, 1, None, c.byref(made)) == 10
    assert setup.lib.sbx_submit_nothing(stream, 3, True, 1, None, c.byref(made)) == 0
    (effect,) = effects_of(client.wait(made))
    assert (effect.flags, effect.data.len) == (layout.FLAG_AS_SUBMITTED | layout.FLAG_END_OF_STREAM, 0)
    assert all(event.payload == b"" for event in setup.vm.seen)


# --- waiting --------------------------------------------------------------------------------------


def test_without_blocking(setup: Setup) -> None:
    """arm, poll, next: as an event loop does it."""
    client = setup.open(spin_ns=0)
    events = {client.headers(client.open(), 2, [(b":path", b"/")]).value for _ in range(50)}
    told = c.c_void_p()
    deadline = time.monotonic() + 10
    while events:
        assert time.monotonic() < deadline
        while setup.lib.sbx_next(client.handle, c.byref(told)) == 0:
            assert setup.lib.sbx_event_status(told) == 0
            events.remove(told.value)
            setup.lib.sbx_event_free(told)
        if events and setup.lib.sbx_arm(client.handle) == 0:
            select.select([setup.lib.sbx_channel_fd(client.handle)], [], [], 5)


def test_looking_in_vain_costs_less_and_less_but_is_tried_again(setup: Setup) -> None:
    budget_ns = 4_000_000
    client = setup.open(serve=False, spin_ns=budget_ns)
    event = client.headers(client.open(), 2, [(b":path", b"/")])
    taken = []
    for _ in range(32):
        begin = time.monotonic_ns()
        assert c_client.NAMES[setup.lib.sbx_spin(event)] == "AGAIN"
        taken.append(time.monotonic_ns() - begin)
    long = [index for index, took in enumerate(taken) if took >= budget_ns]
    assert {0, 16} <= set(long)
    assert sum(took < budget_ns / 2 for took in taken) > 16


def test_with_few_cpus_it_looks_only_while_alone(setup: Setup) -> None:
    """A second stream, and nobody waits for the first one's verdict while the second could go on."""
    budget_ns = 2_000_000
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cpus)})
    try:
        client = setup.open(serve=False, spin_ns=budget_ns)
    finally:
        os.sched_setaffinity(0, cpus)

    def look_ns() -> int:
        begin = time.monotonic_ns()
        assert c_client.NAMES[setup.lib.sbx_spin(event)] == "AGAIN"
        return time.monotonic_ns() - begin

    first = client.open()
    event = client.headers(first, 2, [(b":path", b"/")])
    assert look_ns() >= budget_ns
    second = client.open()
    assert min(look_ns() for _ in range(5)) < budget_ns / 10
    for stream in (first, second):
        setup.lib.sbx_stream_close(stream, False, 0)
    for number in range(64):  # one by one, and it counts as alone again
        stream = client.open()
        event = client.headers(stream, 2, [(b":path", b"/")])
        if number in (0, 62, 63):
            assert (max(look_ns() for _ in range(17)) >= budget_ns) is (number == 63)
        setup.lib.sbx_stream_close(stream, False, 0)


def test_time_runs_out_and_the_late_verdict_is_nobodys(setup: Setup) -> None:
    client = setup.open(serve=False, spin_ns=0)
    event = client.headers(client.open(), 2, [(b":path", b"/")])
    begin = time.monotonic()
    assert c_client.NAMES[setup.lib.sbx_wait(event, 50_000_000)] == "TIMEOUT"
    assert 0.05 <= time.monotonic() - begin < 1
    assert c_client.NAMES[setup.lib.sbx_event_status(event)] == "TIMEOUT"
    setup.lib.sbx_event_free(event)
    setup.vm.poll()
    assert setup.lib.sbx_ready(client.handle)
    again = client.headers(client.open(), 2, [(b":path", b"/")])
    setup.vm.poll()
    client.wait(again)


def test_a_vm_that_is_silent_for_good_is_given_up(setup: Setup) -> None:
    policy = replace(POLICY, limits=PluginLimits(time_per_event_ns=1_000_000))
    client = setup.open(policy=policy, serve=False)
    event, told = client.headers(client.open(), 2, [(b":path", b"/")]), c.c_void_p()
    assert 0 < setup.lib.sbx_next_deadline_ns(client.handle) <= time.monotonic_ns() + 1_000_000
    time.sleep(0.01)
    assert setup.lib.sbx_next(client.handle, c.byref(told)) == 0
    assert told.value == event.value
    assert c_client.NAMES[setup.lib.sbx_event_status(event)] == "TIMEOUT"
    time.sleep(1.01)
    assert setup.lib.sbx_next(client.handle, c.byref(told)) == 1
    assert not setup.lib.sbx_ready(client.handle)
    assert "no verdict" in client.reason


def test_cancelled_events_bring_nothing(setup: Setup) -> None:
    client = setup.open(serve=False)
    stream = client.open()
    setup.lib.sbx_event_free(client.headers(stream, 2, [(b":path", b"/")]))
    setup.vm.poll()
    told = c.c_void_p()
    assert setup.lib.sbx_next(client.handle, c.byref(told)) == 1
    assert setup.lib.sbx_ready(client.handle)


@pytest.mark.parametrize(("said", "cause"), [(2, 1), (3, 8), (9, 9), (0, 0), (8, 0), (2**32 - 1, 0)])
def test_the_limit_that_ended_the_vm_is_named(setup: Setup, said: int, cause: int) -> None:
    client = setup.open(serve=False, spin_ns=0)
    setup.vm.fail(said)
    assert setup.lib.sbx_channel_down_cause(client.handle) == cause


def test_a_failed_vm_loses_what_waits_and_a_new_one_serves(setup: Setup) -> None:
    client = setup.open(serve=False, spin_ns=0)
    stream = client.open()
    event = client.headers(stream, 2, [(b":path", b"/")])
    failing = threading.Timer(0.05, setup.vm.fail)
    failing.start()
    assert c_client.NAMES[setup.lib.sbx_wait(event, 5_000_000_000)] == "DOWN"
    failing.join()
    made = c.c_void_p()
    status = setup.lib.sbx_submit_headers(stream, 5, None, 0, True, 1, None, c.byref(made))
    assert c_client.NAMES[status] == "DOWN"

    setup.vm.inbox.take()
    setup.vm.begin()
    assert setup.lib.sbx_ready(client.handle)
    assert setup.lib.sbx_channel_generation(client.handle) == 2
    assert setup.lib.sbx_stream_lost(stream)
    setup.lib.sbx_stream_close(stream, True, 1)
    again = client.headers(client.open(), 2, [(b":path", b"/")])
    setup.vm.poll()
    client.wait(again)


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


# --- a VM that breaks the rules: the Python client is the judge -----------------------------------


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


# --- the file -------------------------------------------------------------------------------------


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


# --- golden vectors -------------------------------------------------------------------------------

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
