"""What a plugin does beside changing the message: local responses, metadata, the route, the body mode."""

from __future__ import annotations

import pytest
from google.protobuf.json_format import MessageToDict

from sandboxd.channel import layout, pairs
from tests.support import front_rig as rig
from tests.support.ext_proc_play import (
    AS_SUBMITTED,
    BUFFERED,
    DUPLEX,
    EOS,
    HELD,
    NO_BODY_CALLBACKS,
    NONE,
    READS_HEADERS,
    STOPPED,
    STREAMED,
    Play,
    changed,
    effect,
    local,
    sets,
)


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
