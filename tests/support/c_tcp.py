"""TCP connections of libsandboxd from Python, for tests."""

from __future__ import annotations

import ctypes as c
from collections.abc import Sequence
from dataclasses import dataclass

from tests.support.c_client import NAMES, Bytes, CChannel, bytes_of, pairs_of

CONTINUE, PAUSE, CLOSE, RESET, BYPASS = range(5)
"""``enum sbx_tcp_action``."""


class _Outcome(c.Structure):
    _fields_ = [
        ("action", c.c_uint32), ("failed", c.c_bool), ("cause", c.c_uint32), ("downstream", Bytes), ("upstream", Bytes),
        ("downstream_ended", c.c_bool), ("upstream_ended", c.c_bool),
    ]  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """``sbx_tcp_outcome``."""

    action: int
    cause: int | None
    downstream: bytes
    upstream: bytes
    downstream_ended: bool
    upstream_ended: bool


def declare(lib: c.CDLL) -> None:
    """Tell ctypes of the functions for connections."""
    pointer, size, number = c.c_void_p, c.c_size_t, c.c_uint64
    out = c.POINTER(pointer)
    lib.sbx_connection_open.argtypes = [pointer, pointer, size, number, pointer, pointer, out, out]
    lib.sbx_submit_data.argtypes = [pointer, c.c_int, pointer, size, c.c_bool, number, pointer, out]
    lib.sbx_submit_peer_close.argtypes = [pointer, c.c_int, c.c_int, number, pointer, out]
    lib.sbx_connection_take.argtypes = [pointer, c.POINTER(_Outcome)]


class CConnection:
    """One connection; each event is an argument of `wait`, None where there is nothing to wait for."""

    def __init__(self, channel: CChannel, attributes: Sequence[tuple[bytes, bytes]] = ()) -> None:
        declare(channel.lib)
        self.lib, self.channel = channel.lib, channel
        self.stream, event = c.c_void_p(), c.c_void_p()
        given = pairs_of(list(attributes))
        self.status = NAMES[
            self.lib.sbx_connection_open(
                channel.handle, given, len(attributes), 1, None, None, c.byref(self.stream), c.byref(event)
            )
        ]
        self.begun = event if event.value else None

    def data(self, kind: int, pieces: Sequence[bytes], end: bool = False) -> tuple[str, c.c_void_p | None]:
        """Submit bytes; the status's name and the event."""
        event = c.c_void_p()
        given = (Bytes * len(pieces))(*map(bytes_of, pieces))
        status = self.lib.sbx_submit_data(self.stream, kind, given, len(pieces), end, 2, None, c.byref(event))
        return NAMES[status], event if event.value else None

    def peer_close(self, kind: int, peer: int = 0) -> tuple[str, c.c_void_p | None]:
        """Say that a side has gone."""
        event = c.c_void_p()
        status = self.lib.sbx_submit_peer_close(self.stream, kind, peer, 3, None, c.byref(event))
        return NAMES[status], event if event.value else None

    def wait(self, event: c.c_void_p | None, timeout_ns: int = 5_000_000_000) -> Outcome:
        """Wait for an event, free it and take what came of it."""
        if event is not None:
            self.lib.sbx_wait(event, timeout_ns)
            self.lib.sbx_event_free(event)
        return self.take()

    def take(self) -> Outcome:
        """What goes on now."""
        made = _Outcome()
        assert self.lib.sbx_connection_take(self.stream, c.byref(made)) == 0
        return Outcome(
            made.action,
            made.cause if made.failed else None,
            made.downstream.get(),
            made.upstream.get(),
            made.downstream_ended,
            made.upstream_ended,
        )

    def send(self, kind: int, data: bytes, end: bool = False) -> Outcome:
        """Submit bytes and wait."""
        status, event = self.data(kind, [data], end)
        assert status == "OK", status
        return self.wait(event)

    def close(self, *, reset: bool = False) -> None:
        """End it."""
        self.lib.sbx_stream_close(self.stream, reset, 9)
