"""One connection to the attach socket: asks for a channel, and hears what becomes of it."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import os
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sandboxd.channel import attach_wire
from sandboxd.channel.errors import ChannelBroken
from sandboxd.channel.memfd import ChannelFds, read_blob
from sandboxd.client import compiled, wire
from sandboxd.client.channel import Channel, LogSink
from sandboxd.client.errors import AttachRefused, DaemonAway, PluginDown
from sandboxd.errors import PeerError, SandboxdError

_UCRED = struct.Struct("3i")
_RECEIVE_FLAGS = socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT


@dataclass(frozen=True, slots=True)
class Address:
    """Whose channel is wanted, and where."""

    path: Path
    tenant: str
    plugin: str = ""
    """Empty: the tenant's only one."""
    daemon_uid: int | None = None
    """Who must own the other end; None: whoever the socket's permissions let in."""


class State(enum.Enum):
    """How far a connection is."""

    ASKED = "asked"
    DOWN = "down"
    """No VM now; a channel may follow."""
    ATTACHED = "attached"
    DRAINING = "draining"
    """Works on, but another version serves new streams."""
    CLOSED = "closed"


class Connection:
    """
    Args:
        address: see `Address`.
        log: takes the plugin's log lines.
        on_change: called when `state` has changed.

    Raises:
        DaemonAway: nobody serves the socket.
        PeerError: the socket is somebody else's.
    """

    def __init__(self, address: Address, log: LogSink, on_change: Callable[[Connection], None]) -> None:
        self.state = State.ASKED
        self.channel: Channel | None = None
        self.policy: compiled.Compiled | None = None
        self.problem: SandboxdError = PluginDown("the daemon has not answered yet")
        """Why there is no channel; of use while there is none."""
        self._address = address
        self._log = log
        self._on_change = on_change
        self._loop = asyncio.get_running_loop()
        self._settled = asyncio.Event()
        request = wire.encode_attach(address.tenant, address.plugin)
        self._socket = _connected(address)
        try:
            self._socket.send(request)
        except OSError as error:
            self._socket.close()
            raise DaemonAway(f"attach socket {address.path}: {error.strerror}") from None
        self._loop.add_reader(self._socket, self._readable)

    async def wait(self, timeout_s: float, *, attached: bool) -> None:
        """Wait for the daemon's answer, or with ``attached`` until there is a channel or none will come."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self.state is State.ASKED or (attached and self.state is State.DOWN):
                    self._settled.clear()
                    await self._settled.wait()

    # --- frames ---

    def _readable(self) -> None:
        try:
            data, fds, flags, _ = socket.recv_fds(
                self._socket, attach_wire.MAX_FRAME_BYTES, wire.MAX_FDS, flags=_RECEIVE_FLAGS
            )
        except BlockingIOError:
            return
        except OSError as error:
            self._end(DaemonAway(f"attach socket {self._address.path}: {error.strerror}"))
            return
        try:
            if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                raise PeerError("frame or descriptors that do not fit")
            if not data:
                self._end(DaemonAway(f"attach socket {self._address.path}: the daemon closed the connection"))
            else:
                self._take(wire.parse(data, len(fds)), fds)
        except (SandboxdError, OSError, ValueError) as error:
            self._end(PeerError(f"attach socket {self._address.path}: {error}"))
        finally:
            for fd in fds:  # `_take` has taken out those that it keeps
                os.close(fd)

    def _take(self, frame: wire.Frame, fds: list[int]) -> None:
        match frame:
            case wire.Attached():
                self._attached(frame, fds)
            case wire.Down(reason):
                if self.state not in (State.ASKED, State.DOWN):
                    raise PeerError("DOWN after a channel")
                self.policy = self._read_policy(fds[0])
                self.problem = PluginDown(f"{self._address.tenant}/{self.policy.plugin}: no VM runs: {reason}")
                self._change(State.DOWN)
            case wire.Refused(code, reason):
                self._end(AttachRefused(code, f"{self._address.tenant}/{self._address.plugin or '*'}: {reason}"))
            case wire.Drain():
                if self.state is State.ATTACHED:
                    self._change(State.DRAINING)
            case wire.Detached(reason):
                self._end(PluginDown(f"{self._address.tenant}/{self._address.plugin or '*'}: detached: {reason}"))

    def _attached(self, frame: wire.Attached, fds: list[int]) -> None:
        if self.channel is not None:
            raise PeerError("second channel on one connection")
        policy = self._read_policy(fds[3])
        channel_fds = ChannelFds(fds[0], fds[1], fds[2], frame.ring_bytes)
        self.channel = Channel(channel_fds, policy, frame.spin_ns, self._broken, self._log)
        del fds[:3]  # the channel's from here on
        self.policy = policy
        self.problem = PluginDown(f"{policy.tenant}/{policy.plugin}: its VM failed and is not back")
        self._change(State.ATTACHED)

    def _read_policy(self, fd: int) -> compiled.Compiled:
        try:
            policy = compiled.parse(read_blob(fd, compiled.MAX_BYTES))
        except ChannelBroken as error:
            raise PeerError(f"compiled policy: {error}") from error
        if policy.tenant != self._address.tenant or self._address.plugin not in ("", policy.plugin):
            raise PeerError(f"compiled policy of {policy.tenant}/{policy.plugin}, which was not asked for")
        return policy

    def _broken(self, reason: str) -> None:
        with contextlib.suppress(OSError):
            self._socket.send(wire.encode_broken(reason))
        # Not from here: whoever met it is in the middle of a turn with the channel.
        self._loop.call_soon(self._end, PeerError(f"the VM broke the channel's rules: {reason}"))

    # --- end ---

    def _change(self, state: State) -> None:
        self.state = state
        self._settled.set()
        self._on_change(self)

    def _end(self, problem: SandboxdError) -> None:
        if self.state is State.CLOSED:
            return
        self.problem = problem
        self._loop.remove_reader(self._socket)
        self._socket.close()
        if self.channel is not None:
            self.channel.close()
        self._change(State.CLOSED)

    def close(self) -> None:
        """End the connection, and with it the channel."""
        self._end(DaemonAway("the session was closed"))


def _connected(address: Address) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        sock.connect(str(address.path))
        _, uid, _ = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        if address.daemon_uid not in (None, uid):
            raise PeerError(f"attach socket {address.path}: belongs to user {uid}, not {address.daemon_uid}")
    except OSError as error:
        sock.close()
        raise DaemonAway(f"attach socket {address.path}: {error.strerror or error}") from None
    except BaseException:
        sock.close()
        raise
    return sock
