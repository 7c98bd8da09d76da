"""
Effects of a kind that the plugin has no function for: no honest worker names them, and nothing comes of those of one
that was taken over. Each beside its twin: the same effect of a plugin that has the function happens.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb

from sandboxd.channel import layout, pairs
from sandboxd.channel.completions import Effect, LocalResponse, encode_local_response
from sandboxd.front.plugin import Plugin
from sandboxd.policy.capability_names import CALLBACKS, HOST_FUNCTIONS
from tests.support import front_rig as rig
from tests.support.ext_proc_play import AS_SUBMITTED, BUFFERED, EOS, STREAMED, Play, changed, effect, local, sets

Made = Callable[..., Plugin]
READS = ("proxy_get_header_map_pairs", "proxy_get_buffer_bytes")
ADDED = changed(layout.REQUEST_HEADERS, *rig.REQUEST, ("x-user", "admin"))
PROPERTY = effect(layout.PROPERTY_SET, pairs.encode([(b"a\0b", b"v")]))


def has(*functions: str) -> Plugin:
    """A plugin that imports these, and is granted all."""
    return rig.plugin(functions=(*READS, *functions))


def granted(*functions: str) -> Plugin:
    """A plugin that is granted these, and imports all."""
    names = ", ".join([*sorted(CALLBACKS), *READS, *functions])
    return rig.plugin(capabilities=f"{{allow: [{names}]}}", functions=HOST_FUNCTIONS)


def body(data: bytes, flags: int = EOS) -> Effect:
    return effect(layout.REQUEST_BODY, data, flags)


@pytest.mark.parametrize("plugin", [has, granted])
class TestEach:
    """A function is missing whether the module does not import it or the policy does not grant it."""

    def test_headers(self, plugin: Made) -> None:
        forged, twin = Play(plugin("proxy_send_local_response")), Play(plugin("proxy_add_header_map_value"))
        for play in (forged, twin):
            play.headers()

        assert forged.vm(ADDED) == [pb.ProcessingResponse(request_headers={})]
        assert forged.findings == {"refused.denied_by_policy": 1}
        (reply,) = twin.vm(ADDED)
        assert sets(reply.request_headers.response.header_mutation) == [("x-user", b"admin", 0)]
        assert not twin.findings

    def test_removed_headers(self, plugin: Made) -> None:
        forged, twin = Play(plugin()), Play(plugin("proxy_remove_header_map_value"))
        for play in (forged, twin):
            play.headers([*rig.REQUEST, ("x-old", "mine")])
        less = changed(layout.REQUEST_HEADERS, *rig.REQUEST)

        assert forged.vm(less) == [pb.ProcessingResponse(request_headers={})]
        (reply,) = twin.vm(less)
        assert list(reply.request_headers.response.header_mutation.remove_headers) == ["x-old"]

    def test_local_response(self, plugin: Made) -> None:
        forged, twin = Play(plugin("proxy_add_header_map_value")), Play(plugin("proxy_send_local_response"))
        for play in (forged, twin):
            play.headers()
        answer = local(403, headers=pairs.encode([(b"x-why", b"because")]))

        (reply,) = forged.vm(answer)
        immediate = reply.immediate_response
        assert (immediate.status.code, immediate.details) == (500, "sandboxd_local_response_denied")
        assert not immediate.body
        (reply,) = twin.vm(answer)
        immediate = reply.immediate_response
        assert (immediate.status.code, immediate.details, immediate.body) == (403, "denied", b"no")
        assert sets(immediate.headers) == [("x-why", b"because", 0)], "they are not a change of a header map"

    @pytest.mark.parametrize("function", ["proxy_set_property", "proxy_call_foreign_function"])
    def test_properties(self, plugin: Made, function: str) -> None:
        forged, twin = Play(plugin()), Play(plugin(function))
        for play in (forged, twin):
            play.headers()
        passes = effect(layout.REQUEST_HEADERS)

        (reply,) = forged.vm(PROPERTY, passes)
        assert not reply.HasField("dynamic_metadata")
        assert forged.findings == {"refused.denied_by_policy": 1}
        (reply,) = twin.vm(PROPERTY, passes)
        assert reply.HasField("dynamic_metadata")

    def test_bodies(self, plugin: Made) -> None:
        forged, twin = Play(plugin(), BUFFERED), Play(plugin("proxy_set_buffer_bytes"), BUFFERED)
        for play in (forged, twin):
            play.headers()
            play.passes()
            play.body(b"true", True)

        (reply,) = forged.vm(body(b"forged"))
        assert reply == pb.ProcessingResponse(request_body={}), "as it came"
        assert forged.findings == {"refused.denied_by_policy": 1}
        (reply,) = twin.vm(body(b"forged"))
        assert reply.request_body.response.body_mutation.body == b"forged"


def test_a_body_that_only_is_read_goes_as_it_came() -> None:
    play = Play(has(), STREAMED)
    play.headers()
    play.passes()
    for end in (False, True):
        play.body(b"piece", end)
        assert play.vm(body(b"piece", AS_SUBMITTED | EOS * end)) == [pb.ProcessingResponse(request_body={})]
    assert not play.findings


@pytest.mark.parametrize(
    ("status", "details", "text"),
    [
        (413, b"request_payload_too_large", b"Payload Too Large"),
        (500, b"response_payload_too_large", b"Internal Server Error"),
    ],
)
def test_the_answer_to_a_body_over_its_limit_is_not_the_plugins(status: int, details: bytes, text: bytes) -> None:
    """It may be sent, and nothing else in its guise."""

    def sent(status: int, text: bytes, headers: list[tuple[bytes, bytes]]) -> tuple[Play, pb.ImmediateResponse]:
        play = Play(has())
        play.headers()
        made = LocalResponse(status, -1, False, details, headers, text)
        payload = encode_local_response(made, pairs.encode(headers))
        (reply,) = play.vm(effect(layout.LOCAL_RESPONSE, payload))
        return play, reply.immediate_response

    generated = [(b"content-length", b"%d" % len(text)), (b"content-type", b"text/plain")]
    honest, answer = sent(status, text, generated)
    assert (answer.status.code, answer.details.encode(), answer.body) == (status, details, text)
    assert sets(answer.headers) == [("content-type", b"text/plain", 0)]
    assert not honest.findings

    forged, same = sent(302, b"over here", [*generated, (b"location", b"http://evil.example")])
    assert same == answer
    assert forged.findings == {"refused.denied_by_policy": 1}
