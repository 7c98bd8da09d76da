"""
The client's side of the attach socket's frames (``docs/attach.md``). Pure.

The daemon's side is in `sandboxd.supervisor.attach_frames`, which a client does not load; a test holds both together.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from sandboxd.channel import layout
from sandboxd.errors import PeerError

MAGIC: Final = b"SBXA"
VERSION: Final = 1
MAX_FRAME_BYTES: Final = 4096
MAX_NAME_BYTES: Final = 255
MAX_TEXT_BYTES: Final = 512
MAX_FDS: Final = 4

ATTACH: Final = 1
BROKEN: Final = 2
ATTACHED: Final = 16
DOWN: Final = 17
REFUSED: Final = 18
DRAIN: Final = 19
DETACHED: Final = 20

UNKNOWN: Final = 1
FORBIDDEN: Final = 2

_HEAD = struct.Struct("<4sHHII")
_NAMES = struct.Struct("<HHI")
_CHANNEL = struct.Struct("<IIQ")
_CODE = struct.Struct("<I")
_FDS = {ATTACHED: 4, DOWN: 1, REFUSED: 0, DRAIN: 0, DETACHED: 0}
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
    return _frame(ATTACH, _NAMES.pack(len(names[0]), len(names[1]), 0) + b"".join(names))


def encode_broken(reason: str) -> bytes:
    """Return the word that the VM broke the channel's rules."""
    return _frame(BROKEN, reason.encode("ascii", "replace")[:MAX_TEXT_BYTES])


def parse(data: bytes, fd_count: int) -> Frame:
    """
    Read a frame of the daemon's.

    Raises:
        PeerError: it is malformed, or has another number of descriptors than its kind.
    """
    if len(data) < _HEAD.size:
        raise PeerError("frame shorter than its head")
    magic, version, kind, length, _ = _HEAD.unpack_from(data)
    payload = data[_HEAD.size :]
    if (magic, version, length) != (MAGIC, VERSION, len(payload)):
        raise PeerError("frame with another magic, version or length")
    if kind not in _FDS:
        raise PeerError(f"frame of type {kind}")
    if fd_count != _FDS[kind]:
        raise PeerError(f"frame of type {kind} with {fd_count} descriptors, not {_FDS[kind]}")
    return _parse_payload(kind, payload)


def _parse_payload(kind: int, payload: bytes) -> Frame:
    match kind:
        case 16:
            return _attached(payload)
        case 17:
            return Down(_text(payload))
        case 18:
            if len(payload) < _CODE.size:
                raise PeerError("refusal without its code")
            return Refused(_CODE.unpack_from(payload)[0], _text(payload[_CODE.size :]))
        case 19:
            return Drain()
        case _:
            return Detached(_text(payload))


def _attached(payload: bytes) -> Attached:
    if len(payload) != _CHANNEL.size:
        raise PeerError(f"channel frame of {len(payload)} bytes, not {_CHANNEL.size}")
    ring_bytes, spin_ns, _ = _CHANNEL.unpack(payload)
    if not layout.valid_ring_bytes(ring_bytes):
        raise PeerError(f"channel with rings of {ring_bytes} bytes")
    return Attached(ring_bytes, min(spin_ns, _MAX_SPIN_NS))


def _text(payload: bytes) -> str:
    text = payload[:MAX_TEXT_BYTES].decode("ascii", "replace")
    return "".join(char if char.isprintable() else "?" for char in text)


def _frame(kind: int, payload: bytes) -> bytes:
    return _HEAD.pack(MAGIC, VERSION, kind, len(payload), 0) + payload
