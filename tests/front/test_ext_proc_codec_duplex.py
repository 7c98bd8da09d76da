"""FULL_DUPLEX_STREAMED bodies over ext_proc: input and output are two independent streams."""

from __future__ import annotations

from sandboxd.channel import layout
from tests.support import front_rig as rig
from tests.support.ext_proc_play import (
    AS_SUBMITTED,
    DUPLEX,
    EOS,
    HELD,
    NO_BODY_CALLBACKS,
    PAUSED,
    STOPPED,
    Play,
    changed,
    effect,
    sets,
    streamed,
    which,
)


def test_duplex_holds_everything_until_the_end() -> None:
    play = Play(request=DUPLEX)
    play.headers()
    assert play.vm(state=HELD) == []
    play.body(b"one ")
    assert play.vm(state=HELD) == []
    assert not play.exchange.waiting, "more input comes"
    play.body(b"two", True)
    replies = play.vm(
        changed(layout.REQUEST_HEADERS, *rig.REQUEST, ("x-len", "7")), effect(layout.REQUEST_BODY, b"ONE TWO", EOS)
    )

    assert which(replies) == ["request_headers", "request_body"]
    assert sets(replies[0].request_headers.response.header_mutation) == [("x-len", b"7", 0)]
    assert streamed(replies[1]) == [(b"ONE TWO", True)]
    assert not play.findings


def test_duplex_chunks_pass_one_by_one() -> None:
    play = Play(request=DUPLEX)
    play.headers()
    play.passes()
    play.body(b"one")
    assert streamed(*play.passes()) == [(b"one", False)]
    play.body(b"", True)
    assert streamed(*play.passes()) == [(b"", True)]


def test_duplex_large_bodies_are_cut() -> None:
    play = Play(request=DUPLEX)
    play.headers()
    play.passes()
    play.body(b"x" * 150_000, True)
    pieces = streamed(*play.passes())

    assert [len(body) for body, _ in pieces] == [65536, 65536, 18928]
    assert [end for _, end in pieces] == [False, False, True]


def test_duplex_trailers_come_last() -> None:
    play = Play(request=DUPLEX)
    play.headers()
    play.passes()
    play.body(b"x")
    play.vm(state=PAUSED)
    play.trailers(("t", "1"))
    replies = play.vm(effect(layout.REQUEST_BODY, b"X"), changed(layout.REQUEST_TRAILERS, ("t", "1"), ("u", "2")))

    assert which(replies) == ["request_body", "request_trailers"]
    assert streamed(replies[0]) == [(b"X", False)]
    assert sets(replies[1].request_trailers.header_mutation) == [("u", b"2", 0)]


def test_duplex_trailers_that_were_added_are_named_and_the_body_ends() -> None:
    play = Play(request=DUPLEX)
    play.headers()
    play.passes()
    play.body(b"x", True)
    replies = play.vm(effect(layout.REQUEST_BODY, b"x", AS_SUBMITTED), changed(layout.REQUEST_TRAILERS, ("added", "1")))

    assert streamed(*replies) == [(b"x", True)]
    assert play.findings == {"ext_proc.cannot_carry.added_request_trailers": 1}


def test_duplex_unread_bodies_are_echoed_behind_their_headers() -> None:
    play = Play(rig.plugin(callbacks=NO_BODY_CALLBACKS), request=DUPLEX)
    play.headers()
    play.vm(state=STOPPED)
    assert play.body(b"one") == []
    assert play.body(b"two", True) == []
    assert play.replies() == []
    play.exchange.late([effect(layout.REQUEST_HEADERS)])
    replies = play.replies()

    assert which(replies) == ["request_headers", "request_body", "request_body"]
    assert streamed(*replies[1:]) == [(b"one", False), (b"two", True)]


def test_duplex_unread_bodies_behind_held_headers_are_bounded() -> None:
    play = Play(rig.plugin("limits: {body_buffer: 1KiB}", callbacks=NO_BODY_CALLBACKS), request=DUPLEX)
    play.headers()
    play.vm(state=STOPPED)
    play.body(b"x" * 1000)
    play.body(b"x" * 1000)

    assert which(play.replies()) == ["immediate_response"]


def test_duplex_headers_that_are_neither_let_go_nor_held_have_the_time_of_a_pause() -> None:
    """No honest VM says so; its stream would wait for ever. As in the next two."""
    play = Play(request=DUPLEX)
    play.headers(eos=True)
    play.vm()
    assert play.exchange.waiting


def test_duplex_an_end_that_does_not_come_has_the_time_of_a_pause() -> None:
    play = Play(request=DUPLEX)
    play.headers()
    play.passes()
    play.body(b"x", True)
    play.vm(effect(layout.REQUEST_BODY, b"x"))
    assert play.exchange.waiting


def test_duplex_trailers_that_are_neither_let_go_nor_held_have_the_time_of_a_pause() -> None:
    play = Play(request=DUPLEX)
    play.headers()
    play.passes()
    play.body(b"x")
    play.passes()
    assert not play.exchange.waiting, "more may come"
    play.trailers(("t", "1"))
    play.vm()
    assert play.exchange.waiting
