"""
The attach socket: channels for clients that are not fronts, such as a proxy with libsandboxd in it.

To the tenants' deployments a client is one more user of channels, like a front: it is in `AttachServer.ready`, is sent
the same `ToFront` frames, and gets a VM of its own. It wants one plugin, once: what replaces its channel later (a new
version) is told to it, and it connects again.

Clients are proxies, trusted with the traffic that they hand over but not with the daemon: their frames are bounded and
checked, they are counted, and who they are is the kernel's word (SO_PEERCRED).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sandboxd.channel.attach_wire import RefusalCode
from sandboxd.channel.memfd import create_blob, read_blob
from sandboxd.errors import ConfigError, PeerError, SandboxdError
from sandboxd.limits import MAX_POLICY_FILE_BYTES
from sandboxd.log import one_line
from sandboxd.policy.capabilities import needs
from sandboxd.policy.compile import compile_policy
from sandboxd.policy.effective import narrowed, usable
from sandboxd.policy.load import parse_policy
from sandboxd.policy.model import PluginPolicy
from sandboxd.protos import control_pb2 as control
from sandboxd.supervisor import attach_frames as wire
from sandboxd.supervisor import frames
from sandboxd.supervisor.attach_frames import AttachRequest
from sandboxd.supervisor.rundir import remove_dead_socket

_log = logging.getLogger(__name__)

BACKLOG = 128
REQUEST_TIMEOUT_S = 5.0
"""A connection that does not say what it wants is closed."""
MAX_SILENT = 64
"""Connections that have not said what they want yet."""
_MAX_UNREAD = 1024
"""Packets of a client that are thrown away at the end; a socket holds fewer."""
_UCRED = struct.Struct("3i")
_CLIENT_INDEX_BASE = 1_000_000
"""Clients share the numbering of channel users with the fronts, which are below `limits.MAX_FRONT_PROCESSES`."""


@dataclass(frozen=True, slots=True)
class AttachSettings:
    """How the attach socket is served."""

    path: Path
    uids: frozenset[int]
    """Users that may attach; the socket itself is open to all."""
    channels: int
    """Channels of one plugin; each is a VM."""
    spin_ns: int
    """Told to clients: busy waiting before sleep."""


class AttachHost(Protocol):
    """What the daemon does for the attach socket."""

    def plugin_names(self, tenant: str) -> Sequence[str]:
        """Return the plugins of a tenant as it is configured now; none if there is no such tenant."""

    def client_ready(self, client: AttachClient) -> None:
        """A client wants a channel."""

    def client_gone(self, client: AttachClient) -> None:
        """A client left; its channel has no user any more."""

    def channel_broken(self, channel_id: int, reason: str) -> None:
        """A VM broke its channel's rules."""


class AttachClient:
    """One connection, seen by deployments as a user of channels."""

    def __init__(self, server: AttachServer, index: int, sock: socket.socket, uid: int) -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._socket = sock
        self.index = index
        self.uid = uid
        self.request: AttachRequest | None = None
        self.channel_id = 0
        """Of the channel that it has; 0: it waits for one."""
        self._loop.add_reader(sock, self._readable)
        self._timer = self._loop.call_later(REQUEST_TIMEOUT_S, self.close)

    # --- what a deployment asks of a user of channels ---

    def wants(self, tenant: str, plugin: str) -> bool:
        """Return whether it waits for a channel of this plugin."""
        request = self.request
        return request is not None and not self.channel_id and (tenant, plugin) == (request.tenant, request.plugin)

    def send(self, frame: control.ToFront, fds: Sequence[int] = ()) -> None:
        """Tell it what a front would be told; what is not about its plugin is left out."""
        try:
            match frame.WhichOneof("frame"):
                case "attach":
                    self._attach(frame.attach, fds)
                case "detach":
                    if frame.detach.channel_id == self.channel_id:
                        self._end(wire.detached(frame.detach.reason))
                case "plugin_down":
                    self._plugin_down(frame.plugin_down, fds)
        except SandboxdError as error:
            _log.error("attach client %d: %s", self.index, error)
            self._loop.call_soon(self.close)  # not from here: the deployment is in the middle of its turn

    def superseded(self, channel_id: int) -> None:
        """Another version takes the new streams."""
        if channel_id == self.channel_id:
            self._send(wire.drain())

    def _attach(self, attach: control.Attach, fds: Sequence[int]) -> None:
        if not self.wants(attach.tenant, attach.plugin):
            return
        memfd, vm_event_fd, client_event_fd, text_fd = fds
        policy = _plugin_policy(text_fd, attach.policy_path, attach.plugin)
        blob = compile_attached(attach, policy)
        self.channel_id = attach.channel_id
        frame = wire.attached(attach.ring_bytes, self._server.settings.spin_ns, attach.channel_id)
        self._send_with_blob(frame, (memfd, vm_event_fd, client_event_fd), blob)

    def _plugin_down(self, down: control.PluginDown, fds: Sequence[int]) -> None:
        if not self.wants(down.tenant, down.plugin):
            return
        if down.removed:
            self._end(wire.refused(RefusalCode.UNKNOWN, down.reason))
            return
        policy = narrowed(_plugin_policy(fds[0], down.policy_path, down.plugin), frozenset())
        # Nothing reaches a VM, so no redaction key is needed; the policy's failure part is what counts.
        blob = compile_policy(down.tenant, policy, needs(frozenset(), ()), bytes(32))
        self._send_with_blob(wire.down(down.reason), (), blob)

    # --- the socket ---

    def _send_with_blob(self, data: bytes, fds: tuple[int, ...], blob: bytes) -> None:
        fd = create_blob("policy", blob)
        try:
            self._send(data, (*fds, fd))
        finally:
            os.close(fd)

    def _send(self, data: bytes, fds: tuple[int, ...] = ()) -> None:
        try:
            frames.send(self._socket, data, fds)
        except OSError as error:  # gone, or it does not read: then it is no use to anybody
            _log.debug("attach client %d: %s", self.index, error)
            self._loop.call_soon(self.close)

    def _end(self, data: bytes) -> None:
        self._send(data)
        self._loop.call_soon(self.close)

    def _readable(self) -> None:
        try:
            data = frames.receive_plain(self._socket)
            if not data:
                self.close()
                return
            self._take(wire.parse(data))
        except BlockingIOError:
            return
        except ConnectionResetError:  # it left without reading what we sent
            self.close()
        except (OSError, PeerError, frames.FrameTooLongError) as error:
            _log.warning("attach client %d (uid %d): %s", self.index, self.uid, one_line(str(error), 200))
            self._end(wire.refused(RefusalCode.MALFORMED, str(error)))

    def _take(self, message: AttachRequest | wire.BrokenReport) -> None:
        if isinstance(message, wire.BrokenReport):
            if not self.channel_id:
                raise PeerError("reports a broken channel and has none")
            self._server.host.channel_broken(self.channel_id, one_line(message.reason, 512))
            return
        if self.request is not None:
            raise PeerError("asks twice on one connection")
        self._timer.cancel()
        refusal = self._server.admit(message)
        if isinstance(refusal, AttachRequest):
            self.request = refusal
            self._server.host.client_ready(self)
        else:
            self._end(wire.refused(*refusal))

    def close(self) -> None:
        """End the connection, and with it the channel."""
        if self._socket.fileno() < 0:
            return
        self._timer.cancel()
        self._loop.remove_reader(self._socket)
        close_politely(self._socket)
        self._server.left(self)


class AttachServer:
    """
    Args:
        settings: how to serve.
        host: the daemon.
    """

    def __init__(self, settings: AttachSettings, host: AttachHost) -> None:
        self.settings = settings
        self.host = host
        self._loop = asyncio.get_running_loop()
        self._clients: dict[int, AttachClient] = {}
        self._indices = itertools.count(_CLIENT_INDEX_BASE)
        self._listener: socket.socket | None = None

    @property
    def ready(self) -> dict[int, AttachClient]:
        """Clients that have a channel or want one, by index."""
        return {index: client for index, client in self._clients.items() if client.request is not None}

    def start(self) -> None:
        """
        Listen.

        Raises:
            ConfigError: the socket cannot be made.
        """
        path = self.settings.path
        remove_dead_socket(path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            listener.setblocking(False)
            listener.bind(str(path))
            path.chmod(0o666)  # who may attach is decided by credentials
            listener.listen(BACKLOG)
        except OSError as error:
            listener.close()
            raise ConfigError(f"cannot listen: {error.strerror}", path=str(path)) from None
        self._listener = listener
        self._loop.add_reader(listener, self._accept)

    def stop(self) -> None:
        """Listen no more and end all connections."""
        if self._listener is None:
            return
        self._loop.remove_reader(self._listener)
        self._listener.close()
        self._listener = None
        self.settings.path.unlink(missing_ok=True)
        for client in list(self._clients.values()):
            client.close()

    def admit(self, request: AttachRequest) -> AttachRequest | tuple[RefusalCode, str]:
        """Return the request with its plugin named, or why it is refused."""
        names = self.host.plugin_names(request.tenant)
        plugin = request.plugin or (names[0] if len(names) == 1 else "")
        if plugin not in names:
            problem = "several plugins: name one" if names and not request.plugin else "no such tenant or plugin"
            return RefusalCode.UNKNOWN, problem
        named = AttachRequest(request.tenant, plugin)
        if sum(client.request == named for client in self._clients.values()) >= self.settings.channels:
            return RefusalCode.LIMIT, f"the plugin has {self.settings.channels} channels already"
        return named

    def left(self, client: AttachClient) -> None:
        """A connection ended."""
        self._clients.pop(client.index, None)
        if client.request is not None:
            self.host.client_gone(client)

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return
        sock.setblocking(False)
        _, uid, _ = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        silent = sum(client.request is None for client in self._clients.values())
        if uid not in self.settings.uids or silent >= MAX_SILENT:
            code = RefusalCode.FORBIDDEN if uid not in self.settings.uids else RefusalCode.LIMIT
            _log.warning("attach: a client of uid %d is refused (%s)", uid, code.name.lower())
            with contextlib.suppress(OSError):
                frames.send(sock, wire.refused(code, "this user may not attach" if code == 2 else "try again later"))
            close_politely(sock)
            return
        index = next(self._indices)
        self._clients[index] = AttachClient(self, index, sock, uid)


def close_politely(sock: socket.socket) -> None:
    """Close so that the peer can read what it was sent: a packet of its own that nobody read would make that lost."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)  # from here on nothing more comes
        for _ in range(_MAX_UNREAD):
            if not sock.recv(1, socket.MSG_DONTWAIT):
                break
    sock.close()


def compile_attached(attach: control.Attach, policy: PluginPolicy) -> bytes:
    """Return the compiled policy of a channel; as a front prepares it, from the same facts."""
    callbacks = frozenset(attach.callbacks)
    functions = usable(policy, callbacks, attach.imported_functions)
    policy = narrowed(policy, functions)
    return compile_policy(attach.tenant, policy, needs(functions, callbacks), attach.redaction_key, attach.imports)


def _plugin_policy(text_fd: int, path: str, name: str) -> PluginPolicy:
    text = read_blob(text_fd, MAX_POLICY_FILE_BYTES).decode()
    plugin = parse_policy(text, path, module_root=None).plugin(name)
    if plugin is None:
        raise ConfigError(f"has no plugin {name}", path=path)
    return plugin
