"""
TCP through Envoy: an upstream that echoes, connections that follow a script, what both ends saw.

Listeners are named ``net-PLUGIN`` (sandboxd behind network ext_proc) and ``v8-PLUGIN`` (Envoy's own Wasm filter).
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sandboxd.commands.envoy_network import network_ext_proc
from sandboxd.demo import daemon, envoy, envoy_config
from tests.support.guests import Guest

TENANT = "tcp"
QUIET_S = 0.12
"""So long without a byte counts as an answer's end."""
TIMEOUT_S = 5.0
GREETING = b"greet"
"""Whoever connects to the greeting upstream gets this at once."""

ATTRIBUTES = ("source.address", "source.port", "destination.port")


@dataclass
class Ends:
    """What happened to one connection."""

    client: bytes = b""
    upstream: bytes = b""
    client_end: str = "open"
    """``open``, ``fin`` or ``reset``, as the client saw it."""
    upstream_end: str = "open"

    def fields(self) -> dict[str, str]:
        """Return it as names and texts."""
        return {
            "client.bytes": repr(self.client),
            "upstream.bytes": repr(self.upstream),
            "client.end": self.client_end,
            "upstream.end": self.upstream_end,
        }


class Upstream:
    """Echoes; with ``greeting``, speaks first. One connection at a time is looked at: the last one."""

    def __init__(self, greeting: bytes = b"") -> None:
        self._greeting = greeting
        self.greets = bool(greeting)
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])
        self.connections: list[Ends] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            ends = Ends()
            self.connections.append(ends)
            threading.Thread(target=self._echo, args=(connection, ends), daemon=True).start()

    def _echo(self, connection: socket.socket, ends: Ends) -> None:
        with connection:
            try:
                if self._greeting:
                    connection.sendall(self._greeting)
                while data := connection.recv(1 << 16):
                    ends.upstream += data
                    connection.sendall(data)
                    if data.endswith(b"bye"):
                        ends.upstream_end = "closed itself"
                        return
                ends.upstream_end = "fin"
            except OSError:
                ends.upstream_end = "reset"

    def close(self) -> None:
        """Take no more connections."""
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()


Step = bytes | str
"""Bytes to send; ``end``: half-close; ``look``: wait until nothing comes any more."""


def converse(port: int, upstream: Upstream, steps: Sequence[Step]) -> Ends:
    """Follow a script on one connection and return what both ends saw."""
    known = len(upstream.connections)
    seen = Ends()
    with socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as client:
        if upstream.greets:
            _look(client, seen)
        for step in steps:
            if seen.client_end != "open":
                break
            try:
                if isinstance(step, bytes):
                    client.sendall(step)
                elif step == "end":
                    client.shutdown(socket.SHUT_WR)
            except OSError:
                seen.client_end = "reset"
                break
            _look(client, seen)
    if len(upstream.connections) > known:
        theirs = upstream.connections[known]
        deadline = time.monotonic() + TIMEOUT_S
        while theirs.upstream_end == "open" and time.monotonic() < deadline:
            time.sleep(0.01)
        seen.upstream, seen.upstream_end = theirs.upstream, theirs.upstream_end
    else:
        seen.upstream_end = "never came"
    return seen


def _look(client: socket.socket, seen: Ends) -> None:
    client.settimeout(QUIET_S)
    while True:
        try:
            data = client.recv(1 << 16)
        except TimeoutError:
            return
        except OSError:
            seen.client_end = "reset"
            return
        if not data:
            seen.client_end = "fin"
            return
        seen.client += data


@dataclass(frozen=True)
class TcpStage:
    """The running whole."""

    proxy: envoy.Envoy
    sandbox: daemon.Daemon
    echo: Upstream
    greeter: Upstream
    policies: Path
    names: tuple[str, ...] = field(default=())

    def talk(self, listener: str, steps: Sequence[Step], *, greeting: bool = False) -> Ends:
        """Follow a script through a listener."""
        name = f"{listener}-greeted" if greeting else listener
        return converse(self.proxy.ports[name], self.greeter if greeting else self.echo, steps)


def plugin(guest: Guest, **more: Any) -> dict[str, Any]:
    """Return a plugin that may see what it could inside Envoy."""
    limits = {"cpu_per_call": "5s", "time_per_event": "1s", **more.pop("limits", {})}
    entry = guest.plugin(limits=limits, redact={"properties": {"source.address": "show"}}, **more)
    return {**entry, "vm": {**entry.get("vm", {}), "id": guest.name}}


@contextlib.contextmanager
def running(
    guests: Sequence[Guest],
    directory: Path,
    *,
    v8: bool = False,
    timeout_s: float = 2.5,
    plugins: Sequence[dict[str, Any]] = (),
    network: dict[str, Any] | None = None,
    listener: dict[str, Any] | None = None,
) -> Iterator[TcpStage]:
    """
    Run upstreams, sandboxd and Envoy for the length of a ``with`` block.

    Args:
        guests: each gets listeners.
        directory: empty.
        v8: Envoy's own filter too.
        timeout_s: how long Envoy waits for sandboxd.
        plugins: entries of the policy in place of `plugin` of each guest.
        network: further fields of the filter.
        listener: further fields of each listener.
    """
    policies = directory / "policies"
    policies.mkdir()
    entries = list(plugins) or [plugin(guest) for guest in guests]
    policy = {"tenant": TENANT, "isolation": {"pids": 2 * len(entries) + 16, "memory": "1GiB"}, "plugins": entries}
    (policies / f"{TENANT}.yaml").write_text(json.dumps(policy))
    echo, greeter = Upstream(), Upstream(GREETING)
    try:
        with daemon.running(policies, directory, config={"log": {"level": "info"}}) as sandbox:
            sandbox.expect_tenants()
            listeners = []
            for guest in guests:
                ours = network_ext_proc(
                    "sandboxd",
                    TENANT,
                    guest.name,
                    timeout_ns=int(timeout_s * 1e9),
                    attributes=ATTRIBUTES,
                    **(network or {}),
                )
                kinds = {"net": ours}
                if v8:
                    own = envoy_config.network_wasm(guest.name, guest.path, guest.configuration)
                    kinds["v8"] = own
                for kind, filter_ in kinds.items():
                    name = f"{kind}-{guest.name}"
                    for each, cluster in ((name, "echo"), (f"{name}-greeted", "greeter")):
                        listeners.append({**envoy_config.tcp_listener(each, [filter_], cluster), **(listener or {})})
            clusters = [
                envoy_config.tcp_cluster("echo", echo.port),
                envoy_config.tcp_cluster("greeter", greeter.port),
                envoy_config.grpc_cluster("sandboxd", sandbox.sockets),
            ]
            with envoy.running(envoy_config.bootstrap(listeners, clusters), directory) as proxy:
                yield TcpStage(proxy, sandbox, echo, greeter, policies, tuple(guest.name for guest in guests))
    finally:
        echo.close()
        greeter.close()
