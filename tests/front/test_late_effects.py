"""Effects that arise outside the events of their exchange: only what they let go is free."""

from __future__ import annotations

import pytest

from sandboxd.channel import layout, pairs
from sandboxd.channel.completions import Effect
from sandboxd.policy.failure import Cause
from tests.support import front_rig as rig
from tests.support.ext_proc_play import (
    BUFFERED,
    DUPLEX,
    EOS,
    NONE,
    PARTIAL,
    PAUSED,
    STOPPED,
    STREAMED,
    Play,
    changed,
    effect,
    streamed,
    which,
)

OPEN = "failure: {policy: open}"
PROPERTY = effect(layout.PROPERTY_SET, pairs.encode([(b"user\0id", b"7")]))
ROUTE = effect(layout.CLEAR_ROUTE_CACHE)
HEADERS = effect(layout.REQUEST_HEADERS)


# --- effects that let nothing go ---


@pytest.mark.parametrize("mode", [NONE, STREAMED, BUFFERED, PARTIAL, DUPLEX])
@pytest.mark.parametrize("said", [PROPERTY, ROUTE])
def test_headers_stay_held_whatever_else_is_done_to_the_exchange(mode: int, said: Effect) -> None:
    """The first of two callouts has been answered; the second one says what becomes of the request."""
    play = Play(request=mode)
    play.headers()
    play.vm(state=STOPPED)
    play.exchange.late([said])
    assert play.replies() == []
    assert play.exchange.waiting
    play.exchange.late([changed(layout.REQUEST_HEADERS, *rig.REQUEST, ("x", "1"))])

    assert which(play.replies()) == ["request_headers"]


@pytest.mark.parametrize("said", [PROPERTY, ROUTE])
def test_a_body_stays_held_whatever_else_is_done_to_the_exchange(said: Effect) -> None:
    play = Play(request=BUFFERED)
    play.headers()
    play.passes()
    play.body(b"transfer=100", True)
    play.vm(state=PAUSED)
    play.exchange.late([said])

    assert play.replies() == []
    assert play.exchange.waiting


def test_chunks_that_are_held_are_not_forgotten_whatever_else_is_done_to_the_exchange() -> None:
    play = Play(rig.plugin(OPEN), request=DUPLEX)
    play.headers()
    play.passes()
    play.body(b"abc")
    play.vm(state=PAUSED)
    play.exchange.late([PROPERTY])
    play.body(b"def", True)

    assert which(play.fails(Cause.TRAP)) == ["immediate_response"]
    assert play.findings["failure.open_impossible"] == 1


def test_the_other_direction_goes_on_alone() -> None:
    play = Play(request=DUPLEX, response=DUPLEX)
    play.headers(eos=True)
    play.vm(state=STOPPED)
    play.response_headers(eos=True)
    play.vm(state=STOPPED | layout.STATE_RESPONSE_PAUSED | layout.STATE_RESPONSE_ALL_STOPPED)
    play.exchange.late([effect(layout.RESPONSE_HEADERS)])

    assert which(play.replies()) == ["response_headers"]
    assert play.exchange.request.waiting
    assert not play.exchange.response.waiting


# --- headers go, and what waited behind them does not ---


def behind_the_headers(play: Play, *, trailers: bool = False) -> None:
    """A stop of all iteration, with a body that comes behind it."""
    play.headers()
    play.vm(state=STOPPED)
    play.body(b"abc")
    play.vm(state=STOPPED)
    if trailers:
        play.trailers(("t", "1"))
    else:
        play.body(b"def", True)
    play.vm(state=STOPPED)


def test_a_body_that_waited_behind_the_headers_may_be_held_in_its_turn() -> None:
    play = Play(request=DUPLEX)
    behind_the_headers(play)
    play.exchange.late([HEADERS])
    assert which(play.replies()) == ["request_headers"]
    assert play.exchange.waiting, "the body callback has paused again"
    play.exchange.late([effect(layout.REQUEST_BODY, b"ABCDEF", EOS)])

    assert streamed(*play.replies()) == [(b"ABCDEF", True)]
    assert not play.exchange.waiting


def test_bytes_held_behind_headers_that_have_left_cannot_be_passed_on() -> None:
    play = Play(rig.plugin(OPEN), request=DUPLEX)
    behind_the_headers(play)
    play.exchange.late([HEADERS])
    play.replies()

    assert which(play.fails(Cause.TRAP)) == ["immediate_response"]
    assert play.findings["failure.open_impossible"] == 1


def test_trailers_that_waited_behind_the_headers_may_be_held_in_their_turn() -> None:
    play = Play(request=DUPLEX)
    behind_the_headers(play, trailers=True)
    play.exchange.late([HEADERS, effect(layout.REQUEST_BODY, b"abc")])
    assert which(play.replies()) == ["request_headers", "request_body"]
    assert play.exchange.waiting
    play.exchange.late([effect(layout.REQUEST_TRAILERS)])

    assert which(play.replies()) == ["request_trailers"]
    assert not play.exchange.waiting


@pytest.mark.parametrize("trailers", [False, True])
def test_all_that_waited_behind_the_headers_may_go_at_once(trailers: bool) -> None:
    play = Play(request=DUPLEX)
    behind_the_headers(play, trailers=trailers)
    last = effect(layout.REQUEST_TRAILERS) if trailers else effect(layout.REQUEST_BODY, b"abcdef", EOS)
    play.exchange.late([HEADERS, last])

    assert which(play.replies()) == ["request_headers", "request_trailers" if trailers else "request_body"]
    assert not play.exchange.waiting


def test_a_chunk_that_came_before_the_headers_were_answered_may_be_held_in_its_turn() -> None:
    play = Play(request=STREAMED)
    play.config.send_body_without_waiting_for_header_response = True
    play.headers()
    play.vm(state=STOPPED)
    play.body(b"all", True)
    play.vm(state=STOPPED)
    play.replies()
    play.exchange.late([HEADERS])

    assert play.replies() == []
    assert play.exchange.waiting


# --- the message that is with the VM ---


def test_a_chunk_that_is_with_the_vm_is_passed_on_when_it_fails() -> None:
    """Also if the headers in front of it have been let go meanwhile."""
    play = Play(rig.plugin(OPEN), request=DUPLEX)
    play.headers()
    play.vm(state=STOPPED)
    play.body(b"abc", True)
    play.exchange.late([HEADERS])
    replies = play.replies() + play.fails(Cause.TRAP)

    assert which(replies) == ["request_headers", "request_body"]
    assert streamed(replies[1]) == [(b"abc", True)]
