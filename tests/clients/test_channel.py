"""The C client against a scripted VM: events, verdicts, effects and notices."""

from __future__ import annotations

import ctypes as c
from dataclasses import replace
from typing import Any

from sandboxd.channel import layout, pairs
from sandboxd.channel.completions import LocalResponse, encode_local_response
from sandboxd.policy import capabilities
from sandboxd.policy.model import PropertyRule, RedactionPolicy, WritePolicy
from tests.support import c_client
from tests.support.c_client import effects_of, refusals_of
from tests.support.fake_vm import Answer, Event
from tests.support.scripted_channel import POLICY, Setup, answering


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
