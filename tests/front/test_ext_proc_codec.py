"""ext_proc in, channel events out, and back: every body mode, pauses, and what cannot be carried."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb
from google.protobuf.json_format import MessageToDict

from sandboxd.channel import layout, pairs
from sandboxd.channel.completions import Effect
from sandboxd.channel.errors import ChannelBroken
from sandboxd.errors import PeerError
from sandboxd.exchange.side import Ask
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
    STOPPED,
    STREAMED,
    Play,
    changed,
    effect,
    local,
    sets,
    streamed,
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


# --- local responses, metadata, route cache ---


def test_local_response() -> None:
    play = Play()
    play.headers(eos=True)
    (reply,) = play.vm(local(418, headers=pairs.encode([(b"x-why", b"tea")]), grpc=7, body=b"short\n"))
    immediate = reply.immediate_response

    assert (immediate.status.code, immediate.body, immediate.details) == (418, b"short\n", "denied")
    assert immediate.grpc_status.status == 7
    assert sets(immediate.headers) == [("x-why", b"tea", 0)]
    assert play.exchange.finished


def test_local_response_without_grpc_status_sets_none() -> None:
    play = Play()
    play.headers(eos=True)
    (reply,) = play.vm(local())

    assert not reply.immediate_response.HasField("grpc_status")


def test_a_forbidden_local_response_still_stops_the_request() -> None:
    play = Play(rig.plugin("write: {local_response: false}"))
    play.headers(eos=True)
    (reply,) = play.vm(local(200))

    assert reply.immediate_response.status.code == 500
    assert play.findings["refused.denied_by_policy"] == 1


def test_close_stream_is_answered_since_ext_proc_cannot_reset() -> None:
    play = Play()
    play.headers()
    (reply,) = play.vm(effect(layout.CLOSE_STREAM))

    assert reply.immediate_response.details == "wasm_close_stream"
    assert play.findings["ext_proc.cannot_carry.close_stream"] == 1


def test_properties_become_dynamic_metadata() -> None:
    play = Play()
    play.headers()
    text = effect(layout.PROPERTY_SET, pairs.encode([(b"my\0key", b"value")]))
    binary = effect(layout.PROPERTY_SET, pairs.encode([(b"bin", b"\xff\x00")]))
    (reply,) = play.vm(text, binary, effect(layout.REQUEST_HEADERS))

    assert reply.WhichOneof("response") == "request_headers"
    assert MessageToDict(reply.dynamic_metadata) == {
        "sandboxd.acme.filter": {"my.key": "value", "bin": {"base64": "/wA="}}
    }


def test_properties_after_the_last_reply_are_named() -> None:
    play = Play(request=DUPLEX)
    play.headers()
    play.vm(effect(layout.PROPERTY_SET, pairs.encode([(b"k", b"v")])), state=STOPPED)
    play.exchange.end()

    assert play.findings["ext_proc.cannot_carry.property_after_last_reply"] == 1


def test_route_cache_is_cleared_with_a_present_mutation() -> None:
    play = Play()
    play.headers()
    (reply,) = play.vm(effect(layout.CLEAR_ROUTE_CACHE), effect(layout.REQUEST_HEADERS))
    response = reply.request_headers.response

    assert response.clear_route_cache
    assert response.HasField("header_mutation"), "Envoy ignores it otherwise"


@pytest.mark.parametrize("mode", [NONE, STREAMED, BUFFERED, DUPLEX])
def test_changed_request_headers_choose_the_route_anew(mode: int) -> None:
    play = Play(request=mode, response=mode)
    play.headers()
    (reply,) = play.vm(changed(layout.REQUEST_HEADERS, *rig.REQUEST, ("x", "1")))
    assert reply.request_headers.response.clear_route_cache
    play.response_headers()
    (reply,) = play.vm(changed(layout.RESPONSE_HEADERS, *rig.RESPONSE, ("x", "1")))

    assert not reply.response_headers.response.clear_route_cache, "the route is history"


def test_headers_that_stay_keep_their_route() -> None:
    play = Play(rig.plugin("write: {deny_headers: [x]}"))
    play.headers()
    (reply,) = play.vm(changed(layout.REQUEST_HEADERS, *rig.REQUEST, ("x", "refused")))

    assert not reply.request_headers.response.clear_route_cache


def test_request_headers_changed_with_the_body_choose_the_route_anew() -> None:
    play = Play(request=BUFFERED)
    play.headers()
    play.vm(state=HELD)
    play.body(b"hello", True)
    body = effect(layout.REQUEST_BODY, b"hello", AS_SUBMITTED | EOS)
    (reply,) = play.vm(changed(layout.REQUEST_HEADERS, *rig.REQUEST, ("x", "1")), body)

    assert reply.request_body.response.clear_route_cache


def test_a_changed_body_keeps_the_route() -> None:
    play = Play(request=BUFFERED)
    play.headers([*rig.REQUEST, ("content-length", "5")])
    play.passes()
    play.body(b"hello", True)
    (reply,) = play.vm(effect(layout.REQUEST_BODY, b"HELLO!", EOS))

    assert sets(reply.request_body.response.header_mutation) == [("content-length", b"6", 2)]
    assert not reply.request_body.response.clear_route_cache


def test_route_cache_after_the_headers_left_is_named() -> None:
    play = Play()
    play.headers()
    play.passes()
    play.response_headers()
    play.vm(effect(layout.CLEAR_ROUTE_CACHE), effect(layout.RESPONSE_HEADERS))

    assert play.findings == {"ext_proc.cannot_carry.clear_route_cache": 1}


def test_mode_override_spares_unread_bodies() -> None:
    play = Play(rig.plugin(callbacks=NO_BODY_CALLBACKS), BUFFERED, STREAMED, allow_mode_override=True)
    play.headers()
    (reply,) = play.passes()

    assert reply.HasField("mode_override")
    assert (reply.mode_override.request_body_mode, reply.mode_override.response_body_mode) == (NONE, NONE)
    play.response_headers()
    assert not play.passes()[0].HasField("mode_override")


def test_mode_override_keeps_the_mode_of_bodies_that_are_read() -> None:
    play = Play(
        rig.plugin(callbacks=["proxy_on_context_create", "proxy_on_request_headers", "proxy_on_response_body"]),
        BUFFERED,
        STREAMED,
        allow_mode_override=True,
    )
    play.headers()
    (reply,) = play.passes()

    assert (reply.mode_override.request_body_mode, reply.mode_override.response_body_mode) == (NONE, STREAMED)


@pytest.mark.parametrize("functions", [rig.FUNCTIONS, READS_HEADERS])
@pytest.mark.parametrize("options", [{}, {"allow_mode_override": True}])
def test_no_mode_override_unless_allowed_and_of_use(options: dict[str, bool], functions: list[str]) -> None:
    play = Play(rig.plugin(functions=functions), BUFFERED, BUFFERED, **options)
    play.headers()

    assert not play.passes()[0].HasField("mode_override")


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


# --- FULL_DUPLEX_STREAMED ---


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


# --- bodies that are not read ---


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


# --- attributes ---


def attribute_struct(**values: Any) -> dict[str, Any]:
    from google.protobuf.struct_pb2 import Struct

    struct_value = Struct()
    struct_value.update({key.replace("__", "."): value for key, value in values.items()})
    return {"envoy.filters.http.ext_proc": struct_value}


def test_attributes_take_envoys_encodings() -> None:
    play = Play()
    play.headers(
        attributes=attribute_struct(
            request__path="/a",
            destination__port=8080,
            source__address="10.0.0.1:4711",
            connection__mtls=True,
            request__time="2023-11-14T22:13:20.5Z",
            xds__route_metadata={"filter_metadata": {"my.ns": {"k": "v", "n": 1.5}}},
        )
    )
    properties = dict(pairs.decode(play.exchange.attributes))

    assert properties == {
        b"request\0path": b"/a",
        b"destination\0port": struct.pack("<q", 8080),
        b"connection\0mtls": b"\1",
        b"request\0time": struct.pack("<q", 1_700_000_000_500_000_000),
        b"xds\0route_metadata\0filter_metadata\0my.ns\0k": b"v",
        b"xds\0route_metadata\0filter_metadata\0my.ns\0n": struct.pack("<d", 1.5),
    }


def test_attributes_of_hidden_headers_are_hidden_too() -> None:
    play = Play()
    play.headers(attributes=attribute_struct(request__headers={"cookie": "secret", "a": "1"}))

    assert dict(pairs.decode(play.exchange.attributes)) == {b"request\0headers": pairs.encode([(b"a", b"1")])}


def test_no_attributes_for_a_plugin_that_cannot_ask() -> None:
    play = Play(rig.plugin(functions=["proxy_log"]))
    play.headers(attributes=attribute_struct(request__path="/a"))

    assert play.exchange.attributes == b""


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


# --- a proxy that breaks the protocol ---


def test_out_of_order() -> None:
    play = Play(request=STREAMED)
    play.headers()
    play.passes()
    with pytest.raises(PeerError, match="request headers after"):
        play.headers()

    play = Play(request=STREAMED)
    play.headers(eos=True)
    play.passes()
    with pytest.raises(PeerError, match="after the end"):
        play.body(b"x")

    play = Play(request=STREAMED)
    play.headers()
    play.vm(state=STOPPED)
    with pytest.raises(PeerError, match="before it was answered"):
        play.body(b"x")

    play = Play()
    with pytest.raises(PeerError, match="without a request"):
        play.say(pb.ProcessingRequest())

    play = Play(request=5)
    with pytest.raises(PeerError, match="body mode 5 is not supported"):
        play.headers()


def test_unknown_modes_are_counted() -> None:
    play = Play()
    play.exchange.receive(rig.request_headers())

    assert play.findings == {"ext_proc.no_protocol_config": 1}
