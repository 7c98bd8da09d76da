"""The daemon's side of the attach socket's frames (``docs/attach.md``). Pure."""

from __future__ import annotations

from dataclasses import dataclass

from sandboxd.channel.attach_wire import (
    CHANNEL,
    CODE,
    MAX_NAME_BYTES,
    MAX_TEXT_BYTES,
    NAMES,
    FrameType,
    RefusalCode,
    encode_text,
    frame,
    split,
)
from sandboxd.errors import PeerError


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
    kind, payload = split(data)
    if kind == FrameType.BROKEN:
        return BrokenReport(payload[:MAX_TEXT_BYTES].decode("ascii", "replace"))
    if kind == FrameType.ATTACH:
        return _request(payload)
    raise PeerError(f"frame of type {kind}")


def _request(payload: bytes) -> AttachRequest:
    if len(payload) < NAMES.size:
        raise PeerError("request shorter than its head")
    tenant_bytes, plugin_bytes, _ = NAMES.unpack_from(payload)
    names = payload[NAMES.size :]
    if tenant_bytes + plugin_bytes != len(names) or max(tenant_bytes, plugin_bytes) > MAX_NAME_BYTES:
        raise PeerError("lengths of the names do not add up")
    try:
        return AttachRequest(names[:tenant_bytes].decode(), names[tenant_bytes:].decode())
    except UnicodeDecodeError as error:
        raise PeerError("name that is not UTF-8") from error


def attached(ring_bytes: int, spin_ns: int, channel_id: int) -> bytes:
    """Return the frame that hands a channel over; memfd, both eventfds and the compiled policy go with it."""
    return frame(FrameType.ATTACHED, CHANNEL.pack(ring_bytes, spin_ns, channel_id))


def down(reason: str) -> bytes:
    """Return the frame that says that no VM runs now; the compiled policy goes with it."""
    return frame(FrameType.DOWN, encode_text(reason))


def refused(code: RefusalCode, reason: str) -> bytes:
    """Return the frame that says that there will be no channel."""
    return frame(FrameType.REFUSED, CODE.pack(code) + encode_text(reason))


def drain() -> bytes:
    """Return the frame that says that another version takes the new streams."""
    return frame(FrameType.DRAIN, b"")


def detached(reason: str) -> bytes:
    """Return the frame that says that the channel is dead."""
    return frame(FrameType.DETACHED, encode_text(reason))
