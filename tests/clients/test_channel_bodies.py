"""The C client and a scripted VM: bodies in pieces, in parts, and what goes on when."""

from __future__ import annotations

import ctypes as c
import os
from dataclasses import replace
from typing import Any

import pytest

from sandboxd.channel import layout, pairs
from sandboxd.policy import capabilities
from sandboxd.policy.model import WritePolicy
from tests.support import c_client
from tests.support.c_client import effects_of, refusals_of
from tests.support.fake_vm import Event
from tests.support.scripted_channel import FIRST_EVENT, POLICY, STANDARD, Setup, answering


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
