"""ext_proc's header maps and trailers: what the VM sees of them, and which changes go back."""

from __future__ import annotations

import pytest
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb

from sandboxd.channel import layout, pairs
from sandboxd.channel.errors import ChannelBroken
from sandboxd.exchange.side import Ask
from tests.support import front_rig as rig
from tests.support.ext_proc_play import (
    BUFFERED,
    PAUSED,
    STREAMED,
    Play,
    changed,
    effect,
    sets,
    which,
)

# --- headers ---


def test_headers_become_pairs_without_what_is_hidden() -> None:
    play = Play()
    (ask,) = play.headers([*rig.REQUEST, ("cookie", "secret"), ("x-bin", "v")], eos=True)

    assert ask.kind == layout.REQUEST_HEADERS
    assert ask.end_of_stream
    assert pairs.decode(ask.payload) == [(k.encode(), v.encode()) for k, v in [*rig.REQUEST, ("x-bin", "v")]]


def test_unchanged_headers_are_answered_by_next_to_nothing() -> None:
    play = Play()
    play.headers()

    assert play.passes() == [pb.ProcessingResponse(request_headers={})]


def test_header_changes_say_only_what_differs() -> None:
    play = Play()
    play.headers([*rig.REQUEST, ("cookie", "secret"), ("a", "1"), ("b", "2"), ("c", "3")])
    (reply,) = play.vm(
        changed(
            layout.REQUEST_HEADERS, *rig.REQUEST, ("a", "1"), ("a", "more"), ("b", "new"), ("b", "newer"), ("d", "4")
        )
    )
    mutation = reply.request_headers.response.header_mutation

    assert list(mutation.remove_headers) == ["c"]
    assert sets(mutation) == [("b", b"new", 2), ("b", b"newer", 0), ("a", b"more", 0), ("d", b"4", 0)]
    assert [o.append.value for o in mutation.set_headers] == [False, True, True, True]
    assert all(o.HasField("append") for o in mutation.set_headers)


def test_refused_and_ignored_writes_are_named() -> None:
    play = Play(rig.plugin('write: {deny_headers: ["x-tenant-*"]}'))
    play.headers()
    (reply,) = play.vm(
        changed(
            layout.REQUEST_HEADERS,
            *[(k, "POST" if k == ":method" else v) for k, v in rig.REQUEST],
            ("x-tenant-id", "me"),
            ("bad\n", "x"),
            ("x-envoy-foo", "y"),
        )
    )

    assert {o.header.key for o in reply.request_headers.response.header_mutation.set_headers} == {
        ":method",
        "x-envoy-foo",
    }
    assert play.findings == {
        "refused.denied_by_policy": 1,
        "refused.illegal_name": 1,
        "ext_proc.ignored_write": 2,
    }


def test_a_malformed_map_is_the_workers_lie() -> None:
    play = Play()
    play.headers()
    with pytest.raises(ChannelBroken):
        play.vm(effect(layout.REQUEST_HEADERS, b"\1", layout.FLAG_MODIFIED))


def test_response_headers() -> None:
    play = Play()
    play.headers()
    play.passes()
    (ask,) = play.response_headers([*rig.RESPONSE, ("set-cookie", "s")])
    assert b"set-cookie" not in ask.payload
    (reply,) = play.vm(changed(layout.RESPONSE_HEADERS, *rig.RESPONSE, ("x-wasm", "yes")))

    assert sets(reply.response_headers.response.header_mutation) == [("x-wasm", b"yes", 0)]


def test_unread_headers_are_not_sent_but_told() -> None:
    play = Play(rig.plugin(functions=["proxy_log"]))
    (ask,) = play.headers()

    assert ask == Ask(layout.REQUEST_HEADERS, b"", False)


# --- headers that are not sent ---


def test_body_without_headers_tells_the_vm_of_empty_ones() -> None:
    play = Play(request=BUFFERED)
    asks = play.body(b"x", True)
    assert asks == [Ask(layout.REQUEST_HEADERS, b"", False), Ask(layout.REQUEST_BODY, b"x", True)]
    play.exchange.answer(asks[0], [changed(layout.REQUEST_HEADERS, ("a", "1"))], 0)
    assert play.replies() == []
    assert which(play.passes()) == ["request_body"]
    assert play.findings == {"ext_proc.cannot_carry.request_headers_not_sent": 2}


# --- trailers ---


def test_trailers() -> None:
    play = Play(request=STREAMED)
    play.headers()
    play.passes()
    play.trailers(("t", "1"))
    (reply,) = play.vm(changed(layout.REQUEST_TRAILERS))
    assert list(reply.request_trailers.header_mutation.remove_headers) == ["t"]


def test_trailers_held() -> None:
    play = Play(request=STREAMED)
    play.headers()
    play.passes()
    play.trailers(("t", "1"))

    assert play.vm(state=PAUSED) == []
    assert play.exchange.waiting
    play.exchange.late([effect(layout.REQUEST_TRAILERS)])
    assert which(play.replies()) == ["request_trailers"]
