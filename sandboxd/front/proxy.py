"""What a ``ProcessingRequest`` says, in our own words: body modes, properties, header maps. Pure."""

from __future__ import annotations

from typing import Any, NamedTuple

from envoy.service.ext_proc.v3 import external_processor_pb2 as pb

from sandboxd.channel import pairs
from sandboxd.channel.pairs import Pair
from sandboxd.errors import PeerError
from sandboxd.exchange.side import HeldMap
from sandboxd.front import attributes
from sandboxd.front.side import Report
from sandboxd.policy.model import Section
from sandboxd.policy.redact import Redactor

_GRPC_MODE = 5


class BodyModes(NamedTuple):
    """``protocol_config``; the modes are those of `side`."""

    request: int
    response: int
    early_body: bool
    """The body may come before the headers are answered."""


def body_modes(message: pb.ProcessingRequest) -> BodyModes | None:
    """
    Return how bodies will come; None: the proxy does not say.

    Raises:
        PeerError: a mode that is not supported.
    """
    if not message.HasField("protocol_config"):
        return None
    config = message.protocol_config
    modes = BodyModes(
        config.request_body_mode, config.response_body_mode, config.send_body_without_waiting_for_header_response
    )
    for word, mode in (("request", modes.request), ("response", modes.response)):
        if not 0 <= mode < _GRPC_MODE:
            raise PeerError(
                f"{word} body mode {mode} is not supported "
                "(allowed: NONE, STREAMED, BUFFERED, BUFFERED_PARTIAL, FULL_DUPLEX_STREAMED)"
            )
    return modes


def properties(message: pb.ProcessingRequest, redactor: Redactor, report: Report) -> bytes:
    """Return the attributes that the plugin may see, as encoded properties."""
    unknown: list[str] = []
    found: list[Pair] = []
    for struct in message.attributes.values():
        found += attributes.properties(struct.fields, redactor, unknown)
    for name in unknown:
        report("ext_proc.unknown_attribute", name)
    return pairs.encode(found)


def held(header_map: Any, section: Section, redactor: Redactor, needed: bool) -> HeldMap:
    """Return a header map and the plugin's view of it; of one that it does not need it sees nothing."""
    # Envoy fills raw_value; value is there for other clients of the protocol.
    original = [(h.key.encode(), h.raw_value or h.value.encode()) for h in header_map.headers]
    return HeldMap(original, redactor.view(original, section) if needed else [], section)
