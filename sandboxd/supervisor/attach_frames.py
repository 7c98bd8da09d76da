"""The frames of the attach socket (``docs/attach.md``). Pure."""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass

from sandboxd.errors import PeerError

MAGIC = b"SBXA"
VERSION = 1
MAX_FRAME_BYTES = 4096
MAX_NAME_BYTES = 255
MAX_TEXT_BYTES = 512

_HEAD = struct.Struct("<4sHHII")
_NAMES = struct.Struct("<HHI")
_CHANNEL = struct.Struct("<IIQ")
_CODE = struct.Struct("<I")


class FrameType(enum.IntEnum):
    """What a frame is; those from 16 on are the daemon's."""

    ATTACH = 1
    BROKEN = 2
    ATTACHED = 16
    DOWN = 17
    REFUSED = 18
    DRAIN = 19
    DETACHED = 20


class RefusalCode(enum.IntEnum):
    """Why there will be no channel."""

    UNKNOWN = 1
    FORBIDDEN = 2
    LIMIT = 3
    MALFORMED = 4


@dataclass(frozen=True, slots=True)
class AttachRequest:
    """A client asks for a channel."""

    tenant: str
    plugin: str
    """Empty: the tenant's only one."""


@dataclass(frozen=True, slots=True)
class BrokenReport:
    """A client says that the VM broke the channel's rules."""

    reason: str


def parse(data: bytes) -> AttachRequest | BrokenReport:
    """
    Read a client's frame.

    Raises:
        PeerError: it is malformed.
    """
    if len(data) < _HEAD.size:
        raise PeerError("frame shorter than its head")
    magic, version, kind, length, _ = _HEAD.unpack_from(data)
    payload = data[_HEAD.size :]
    if (magic, version, length) != (MAGIC, VERSION, len(payload)):
        raise PeerError("frame with another magic, version or length")
    if kind == FrameType.BROKEN:
        return BrokenReport(payload[:MAX_TEXT_BYTES].decode("ascii", "replace"))
    if kind == FrameType.ATTACH:
        return _request(payload)
    raise PeerError(f"frame of type {kind}")


def _request(payload: bytes) -> AttachRequest:
    if len(payload) < _NAMES.size:
        raise PeerError("request shorter than its head")
    tenant_bytes, plugin_bytes, _ = _NAMES.unpack_from(payload)
    names = payload[_NAMES.size :]
    if tenant_bytes + plugin_bytes != len(names) or max(tenant_bytes, plugin_bytes) > MAX_NAME_BYTES:
        raise PeerError("lengths of the names do not add up")
    try:
        return AttachRequest(names[:tenant_bytes].decode(), names[tenant_bytes:].decode())
    except UnicodeDecodeError as error:
        raise PeerError("name that is not UTF-8") from error


def encode_request(tenant: str, plugin: str) -> bytes:
    """Return a client's request; for clients in Python and for tests."""
    first, second = tenant.encode(), plugin.encode()
    return _frame(FrameType.ATTACH, _NAMES.pack(len(first), len(second), 0) + first + second)


def encode_broken(reason: str) -> bytes:
    """Return a client's word on a broken channel."""
    return _frame(FrameType.BROKEN, _text(reason))


def attached(ring_bytes: int, spin_ns: int, channel_id: int) -> bytes:
    """Return the frame that hands a channel over; memfd, both eventfds and the compiled policy go with it."""
    return _frame(FrameType.ATTACHED, _CHANNEL.pack(ring_bytes, spin_ns, channel_id))


def down(reason: str) -> bytes:
    """Return the frame that says that no VM runs now; the compiled policy goes with it."""
    return _frame(FrameType.DOWN, _text(reason))


def refused(code: RefusalCode, reason: str) -> bytes:
    """Return the frame that says that there will be no channel."""
    return _frame(FrameType.REFUSED, _CODE.pack(code) + _text(reason))


def drain() -> bytes:
    """Return the frame that says that another version takes the new streams."""
    return _frame(FrameType.DRAIN, b"")


def detached(reason: str) -> bytes:
    """Return the frame that says that the channel is dead."""
    return _frame(FrameType.DETACHED, _text(reason))


def _text(text: str) -> bytes:
    return text.encode("ascii", "replace")[:MAX_TEXT_BYTES]


def _frame(kind: FrameType, payload: bytes) -> bytes:
    return _HEAD.pack(MAGIC, VERSION, kind, len(payload), 0) + payload
