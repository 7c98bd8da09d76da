"""What the proxy says beside the message: attributes, body modes, and what breaks the protocol."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb

from sandboxd.channel import pairs
from sandboxd.errors import PeerError
from tests.support import front_rig as rig
from tests.support.ext_proc_play import (
    STOPPED,
    STREAMED,
    Play,
)

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
