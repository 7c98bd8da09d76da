"""
What both ends of the attach socket (``docs/attach.md``) share: numbers, layouts, and the head of a frame. Pure.

The frames themselves are in `sandboxd.client.wire` (a client's) and `sandboxd.supervisor.attach_frames` (the daemon's).
"""

from __future__ import annotations

import enum
import struct
from typing import Final

from sandboxd.errors import PeerError

MAGIC: Final = b"SBXA"
VERSION: Final = 1
MAX_FRAME_BYTES: Final = 4096
MAX_NAME_BYTES: Final = 255
MAX_TEXT_BYTES: Final = 512

HEAD: Final = struct.Struct("<4sHHII")
"""Magic, version, type, bytes of the payload, 0."""
NAMES: Final = struct.Struct("<HHI")
"""A request: bytes of the tenant's and of the plugin's name, which follow, and 0."""
CHANNEL: Final = struct.Struct("<IIQ")
"""A channel: bytes of a ring, spin in ns, the channel's number."""
CODE: Final = struct.Struct("<I")
"""A refusal: its code; the text follows."""


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


def frame(kind: FrameType, payload: bytes) -> bytes:
    """Return a whole frame."""
    return HEAD.pack(MAGIC, VERSION, kind, len(payload), 0) + payload


def split(data: bytes) -> tuple[int, bytes]:
    """
    Return a frame's type, which may be none that is known, and its payload.

    Raises:
        PeerError: the head does not fit.
    """
    if len(data) < HEAD.size:
        raise PeerError("frame shorter than its head")
    magic, version, kind, length, _ = HEAD.unpack_from(data)
    payload = data[HEAD.size :]
    if (magic, version, length) != (MAGIC, VERSION, len(payload)):
        raise PeerError("frame with another magic, version or length")
    return kind, payload


def encode_text(text: str) -> bytes:
    """Return a reason as it goes into a frame: ASCII, cut to `MAX_TEXT_BYTES`."""
    return text.encode("ascii", "replace")[:MAX_TEXT_BYTES]
