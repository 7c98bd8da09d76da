"""A plugin that fails in an ext_proc exchange, and one that is only observed."""

from __future__ import annotations

import pytest
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb

from sandboxd.channel import layout
from sandboxd.policy.failure import Cause
from tests.support import front_rig as rig
from tests.support.ext_proc_play import (
    BUFFERED,
    DUPLEX,
    NONE,
    PARTIAL,
    PAUSED,
    STREAMED,
    Play,
    effect,
    local,
    streamed,
    which,
)

# --- failure ---

OPEN = "failure: {policy: open}"


def test_failure_closed() -> None:
    play = Play()
    play.headers()
    (reply,) = play.fails(Cause.TRAP)

    assert reply.immediate_response.status.code == 503
    assert play.findings["failed.trap"] == 1


@pytest.mark.parametrize("mode", [NONE, STREAMED, BUFFERED, PARTIAL])
def test_failure_open_goes_on_without_the_plugin(mode: int) -> None:
    play = Play(rig.plugin(OPEN), request=mode)
    play.headers()
    assert play.fails(Cause.TRAP) == [pb.ProcessingResponse(request_headers={})]
    assert play.body(b"x", True) == []
    assert play.replies() == [pb.ProcessingResponse(request_body={})]
    assert play.response_headers() == []
    assert which(play.replies()) == ["response_headers"]


def test_failure_open_in_duplex_hands_on_what_is_at_hand() -> None:
    play = Play(rig.plugin(OPEN), request=DUPLEX)
    play.headers()
    play.passes()
    play.body(b"one")
    assert streamed(*play.fails(Cause.TRAP)) == [(b"one", False)]
    play.body(b"two")
    assert streamed(*play.replies()) == [(b"two", False)]
    play.trailers(("t", "1"))
    assert which(play.replies()) == ["request_trailers"]


@pytest.mark.parametrize("mode", [STREAMED, DUPLEX])
def test_failure_cannot_be_open_once_bytes_were_kept(mode: int) -> None:
    play = Play(rig.plugin(OPEN), request=mode)
    play.headers()
    play.passes()
    play.body(b"one")
    play.vm(state=PAUSED)
    play.body(b"two")
    (reply,) = play.fails(Cause.TRAP)

    assert reply.immediate_response.status.code == 503
    assert play.findings["failure.open_impossible"] == 1


def test_buffered_failure_in_the_body_can_still_be_open() -> None:
    play = Play(rig.plugin(OPEN), request=BUFFERED)
    play.headers()
    play.passes()
    play.body(b"one", True)

    assert play.fails(Cause.TRAP) == [pb.ProcessingResponse(request_body={})]


def test_failure_after_the_response_began_resets() -> None:
    play = Play(response=STREAMED)
    play.headers(eos=True)
    play.passes()
    play.response_headers()
    play.passes()
    play.response_body(b"x")
    play.fails(Cause.TRAP)

    assert play.findings["failure.reset"] == 1
    assert play.exchange.finished


def test_failure_in_a_buffered_response_body_is_a_response() -> None:
    play = Play(response=BUFFERED)
    play.headers(eos=True)
    play.passes()
    play.response_headers()
    play.passes()
    play.response_body(b"x", True)
    (reply,) = play.fails(Cause.TRAP)

    assert reply.immediate_response.status.code == 503
    assert "failure.reset" not in play.findings


# --- observability ---


def test_observability_mode_says_nothing() -> None:
    play = Play(request=STREAMED)
    play.headers(observability_mode=True)
    assert play.vm(effect(layout.REQUEST_HEADERS)) == []
    play.body(b"x")
    assert play.vm(state=PAUSED) == []
    play.body(b"x", True)
    assert play.vm(local()) == []
    assert not play.exchange.finished
    assert not play.exchange.waiting
    play.response_headers()
    play.exchange.fail(Cause.TRAP)
    assert play.replies() == []
    assert play.exchange.bypassed
