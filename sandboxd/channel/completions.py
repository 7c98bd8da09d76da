"""What a client gets out of a channel, and the checks of a single effect. Pure."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import NamedTuple

from sandboxd import limits
from sandboxd.channel import layout
from sandboxd.channel.errors import ChannelBroken, PairsError
from sandboxd.channel.pairs import Pair, decode


class Effect(NamedTuple):
    """One completion other than a verdict, its fragments joined. ``AS_SUBMITTED`` is already resolved."""

    kind: int
    flags: int
    stream_id: int
    event_seq: int
    arg: int
    payload: bytes


class Verdict(NamedTuple):
    """What came of one event."""

    stream_id: int
    event_seq: int
    code: int
    state: int
    effects: list[Effect]
    """Kinds 2 to 11, 17 and 18 in the order in which they arose. May name other streams than the event's own."""
    notices: list[Effect]
    """LOG, DENIED, LOGS_DROPPED and NOTE of this event."""


def split(verdict: Verdict) -> tuple[Verdict, list[Effect]]:
    """Return the verdict with effects on its own stream alone, and those on others, each in their order."""
    own = verdict.stream_id
    for effect in verdict.effects:
        if effect.stream_id != own:
            break
    else:
        return verdict, []
    others = [effect for effect in verdict.effects if effect.stream_id != own]
    return verdict._replace(effects=[effect for effect in verdict.effects if effect.stream_id == own]), others


class VmRestarted(NamedTuple):
    """A new VM serves the channel: all streams of the one before are lost."""

    generation: int
    lost: list[tuple[int, int]]
    """(event_seq, stream_id) of each event that was outstanding and now never gets its verdict."""


Completion = Verdict | Effect | VmRestarted
"""
A bare `Effect` arose outside any event: a notice (start of the VM), or an effect on the stream that it names (a tick,
an answer to a callout).
"""


class LocalResponse(NamedTuple):
    """The payload of LOCAL_RESPONSE."""

    status: int
    grpc_status: int
    """-1: none."""
    already_begun: bool
    """The response had begun when the filter sent this one."""
    details: bytes
    headers: list[Pair]
    body: bytes


_LOCAL_RESPONSE = struct.Struct("<IiIIII")


def parse_local_response(payload: bytes) -> LocalResponse:
    """
    Read the payload of a LOCAL_RESPONSE.

    Raises:
        ChannelBroken: it is none. Whether the values make a legal response is the write rules' business.
    """
    if len(payload) < _LOCAL_RESPONSE.size:
        raise ChannelBroken("local response shorter than its head")
    status, grpc_status, details_bytes, headers_bytes, body_bytes, flags = _LOCAL_RESPONSE.unpack_from(payload)
    details_end = _LOCAL_RESPONSE.size + details_bytes
    headers_end = details_end + headers_bytes
    if headers_end + body_bytes != len(payload) or flags > 1:
        raise ChannelBroken("lengths of the local response do not add up to its size")
    headers = decode_map(payload[details_end:headers_end])
    details = payload[_LOCAL_RESPONSE.size : details_end]
    return LocalResponse(status, grpc_status, bool(flags), details, headers, payload[headers_end:])


def encode_local_response(response: LocalResponse, headers: bytes) -> bytes:
    """Write the payload of a LOCAL_RESPONSE; ``headers`` are the encoded pairs. For the VM's side and for tests."""
    head = _LOCAL_RESPONSE.pack(
        response.status,
        response.grpc_status,
        len(response.details),
        len(headers),
        len(response.body),
        int(response.already_begun),
    )
    return head + response.details + headers + response.body


def decode_map(payload: bytes) -> list[Pair]:
    """
    Read the map of an effect.

    Raises:
        ChannelBroken: it is malformed or past the bounds; an honest VM writes none such.
    """
    try:
        return decode(payload)
    except PairsError as error:
        raise ChannelBroken(f"effect with a bad map: {error}") from error


@dataclass(frozen=True, slots=True)
class EventLimits:
    """How much one event may bring. Generous against an honest VM's own limits, finite against another's."""

    max_effects: int = 32_768
    """Records, every fragment counted."""
    max_bytes: int = 4 * limits.DEFAULT_BODY_BUFFER_BYTES + 8 * limits.MIB
    """Payloads of all effects together, plus 64 bytes for each."""
    free_effects: int = 256
    """So many of an event's records count for that event alone; those beyond count as if they were outside events."""
    max_loose: int = 65_536
    """Records outside events at once: a ring full of the smallest ones, twice."""
    loose_per_window: int = 8_192 + limits.DEFAULT_LOG_LINES_PER_EVENT
    """
    Those of each tenth of a second in the long run: as many as hostcore lets itself have. Each costs this side some
    microseconds, so more would cost it the time of other tenants.
    """

    @classmethod
    def of(cls, body_buffer_bytes: int, log_lines: int, log_bytes: int) -> EventLimits:
        """Return the limits that fit a plugin's policy: both directions' buffers out, one more coming in."""
        return cls(
            max_effects=16_384 + log_lines + body_buffer_bytes // 4096,
            max_bytes=4 * body_buffer_bytes + log_bytes + 64 * log_lines + 8 * limits.MIB,
            loose_per_window=8_192 + log_lines,
        )


_NO_PAYLOAD = frozenset(
    {layout.CLEAR_ROUTE_CACHE, layout.CLOSE_STREAM, layout.DENIED, layout.LOGS_DROPPED, layout.NOTE}
)
_MAX_ARG = {layout.CLOSE_STREAM: 3, layout.LOG: 5}


def check_effect(kind: int, flags: int, arg: int, payload: bytes) -> None:
    """
    Check a whole effect by the rules of its kind.

    Raises:
        ChannelBroken: it breaks one.
    """
    if kind in layout.MAP_KINDS:
        allowed = limits.MAX_PAIRS_BYTES if flags & layout.FLAG_MODIFIED else 0
    elif kind in layout.BODY_KINDS:
        allowed = 0 if flags & layout.FLAG_AS_SUBMITTED else len(payload)
    elif kind == layout.LOG:
        allowed = limits.MAX_LOG_MESSAGE_BYTES
    elif kind == layout.NOTE and arg == layout.NOTE_PROPERTY_MISSING:
        allowed = layout.MAX_MISSED_BYTES
    elif kind in _NO_PAYLOAD:
        allowed = 0
    else:
        allowed = len(payload)
    if len(payload) > allowed:
        raise ChannelBroken(f"{layout.COMPLETION_NAMES[kind]} with {len(payload)} bytes, at most {allowed}")
    if arg > _MAX_ARG.get(kind, arg):
        raise ChannelBroken(f"{layout.COMPLETION_NAMES[kind]} with argument {arg}")
