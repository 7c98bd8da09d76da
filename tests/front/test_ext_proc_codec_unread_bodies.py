"""Bodies that a plugin has no callback for, cannot read or may not write, and the limit of their size."""

from __future__ import annotations

import pytest
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb

from sandboxd.channel import layout
from sandboxd.channel.completions import Effect
from sandboxd.exchange.side import Ask
from tests.support import front_rig as rig
from tests.support.ext_proc_play import (
    AS_SUBMITTED,
    BUFFERED,
    DUPLEX,
    EOS,
    HELD,
    NO_BODY_CALLBACKS,
    PARTIAL,
    PAUSED,
    READS_HEADERS,
    STREAMED,
    Play,
    changed,
    effect,
    sets,
    streamed,
    which,
)


@pytest.mark.parametrize("mode", [STREAMED, BUFFERED, PARTIAL])
def test_bodies_without_a_callback_never_reach_the_vm(mode: int) -> None:
    play = Play(rig.plugin(callbacks=NO_BODY_CALLBACKS), request=mode)
    play.headers()
    play.passes()

    assert play.body(b"secret", True) == []
    assert play.replies() == [pb.ProcessingResponse(request_body={})]


def test_unread_body_frees_headers_that_wait_for_it() -> None:
    play = Play(rig.plugin(callbacks=NO_BODY_CALLBACKS), request=BUFFERED)
    play.headers()
    play.vm(state=HELD)
    assert play.body(b"secret", True) == [Ask(layout.REQUEST_BODY, b"", True)]
    (reply,) = play.vm(
        changed(layout.REQUEST_HEADERS, *rig.REQUEST, ("x", "1")), effect(layout.REQUEST_BODY, b"", AS_SUBMITTED | EOS)
    )

    assert sets(reply.request_body.response.header_mutation) == [("x", b"1", 0)]
    assert not reply.request_body.response.HasField("body_mutation")


@pytest.mark.parametrize("mode", [STREAMED, BUFFERED, PARTIAL, DUPLEX])
def test_a_callback_that_cannot_read_is_told_the_size_alone(mode: int) -> None:
    play = Play(rig.plugin(functions=READS_HEADERS), request=mode)
    play.headers()
    play.passes()
    assert play.body(b"secret", True) == [Ask(layout.REQUEST_BODY, bytes(6), True)]
    replies = play.passes()

    if mode == DUPLEX:
        assert streamed(*replies) == [(b"secret", True)]
    else:
        assert replies == [pb.ProcessingResponse(request_body={})]
    assert not play.findings


def test_a_callback_that_cannot_read_may_hold_the_body_and_say_how_much_goes_on() -> None:
    play = Play(rig.plugin(functions=READS_HEADERS), request=DUPLEX)
    play.headers()
    play.passes()
    play.body(b"one ")
    assert play.vm(state=PAUSED) == []
    play.body(b"two ")
    replies = play.vm(effect(layout.REQUEST_BODY, bytes(8)))
    play.body(b"end", True)
    replies += play.vm(effect(layout.REQUEST_BODY, bytes(1), EOS))

    assert streamed(*replies) == [(b"one two ", False), (b"end", True)], "the end brings whatever is left"
    assert not play.findings


@pytest.mark.parametrize("rules", ["write: {body: false}", ""])
@pytest.mark.parametrize("said", [[], [effect(layout.REQUEST_BODY, b"on")]])
def test_what_is_left_behind_of_a_body_goes_on_before_the_trailers(rules: str, said: list[Effect]) -> None:
    """Of a body that the plugin may not write, or cannot read: it cannot cut it short either."""
    play = Play(rig.plugin(rules) if rules else rig.plugin(functions=READS_HEADERS), request=DUPLEX)
    play.headers()
    play.passes()
    play.body(b"one ")
    play.vm(state=PAUSED)
    play.body(b"two")
    play.vm(state=PAUSED)
    play.trailers(("t", "1"))
    replies = play.vm(*said, effect(layout.REQUEST_TRAILERS))

    assert which(replies)[-1] == "request_trailers"
    assert b"".join(piece for piece, _ in streamed(*replies[:-1])) == b"one two"


def test_what_is_left_behind_of_a_body_that_streams_is_not_cut_off_in_silence() -> None:
    play = Play(rig.plugin("write: {body: false}"), request=STREAMED)
    play.headers()
    play.passes()
    play.body(b"one")
    play.vm(state=PAUSED)
    play.trailers(("t", "1"))
    replies = play.vm(effect(layout.REQUEST_TRAILERS))

    assert which(replies) == ["immediate_response"]
    assert play.findings == {"ext_proc.cannot_carry.body_at_trailers": 1}


def test_a_plugin_that_may_not_write_bodies_only_says_how_much_goes_on() -> None:
    play = Play(rig.plugin("write: {body: false}"), request=DUPLEX)
    play.headers()
    play.passes()
    play.body(b"one ")
    play.vm(state=PAUSED)
    play.body(b"two", True)
    replies = play.vm(effect(layout.REQUEST_BODY, b"ONE TWO THREE", EOS))

    assert streamed(*replies) == [(b"one two", True)]
    assert play.findings == {"refused.denied_by_policy": 1}


def test_a_body_past_the_limit_ends_the_exchange() -> None:
    play = Play(rig.plugin("limits: {body_buffer: 1KiB}"), request=BUFFERED)
    play.headers()
    play.passes()
    play.body(b"x", True)
    (reply,) = play.vm(effect(layout.REQUEST_BODY, b"x" * 2000, EOS))

    assert reply.immediate_response.status.code == 500
    assert play.findings["refused.too_large"] == 1
