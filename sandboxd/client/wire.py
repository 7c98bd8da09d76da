"""
The client's side of the attach socket's frames (``docs/attach.md``). Pure.

The daemon's side is in `sandboxd.supervisor.attach_frames`, which a client does not load.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sandboxd.channel import layout
from sandboxd.channel.attach_wire import (
    CHANNEL,
    CODE,
    MAX_NAME_BYTES,
    MAX_TEXT_BYTES,
    NAMES,
    FrameType,
    encode_text,
    frame,
    split,
)
from sandboxd.errors import PeerError

MAX_FDS: Final = 4
_FDS: Final[dict[int, int]] = {
    FrameType.ATTACHED: MAX_FDS,
    FrameType.DOWN: 1,
    FrameType.REFUSED: 0,
    FrameType.DRAIN: 0,
    FrameType.DETACHED: 0,
}
"""Descriptors that go with each frame."""
_MAX_SPIN_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Attached:
    """A channel; memfd, the VM's eventfd, the client's eventfd and the compiled policy go with it."""

    ring_bytes: int
    spin_ns: int


@dataclass(frozen=True, slots=True)
class Down:
    """No VM runs now; the compiled policy goes with it."""

    reason: str


@dataclass(frozen=True, slots=True)
class Refused:
    """There will be no channel."""

    code: int
    reason: str


@dataclass(frozen=True, slots=True)
class Drain:
    """Another version of the plugin takes new streams."""


@dataclass(frozen=True, slots=True)
class Detached:
    """The channel is dead."""

    reason: str


Frame = Attached | Down | Refused | Drain | Detached


def encode_attach(tenant: str, plugin: str) -> bytes:
    """
    Return the request for a channel; an empty plugin is the tenant's only one.

    Raises:
        PeerError: a name is too long.
    """
    names = tenant.encode(), plugin.encode()
    for word, name in zip(("tenant", "plugin"), names, strict=True):
        if len(name) > MAX_NAME_BYTES:
            raise PeerError(f"{word}: a name of {len(name)} bytes, at most {MAX_NAME_BYTES} are allowed")
    return frame(FrameType.ATTACH, NAMES.pack(len(names[0]), len(names[1]), 0) + b"".join(names))


def encode_broken(reason: str) -> bytes:
    """Return the word that the VM broke the channel's rules."""
    return frame(FrameType.BROKEN, encode_text(reason))


def parse(data: bytes, fd_count: int) -> Frame:
    """
    Read a frame of the daemon's.

    Raises:
        PeerError: it is malformed, or has another number of descriptors than its kind.
    """
    kind, payload = split(data)
    if kind not in _FDS:
        raise PeerError(f"frame of type {kind}")
    if fd_count != _FDS[kind]:
        raise PeerError(f"frame of type {kind} with {fd_count} descriptors, not {_FDS[kind]}")
    return _parse_payload(kind, payload)


def _parse_payload(kind: int, payload: bytes) -> Frame:
    match kind:
        case FrameType.ATTACHED:
            return _attached(payload)
        case FrameType.DOWN:
            return Down(_text(payload))
        case FrameType.REFUSED:
            if len(payload) < CODE.size:
                raise PeerError("refusal without its code")
            return Refused(CODE.unpack_from(payload)[0], _text(payload[CODE.size :]))
        case FrameType.DRAIN:
            return Drain()
        case _:
            return Detached(_text(payload))


def _attached(payload: bytes) -> Attached:
    if len(payload) != CHANNEL.size:
        raise PeerError(f"channel frame of {len(payload)} bytes, not {CHANNEL.size}")
    ring_bytes, spin_ns, _ = CHANNEL.unpack(payload)
    if not layout.valid_ring_bytes(ring_bytes):
        raise PeerError(f"channel with rings of {ring_bytes} bytes")
    return Attached(ring_bytes, min(spin_ns, _MAX_SPIN_NS))


def _text(payload: bytes) -> str:
    text = payload[:MAX_TEXT_BYTES].decode("ascii", "replace")
    return "".join(char if char.isprintable() else "?" for char in text)
