"""
A front process: gRPC servers towards the proxies, a control socket towards the supervisor.

Forked by the supervisor; runs until its control socket ends. gRPC is imported here for the first time, in the child.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import uvloop

from sandboxd import limits
from sandboxd.channel import memfd
from sandboxd.channel.errors import ChannelBroken
from sandboxd.config import DaemonConfig, TcpListen, TlsFiles, UnixListen
from sandboxd.errors import ConfigError, PolicyError
from sandboxd.front.counters import Counters
from sandboxd.front.ext_proc import IDLE_SWEEP_S, ExtProcService
from sandboxd.front.grpc_log import quieten
from sandboxd.front.plugin import Plugin, prepare
from sandboxd.front.registry import Channel, Owner, Registry
from sandboxd.jail.front_jail import FrontJail, give_up_rest
from sandboxd.policy.load import parse_policy
from sandboxd.protos import control_pb2 as control
from sandboxd.supervisor import frames

_log = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 16 * limits.MIB
"""One gRPC message. Envoy's buffers, and with them its body messages, are 1 MiB unless it is told otherwise."""
MAX_CONCURRENT_STREAMS = 10_000
"""Streams of one connection."""
MAX_CONCURRENT_RPCS = 50_000
"""Streams of one listener; more are refused with RESOURCE_EXHAUSTED."""
DRAIN_GRACE_S = 10.0
"""How long streams may go on after Drain."""
DOWN_DRAIN_S = 30.0
"""How long streams of a plugin may go on whose VMs cannot be replaced."""
GC_THRESHOLD = 20_000
"""New objects between two looks of the garbage collector."""
MAX_COUNTERS_BYTES = frames.MAX_FRAME_BYTES - 1024

SERVER_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES + limits.MIB),
    ("grpc.max_concurrent_streams", MAX_CONCURRENT_STREAMS),
    ("grpc.max_metadata_size", 16 * limits.KIB),
    # A proxy that vanished without a word is noticed, and one that pings within reason is not thrown out.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.so_reuseport", 1),
    # Pings that measure a connection's bandwidth: a proxy and its fronts are on one machine, or nearly.
    ("grpc.http2.bdp_probe", 0),
]


def serve_front(index: int, control_socket: socket.socket, config: DaemonConfig, jail: FrontJail | None = None) -> None:
    """
    Run front process ``index`` until its control socket ends or Drain is done.

    Args:
        index: number of this front.
        control_socket: see `Front`.
        config: the daemon's file.
        jail: what is given up once the sockets are bound; None: nothing.

    Raises:
        ConfigError: it cannot listen where the configuration says.
        JailError: it could not give up its privileges.
    """
    quieten()
    # Everything imported so far lives as long as the process, so the collector need not look at it; and an exchange
    # makes hundreds of objects of which hardly any is part of a cycle.
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD)
    uvloop.run(Front(index, control_socket, config, jail).run())  # turns of the loop cost a third of gRPC's own work


class Front:
    """
    Args:
        index: number of this front, for its socket paths.
        control_socket: SOCK_SEQPACKET to the supervisor; owned.
        config: the daemon's file.
        jail: see `serve_front`.
    """

    def __init__(
        self, index: int, control_socket: socket.socket, config: DaemonConfig, jail: FrontJail | None = None
    ) -> None:
        self._index = index
        self._control = control_socket
        self._config = config
        self._jail = jail
        self._counters = Counters()
        self._registry = Registry(self._counters)
        self._service = ExtProcService(self._registry, allow_mode_override=config.front.mode_override)
        self._servers: list[grpc.aio.Server] = []
        self._unsent: list[control.FromFront] = []
        self._draining: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Serve."""
        self._loop = asyncio.get_running_loop()
        self._stopped = asyncio.Event()
        self._told = asyncio.Event()
        self._control.setblocking(False)
        sweeper = self._loop.create_task(self._sweep())
        try:
            self._loop.add_reader(self._control, self._readable)
            await self._told.wait()  # a proxy that comes before would hear that its plugin is unknown
            if not self._stopped.is_set():
                addresses = await self._listen()
                self._send(control.FromFront(ready=control.FrontReady(index=self._index, addresses=addresses)))
            await self._stopped.wait()
        finally:
            sweeper.cancel()
            self._loop.remove_reader(self._control)
            self._loop.remove_writer(self._control)
            await asyncio.gather(*(server.stop(0) for server in self._servers))
            self._registry.close()
            self._control.close()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(IDLE_SWEEP_S)
            self._service.end_idle()

    # --- listening ---

    async def _listen(self) -> list[str]:
        """Bind with the daemon's rights, give them up, and only then take the first connection."""
        front = self._config.front
        addresses = [self._bind_at(listen) for listen in front.listen]
        addresses += [self._bind_at(unix, tenant) for tenant, unix in front.tenant_sockets.items()]
        if self._jail is not None:
            give_up_rest(self._jail)
        for server in self._servers:
            await server.start()
        return addresses

    def _bind_at(self, listen: UnixListen | TcpListen, tenant: str = "") -> str:
        server = grpc.aio.server(options=SERVER_OPTIONS, maximum_concurrent_rpcs=MAX_CONCURRENT_RPCS)
        server.add_generic_rpc_handlers((self._service.handler(tenant),))
        if isinstance(listen, UnixListen):
            address = f"unix:{listen.path(self._index)}"
            # gRPC makes the file itself: the mode has to be right from its first moment.
            with _umask(~self._config.front.socket_mode & 0o777):
                _bind(server, address, None)
        else:
            host = f"[{listen.host}]" if ":" in listen.host else listen.host
            address = f"{host}:{listen.port}"
            _bind(server, address, listen.tls)
        self._servers.append(server)
        return address

    # --- the supervisor's frames ---

    def _readable(self) -> None:
        while not self._stopped.is_set():
            try:
                packet = frames.receive_with_fds(self._control)
            except BlockingIOError:
                return
            except (OSError, frames.FrameTooLongError) as error:
                _log.error("control socket: %s", error)
                self._stop()
                return
            if not packet.data:
                self._stop()
                return
            self._handle(packet)

    def _stop(self) -> None:
        self._stopped.set()
        self._told.set()

    def _handle(self, packet: frames.Packet) -> None:
        frame = control.ToFront.FromString(packet.data)
        which = frame.WhichOneof("frame")
        if which == "attach":
            self._attach(frame.attach, packet)
            return
        try:
            if which == "plugin_down":
                self._plugin_down(frame.plugin_down, packet)
            elif which == "detach":
                self._registry.detach(frame.detach.channel_id, frame.detach.reason)
            elif which == "status":
                self._status(frame.status.number)
            elif which == "serve":
                self._told.set()
            elif which == "drain":
                self._draining = self._draining or self._loop.create_task(self._drain())
        finally:
            packet.close()

    def _attach(self, attach: control.Attach, packet: frames.Packet) -> None:
        """Take a channel. Its three descriptors are the channel's from here on, the policy's is closed."""
        if len(packet.fds) != 4:
            packet.close()
            self._broken(attach.channel_id, f"Attach with {len(packet.fds)} descriptors in place of 4")
            return
        fds = memfd.ChannelFds(packet.fds[0], packet.fds[1], packet.fds[2], attach.ring_bytes)
        try:
            plugin = self._plugin(attach, packet.fds[3])
            channel = Channel(
                attach.channel_id,
                plugin,
                fds,
                counters=self._counters.plugin(plugin.key),
                owner=Owner(self._broken, self._drained),
                spin_ns=self._config.channel.spin_us * limits.US_NS,
            )
        except (ChannelBroken, PolicyError, ValueError, OSError) as error:
            fds.close()
            _log.error("channel %d of %s/%s: %s", attach.channel_id, attach.tenant, attach.plugin, error)
            self._broken(attach.channel_id, str(error))
            return
        finally:
            os.close(packet.fds[3])
        self._registry.attach(channel, attach.drain_timeout_ns / 1e9)

    def _plugin(self, attach: control.Attach, policy_fd: int) -> Plugin:
        tenant = _tenant_policy(policy_fd, attach.policy_path)
        policy = tenant.plugin(attach.plugin)
        if policy is None or tenant.tenant != attach.tenant:
            raise ValueError(f"{attach.policy_path} has no plugin {attach.tenant}/{attach.plugin}")
        return prepare(
            tenant.tenant,
            policy,
            callbacks=attach.callbacks,
            imported_functions=attach.imported_functions,
            redaction_key=attach.redaction_key,
            imports=attach.imports,
        )

    def _plugin_down(self, down: control.PluginDown, packet: frames.Packet) -> None:
        if down.removed:
            self._registry.remove(down.tenant, down.plugin, DOWN_DRAIN_S)
            return
        policy = _tenant_policy(packet.fds[0], down.policy_path).plugin(down.plugin) if packet.fds else None
        if policy is None:
            _log.error("%s has no plugin %s/%s", down.policy_path, down.tenant, down.plugin)
            return
        # Nothing reaches a VM, so no redaction key is needed; the policy's failure part is what counts.
        plugin = prepare(down.tenant, policy, callbacks=(), imported_functions=(), redaction_key=bytes(32))
        self._registry.down(plugin, down.reason, DOWN_DRAIN_S, starting=down.starting)

    def _status(self, number: int) -> None:
        counters = self._counters.to_json(MAX_COUNTERS_BYTES)
        self._send(control.FromFront(status=control.FrontStatus(number=number, counters_json=counters)))

    async def _drain(self) -> None:
        await asyncio.gather(*(server.stop(DRAIN_GRACE_S) for server in self._servers))
        self._stop()

    # --- to the supervisor ---

    def _broken(self, channel_id: int, reason: str) -> None:
        frame = control.ChannelBroken(channel_id=channel_id, reason=reason[:1000])
        self._send(control.FromFront(channel_broken=frame))

    def _drained(self, channel_id: int) -> None:
        self._registry.drained(channel_id)
        self._send(control.FromFront(channel_drained=control.ChannelDrained(channel_id=channel_id)))

    def _send(self, frame: control.FromFront) -> None:
        self._unsent.append(frame)
        if len(self._unsent) == 1:
            self._write()

    def _write(self) -> None:
        try:
            while self._unsent:
                frames.send(self._control, frames.encode(self._unsent[0]))
                del self._unsent[0]
        except BlockingIOError:
            self._loop.add_writer(self._control, self._write)
            return
        except OSError as error:
            _log.error("control socket: %s", error)
            self._stop()
        self._loop.remove_writer(self._control)


def _tenant_policy(fd: int, path: str) -> Any:
    text = memfd.read_blob(fd, limits.MAX_POLICY_FILE_BYTES)
    return parse_policy(text.decode(), path, module_root=None)


def _bind(server: grpc.aio.Server, address: str, tls: TlsFiles | None) -> None:
    try:
        if tls is None:
            server.add_insecure_port(address)
        else:
            server.add_secure_port(address, _credentials(tls))
    except (OSError, RuntimeError) as error:
        raise ConfigError(f"cannot listen on {address}: {error}", key="front.listen") from error


def _credentials(tls: TlsFiles) -> grpc.ServerCredentials:
    authority = _pem(tls.client_ca) if tls.client_ca is not None else None
    pairs = [(_pem(tls.key), _pem(tls.certificate))]
    return grpc.ssl_server_credentials(pairs, authority, require_client_auth=authority is not None)


def _pem(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        problem = f"cannot read {path}: {error.strerror}"
        raise ConfigError(problem, key="front.listen.tls") from error


@contextlib.contextmanager
def _umask(mask: int) -> Iterator[None]:
    old = os.umask(mask)
    try:
        yield
    finally:
        os.umask(old)
