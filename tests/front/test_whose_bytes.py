"""Which bytes of a body go on: who may not write them only says when, and nobody says more than it was told."""

from __future__ import annotations

import pytest

from sandboxd.channel import layout
from sandboxd.channel.completions import Effect
from sandboxd.channel.errors import ChannelBroken
from sandboxd.front.plugin import Plugin
from sandboxd.policy.failure import Cause
from tests.support import front_rig as rig
from tests.support.ext_proc_play import (
    AS_SUBMITTED,
    BUFFERED,
    DUPLEX,
    EOS,
    HELD,
    NO_BODY_CALLBACKS,
    NONE,
    PARTIAL,
    PAUSED,
    READS_HEADERS,
    STREAMED,
    Play,
    effect,
    streamed,
    which,
)

HEADERS = effect(layout.REQUEST_HEADERS)
TRAILERS = effect(layout.REQUEST_TRAILERS)


def body(data: bytes, flags: int = 0) -> Effect:
    return effect(layout.REQUEST_BODY, data, flags)


def no_write(more: str = "") -> Plugin:
    """A plugin that reads bodies and may not write them."""
    return rig.plugin(f"write: {{body: false}}\n{more}")


def begun(plugin: Plugin | None = None, mode: int = DUPLEX) -> Play:
    """An exchange whose request headers have gone on."""
    play = Play(plugin, request=mode)
    play.headers()
    play.passes()
    return play


# --- a plugin that may not write ---


def test_a_chunk_that_was_shortened_goes_on_whole() -> None:
    play = begun(no_write(), STREAMED)
    for data, said in ((b"abcdef", body(b"xy")), (b"gh", body(b"gh", AS_SUBMITTED)), (b"", body(b"", EOS))):
        play.body(data, not data)
        (reply,) = play.vm(said)
        assert not reply.request_body.HasField("response"), "as it came"

    assert play.findings == {"refused.denied_by_policy": 1}


@pytest.mark.parametrize("mode", [BUFFERED, PARTIAL])
def test_a_body_that_was_shortened_goes_on_whole_before_its_trailers(mode: int) -> None:
    play = begun(no_write(), mode)
    play.body(b"abcdef")
    assert not play.vm(body(b"xy"))[0].request_body.HasField("response")
    play.trailers(("a", "b"))

    assert which(play.passes()) == ["request_trailers"]


def test_chunks_that_were_held_go_on_whole_with_the_one_that_frees_them() -> None:
    play = begun(no_write(), STREAMED)
    play.body(b"one ")
    play.vm(state=PAUSED)
    play.body(b"two")
    (reply,) = play.vm(body(b"x"))

    assert reply.request_body.response.body_mutation.body == b"one two"


def test_a_chunk_that_went_late_goes_in_the_next_reply() -> None:
    """It is what came last when it goes, and is not any more when it can be sent."""
    play = begun(no_write(), STREAMED)
    play.body(b"one ")
    play.vm(state=PAUSED)
    play.exchange.late([body(b"one ")])
    play.body(b"two")
    (reply,) = play.vm(state=PAUSED)

    assert reply.request_body.response.body_mutation.body == b"one "


def test_a_chunk_that_the_vm_has_not_seen_is_not_among_those_that_go() -> None:
    play = begun(no_write(), STREAMED)
    play.body(b"one ")
    play.vm(state=PAUSED)
    play.body(b"two", True)
    play.exchange.late([body(b"x")])
    assert play.replies() == []
    (reply,) = play.vm(state=PAUSED)[:1] or [None]
    assert reply is None, "the last chunk is held"
    play.exchange.late([body(b"", EOS)])
    (answer,) = play.replies()

    assert answer.request_body.response.body_mutation.body == b"one two"


def test_failure_stays_open_after_a_chunk_was_shortened() -> None:
    play = begun(no_write("failure: {policy: open}"))
    play.body(b"abcdef")
    assert streamed(*play.vm(body(b"xy"))) == [(b"abcdef", False)]
    play.body(b"gh", True)

    assert streamed(*play.fails(Cause.TRAP)) == [(b"gh", True)]


def test_the_end_goes_with_the_bytes_that_it_ends() -> None:
    play = begun(no_write())
    play.body(b"abc", True)

    assert streamed(*play.vm(body(b"abc"))) == [(b"abc", True)]


@pytest.mark.parametrize("mode", [STREAMED, BUFFERED, PARTIAL, DUPLEX])
@pytest.mark.parametrize("functions", [rig.FUNCTIONS, READS_HEADERS])
def test_what_the_vm_does_not_speak_of_is_held(mode: int, functions: list[str]) -> None:
    """It says that it holds nothing, and lets nothing go."""
    play = begun(rig.plugin("write: {body: false}", functions=functions), mode)
    play.body(b"secret", True)
    assert play.vm(state=0) == []
    assert play.exchange.waiting
    play.exchange.late([body(b"", EOS)])
    (reply,) = play.replies()

    if mode == DUPLEX:
        assert streamed(reply) == [(b"secret", True)]
    else:
        assert not reply.request_body.HasField("response")


@pytest.mark.parametrize("mode", [STREAMED, DUPLEX])
def test_bytes_that_the_vm_does_not_speak_of_are_held_at_the_trailers(mode: int) -> None:
    play = begun(no_write(), mode)
    play.body(b"secret")
    play.vm(state=PAUSED)
    play.trailers(("t", "1"))

    assert play.vm(state=0) == []
    assert play.exchange.waiting


@pytest.mark.parametrize("mode", [STREAMED, DUPLEX])
def test_what_is_held_is_bounded(mode: int) -> None:
    play = begun(rig.plugin("write: {body: false}\nlimits: {body_buffer: 1KiB}"), mode)
    play.body(b"x" * 1000)
    assert "immediate_response" not in which(play.vm(state=PAUSED))
    play.body(b"x" * 1000)

    assert which(play.vm(state=0)) == ["immediate_response"]


def test_what_a_plugin_that_cannot_read_let_go_late_is_not_lost_at_the_trailers() -> None:
    """Envoy has its answer to the chunk already, so there is no message that could carry it."""
    play = begun(
        rig.plugin(
            functions=READS_HEADERS,
            callbacks={*NO_BODY_CALLBACKS, "proxy_on_request_body"} - {"proxy_on_request_trailers"},
        ),
        STREAMED,
    )
    play.body(b"abc")
    play.vm(state=PAUSED)
    play.exchange.late([body(bytes(3))])
    assert play.trailers(("t", "1")), "the VM is told"
    replies = play.vm(TRAILERS)

    assert which(replies) == ["immediate_response"]
    assert play.findings == {"ext_proc.cannot_carry.body_at_trailers": 1}


# --- bytes of no body ---


@pytest.mark.parametrize("plugin", [None, no_write(), rig.plugin(callbacks=NO_BODY_CALLBACKS)])
def test_a_body_before_there_is_one_breaks_the_channel(plugin: Plugin | None) -> None:
    play = Play(plugin, request=DUPLEX)
    play.headers()
    with pytest.raises(ChannelBroken, match="request body"):
        play.vm(HEADERS, body(b"EVIL"))
    assert play.replies() == []


def test_a_body_that_the_vm_was_not_told_of_breaks_the_channel() -> None:
    play = begun(rig.plugin(callbacks=NO_BODY_CALLBACKS))
    play.body(b"abc")
    with pytest.raises(ChannelBroken, match="request body"):
        play.exchange.late([body(b"EVIL")])


def test_a_body_with_the_answer_to_headers_that_were_made_up_breaks_the_channel() -> None:
    play = Play(no_write(), request=DUPLEX)
    asks = play.body(b"abc")
    with pytest.raises(ChannelBroken, match="request body"):
        play.exchange.answer(asks[0], [body(b"EVIL")], 0)


@pytest.mark.parametrize("mode", [NONE, STREAMED, BUFFERED, DUPLEX])
def test_late_bodies_without_end_break_the_channel(mode: int) -> None:
    play = begun(mode=mode)
    if mode != NONE:
        play.body(b"abc")
        play.passes()
    with pytest.raises(ChannelBroken, match="request body"):
        play.exchange.late([body(bytes(1 << 20))])
    assert play.exchange.replies == []


def test_a_body_goes_once() -> None:
    play = begun()
    play.body(b"abc")
    with pytest.raises(ChannelBroken, match="request body"):
        play.vm(body(b"abc"), body(b"more"))


def test_bodies_that_go_late_while_a_chunk_is_with_the_vm_go_once() -> None:
    play = begun()
    play.body(b"abc")
    play.vm(state=PAUSED)
    play.body(b"def")
    play.exchange.late([body(b"abc")])
    with pytest.raises(ChannelBroken, match="request body"):
        play.exchange.late([body(b"abc")])


def test_a_body_without_bytes_behind_one_that_went_is_nothing() -> None:
    play = begun()
    play.body(b"abc")
    play.vm(state=PAUSED)
    play.body(b"def", True)

    assert streamed(*play.vm(body(b"abcdef", EOS), body(b"", EOS))) == [(b"abcdef", True)]


# --- ends ---


@pytest.mark.parametrize("plugin", [None, no_write()])
def test_an_end_before_the_end_breaks_the_channel(plugin: Plugin | None) -> None:
    play = begun(plugin)
    play.body(b"abc")
    with pytest.raises(ChannelBroken, match="end of the request body"):
        play.vm(body(b"a", EOS))


def test_an_end_before_the_vm_was_told_of_it_breaks_the_channel() -> None:
    play = begun()
    play.body(b"abc")
    play.vm(state=PAUSED)
    play.body(b"def", True)
    with pytest.raises(ChannelBroken, match="end of the request body"):
        play.exchange.late([body(b"abc", EOS)])


def test_trailers_before_the_end_break_the_channel() -> None:
    play = begun()
    play.body(b"abc")
    with pytest.raises(ChannelBroken, match="request trailers"):
        play.vm(body(b"abc", AS_SUBMITTED), TRAILERS)


def test_trailers_before_the_vm_was_told_of_them_break_the_channel() -> None:
    play = begun()
    play.body(b"abc")
    play.vm(state=PAUSED)
    play.trailers(("t", "1"))
    with pytest.raises(ChannelBroken, match="request trailers"):
        play.exchange.late([body(b"abc"), TRAILERS])


def test_headers_held_for_the_body_and_let_go_with_it() -> None:
    play = Play(no_write(), request=DUPLEX)
    play.headers()
    play.vm(state=HELD)
    play.body(b"abc", True)

    assert which(play.vm(HEADERS, body(b"abc", EOS))) == ["request_headers", "request_body"]
