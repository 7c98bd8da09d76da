"""BUFFERED and STREAMED bodies over ext_proc, and pauses from headers in every body mode."""

from __future__ import annotations

import pytest
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb

from sandboxd.channel import layout
from sandboxd.exchange.side import Ask
from sandboxd.policy.failure import Cause
from tests.support import front_rig as rig
from tests.support.ext_proc_play import (
    AS_SUBMITTED,
    BUFFERED,
    DUPLEX,
    EOS,
    HELD,
    NONE,
    PARTIAL,
    PAUSED,
    STOPPED,
    STREAMED,
    Play,
    changed,
    effect,
    sets,
    which,
)

# --- BUFFERED ---


def test_buffered_body_goes_back_as_it_was() -> None:
    play = Play(request=BUFFERED)
    play.headers()
    play.passes()
    assert play.body(b"hello", True) == [Ask(layout.REQUEST_BODY, b"hello", True)]

    assert play.passes() == [pb.ProcessingResponse(request_body={})]


def test_buffered_change_of_body_corrects_the_content_length() -> None:
    play = Play(request=BUFFERED)
    play.headers([*rig.REQUEST, ("content-length", "5")])
    play.passes()
    play.body(b"hello", True)
    (reply,) = play.vm(effect(layout.REQUEST_BODY, b"hello world", EOS))
    response = reply.request_body.response

    assert response.body_mutation.body == b"hello world"
    assert sets(response.header_mutation) == [("content-length", b"11", 2)]


@pytest.mark.parametrize("present", [True, False])
def test_buffered_change_without_content_length_adds_none(present: bool) -> None:
    play = Play(request=BUFFERED)
    play.headers([*rig.REQUEST, ("content-length", "5")] if present else rig.REQUEST)
    play.vm(changed(layout.REQUEST_HEADERS, *rig.REQUEST))
    play.body(b"hello", True)
    (reply,) = play.vm(effect(layout.REQUEST_BODY, b"", EOS))
    response = reply.request_body.response

    assert response.body_mutation.clear_body
    assert not response.HasField("header_mutation")


def test_buffered_headers_held_until_the_body_change_with_its_answer() -> None:
    play = Play(request=BUFFERED)
    play.headers([*rig.REQUEST, ("content-length", "5")])
    assert play.vm(state=HELD) == [pb.ProcessingResponse(request_headers={})]
    play.body(b"hello", True)
    (reply,) = play.vm(
        changed(layout.REQUEST_HEADERS, *rig.REQUEST, ("content-length", "99"), ("x-len", "5")),
        effect(layout.REQUEST_BODY, b"new", EOS),
    )

    assert sets(reply.request_body.response.header_mutation) == [
        ("content-length", b"3", 2),
        ("x-len", b"5", 0),
    ]
    assert not play.findings


def test_buffered_body_kept_waits_and_is_freed_from_elsewhere() -> None:
    play = Play(request=BUFFERED)
    play.headers()
    play.passes()
    play.body(b"hello", True)
    assert play.vm(state=PAUSED) == []
    assert play.exchange.waiting
    play.exchange.late([effect(layout.REQUEST_BODY, b"HELLO", EOS)])
    (reply,) = play.replies()

    assert reply.request_body.response.body_mutation.body == b"HELLO"
    assert not play.exchange.waiting


@pytest.mark.parametrize("mode", [BUFFERED, PARTIAL])
def test_buffered_body_held_for_more_ends_the_exchange_at_once(mode: int) -> None:
    play = Play(request=mode)
    play.headers()
    play.passes()
    play.body(b"all but the trailers")
    (reply,) = play.vm(state=PAUSED)

    assert reply.immediate_response.details == "sandboxd_cannot_carry_body_held"
    assert play.findings == {"ext_proc.cannot_carry.body_held": 1}
    assert play.exchange.finished


# --- STREAMED ---


def test_streamed_chunk_kept_comes_out_with_a_later_one() -> None:
    play = Play(request=STREAMED)
    play.headers()
    play.passes()
    play.body(b"one ")
    (reply,) = play.vm(state=PAUSED)
    assert reply.request_body.response.body_mutation.clear_body
    play.body(b"two", True)
    (reply,) = play.vm(effect(layout.REQUEST_BODY, b"one two", EOS))

    assert reply.request_body.response.body_mutation.body == b"one two"
    assert not play.findings


def test_streamed_last_chunk_kept_waits() -> None:
    play = Play(request=STREAMED)
    play.headers()
    play.passes()
    play.body(b"all", True)

    assert play.vm(state=PAUSED) == []
    assert play.exchange.waiting


def test_streamed_headers_cannot_be_held_for_the_body() -> None:
    play = Play(request=STREAMED)
    play.headers()
    assert play.vm(state=HELD) == [pb.ProcessingResponse(request_headers={})]
    play.body(b"x", True)
    (reply,) = play.vm(
        changed(layout.REQUEST_HEADERS, *rig.REQUEST, ("late", "1")), effect(layout.REQUEST_BODY, b"x", AS_SUBMITTED)
    )

    assert not reply.request_body.HasField("response")
    assert play.findings == {
        "ext_proc.cannot_carry.request_headers_held": 1,
        "ext_proc.cannot_carry.late_request_headers": 1,
    }


def test_streamed_body_freed_by_trailers_would_be_lost_so_the_exchange_ends() -> None:
    play = Play(request=STREAMED)
    play.headers()
    play.passes()
    play.body(b"x")
    play.vm(state=PAUSED)
    play.trailers(("t", "1"))
    (reply,) = play.vm(effect(layout.REQUEST_BODY, b"x"), effect(layout.REQUEST_TRAILERS))

    assert reply.immediate_response.status.code == 500
    assert play.findings == {"ext_proc.cannot_carry.body_at_trailers": 1}


def test_body_that_may_come_before_the_headers_are_answered() -> None:
    play = Play(request=STREAMED)
    play.config.send_body_without_waiting_for_header_response = True
    play.headers()
    assert play.vm(state=STOPPED) == []
    play.body(b"x")

    assert which(play.replies()) == ["request_headers"]
    assert play.findings == {"ext_proc.cannot_carry.request_headers_held": 1}


# --- pauses from headers ---


@pytest.mark.parametrize("mode", [NONE, STREAMED, BUFFERED, PARTIAL, DUPLEX])
def test_a_stop_of_all_iteration_delays_the_answer(mode: int) -> None:
    play = Play(request=mode)
    play.headers()
    assert play.vm(state=STOPPED) == []
    assert play.exchange.waiting
    play.exchange.late([effect(layout.REQUEST_HEADERS)])

    assert which(play.replies()) == ["request_headers"]
    assert not play.exchange.waiting
    assert not play.findings


def test_pause_without_body_delays_the_answer() -> None:
    play = Play(request=STREAMED)
    play.headers(eos=True)

    assert play.vm(state=HELD) == []
    assert play.exchange.waiting


def test_nothing_frees_a_pause() -> None:
    play = Play()
    play.headers(eos=True)
    play.vm(state=STOPPED)
    (reply,) = play.fails(Cause.TIMEOUT)

    assert (reply.immediate_response.status.code, reply.immediate_response.details) == (504, "sandboxd_timeout")
    assert play.exchange.finished


def test_an_event_of_the_response_may_free_the_request() -> None:
    play = Play(request=DUPLEX, response=DUPLEX)
    play.headers(eos=True)
    play.vm(state=STOPPED)
    play.response_headers()
    replies = play.vm(effect(layout.REQUEST_HEADERS), effect(layout.RESPONSE_HEADERS))

    assert sorted(which(replies)) == ["request_headers", "response_headers"]
