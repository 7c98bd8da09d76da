"""What an exchange needs once is taken once: the rest is dropped unread, however much of it a VM sends."""

from __future__ import annotations

import pytest

from sandboxd.channel import layout, pairs
from sandboxd.channel.completions import Effect
from sandboxd.channel.errors import ChannelBroken
from tests.support import front_rig as rig
from tests.support.ext_proc_play import DUPLEX, STREAMED, Play, changed, effect, local, sets, which

SENT_ON = changed(layout.REQUEST_HEADERS, *rig.REQUEST, ("x", "1"))


def unreadable(kind: int) -> Effect:
    """Breaks the channel if it is looked at."""
    return effect(kind, b"\1", layout.FLAG_MODIFIED if kind in layout.MAP_KINDS else 0)


@pytest.mark.parametrize("kind", [layout.REQUEST_HEADERS, layout.LOCAL_RESPONSE, layout.PROPERTY_SET])
def test_the_unreadable_breaks_the_channel(kind: int) -> None:
    play = Play()
    play.headers()
    with pytest.raises(ChannelBroken):
        play.vm(unreadable(kind))


def test_headers_go_once() -> None:
    play = Play()
    play.headers()
    (reply,) = play.vm(SENT_ON, unreadable(layout.REQUEST_HEADERS))

    assert sets(reply.request_headers.response.header_mutation) == [("x", b"1", 0)]
    play.exchange.late([unreadable(layout.REQUEST_HEADERS)])
    assert play.replies() == []


def test_trailers_go_once() -> None:
    play = Play(request=STREAMED)
    play.headers()
    play.passes()
    play.trailers(("t", "1"))
    (reply,) = play.vm(changed(layout.REQUEST_TRAILERS, ("t", "1"), ("u", "2")), unreadable(layout.REQUEST_TRAILERS))

    assert sets(reply.request_trailers.header_mutation) == [("u", b"2", 0)]


def test_trailers_are_added_once() -> None:
    play = Play(request=DUPLEX)
    play.headers()
    play.passes()
    play.body(b"x", True)
    replies = play.vm(
        effect(layout.REQUEST_BODY, b"x"),
        *[changed(layout.REQUEST_TRAILERS, ("added", "1"))] * 3,
    )

    assert which(replies) == ["request_body"]
    assert play.findings == {"ext_proc.cannot_carry.added_request_trailers": 1}


def test_headers_that_have_not_come_do_not_go() -> None:
    play = Play()
    play.headers()
    with pytest.raises(ChannelBroken, match="response headers"):
        play.vm(SENT_ON, changed(layout.RESPONSE_HEADERS, ("x", "1")))


@pytest.mark.parametrize("kind", [layout.LOCAL_RESPONSE, layout.REQUEST_HEADERS, layout.RESPONSE_BODY])
def test_nothing_is_looked_at_behind_a_local_response(kind: int) -> None:
    play = Play()
    play.headers()
    (reply,) = play.vm(local(418), *[unreadable(kind)] * 3)

    assert reply.immediate_response.status.code == 418


def test_one_local_response_is_looked_at_when_nobody_reads_it() -> None:
    play = Play(rig.plugin("write: {local_response: false}"))
    play.headers(observability_mode=True)
    play.vm(local(), unreadable(layout.LOCAL_RESPONSE), effect(layout.REQUEST_HEADERS))

    assert play.findings["refused.denied_by_policy"] == 1


def test_a_property_that_is_set_with_a_local_response_is_counted() -> None:
    """hostcore names them at the end of an event."""
    play = Play()
    play.headers()
    play.vm(local(), effect(layout.PROPERTY_SET, pairs.encode([(b"k", b"v")])))
    play.exchange.end()

    assert play.findings == {"ext_proc.cannot_carry.property_after_last_reply": 1}


def test_properties_are_set_so_many_times_between_two_replies() -> None:
    play = Play()
    play.headers()
    one = effect(layout.PROPERTY_SET, pairs.encode([(b"k", b"v")]))
    (reply,) = play.vm(*[one] * 64, *[unreadable(layout.PROPERTY_SET)] * 9, SENT_ON)

    assert reply.HasField("dynamic_metadata")
    assert play.findings == {"refused.too_many": 9}
    play.response_headers()
    assert play.vm(one, effect(layout.RESPONSE_HEADERS))[0].HasField("dynamic_metadata")
