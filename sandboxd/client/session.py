"""
Sessions: a plugin of a tenant, kept at hand for an asyncio program whatever becomes of workers, versions and daemon.

One session belongs to one loop. It has one channel, and attaches again, when the next stream is opened, after the
channel is gone or another version of the plugin serves.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from sandboxd.channel.attach_wire import RefusalCode
from sandboxd.client import attributes, compiled
from sandboxd.client.channel import Channel, LogSink
from sandboxd.client.connection import Address, Connection, State
from sandboxd.client.errors import AttachRefused, DaemonAway
from sandboxd.client.stream import AsyncStream
from sandboxd.client.tcp import AsyncConnection
from sandboxd.client.tcp_exchange import TcpOutcome
from sandboxd.errors import PeerError, SandboxdError, WorkerError
from sandboxd.policy.failure import Cause
from sandboxd.policy.model import FailurePolicy, OnFailure

_log = logging.getLogger(__name__)
_RETRY_S = 0.2
"""Between two tries to reach a daemon."""


class AsyncSession:
    """
    See the module. Prefer `connect_async`, which waits for the first channel.

    Args:
        address: what is wanted.
        fallback: what failure means while the daemon is away; while it is there, the plugin's own policy decides.
        log: takes the plugin's log lines; None: `logging`.
        attach_timeout_s: how long a new stream waits for the daemon's answer.
    """

    def __init__(
        self,
        address: Address,
        *,
        fallback: FailurePolicy | None = None,
        log: LogSink | None = None,
        attach_timeout_s: float = 1.0,
    ) -> None:
        self._address = address
        self._fallback = fallback or FailurePolicy()
        self._log = log or self._to_logging
        self._attach_timeout_s = attach_timeout_s
        self._current: Connection | None = None
        self._next: Connection | None = None
        """Asks for a channel while `_current` drains."""
        self._old: set[Connection] = set()
        self._next_try_s = 0.0
        self._problem: SandboxdError = DaemonAway("not tried yet")
        self._closed = False

    @property
    def problem(self) -> SandboxdError | None:
        """Why the plugin cannot be reached now; None if it can."""
        current = self._current
        if current is not None and current.channel is not None and current.channel.ready:
            return None
        return current.problem if current is not None else self._problem

    async def attach(self, timeout_s: float = 10.0) -> None:
        """
        Wait for a channel.

        Raises:
            PeerError: the daemon refuses, or is not who it should be (`AttachRefused` has the code).
            WorkerError: nobody serves the socket, or no VM runs, in this time.
        """
        deadline_s = time.monotonic() + timeout_s
        while True:
            connection = self._connection()
            if connection is not None:
                await connection.wait(deadline_s - time.monotonic(), attached=True)
                if connection.channel is not None and not connection.channel.closed:
                    await connection.channel.wait_ready(deadline_s - time.monotonic())
                if self.problem is None:
                    return
            problem = connection.problem if connection is not None else self._problem
            if isinstance(problem, PeerError) or time.monotonic() >= deadline_s:
                raise problem
            await asyncio.sleep(min(0.05, max(deadline_s - time.monotonic(), 0)))

    async def open_stream(self, given: Mapping[attributes.Name, attributes.Value] | None = None) -> AsyncStream:
        """
        Open a stream for one exchange, without fail: if the plugin cannot be reached, failure policy answers it.

        Args:
            given: attributes, by path (``request.id``, or a tuple of segments); the policy hides some.
        """
        return AsyncStream(*await self._opened(given))

    async def open_connection(
        self, given: Mapping[attributes.Name, attributes.Value] | None = None
    ) -> tuple[AsyncConnection, TcpOutcome]:
        """Open a TCP connection, as `open_stream`; returns what the plugin makes of its beginning too."""
        connection = AsyncConnection(*await self._opened(given))
        return connection, await connection.begin()

    async def _opened(
        self, given: Mapping[attributes.Name, attributes.Value] | None
    ) -> tuple[compiled.Compiled, Channel | None, bytes, Cause | None]:
        """Return the policy, the channel if there is one, the encoded attributes, and why there is no channel."""
        if self._closed:
            raise DaemonAway("the session was closed")
        connection = self._connection()
        if connection is not None:
            await connection.wait(self._attach_timeout_s, attached=False)
        channel = connection.channel if connection is not None else None
        if channel is not None and not channel.ready and _on_its_way(channel):
            await channel.wait_ready(channel.policy.limits.time_per_event_ns / 1e9)
        if channel is not None and not channel.closed:
            encoded = b""
            if given and channel.policy.needs.properties:
                encoded = attributes.properties(given, channel.policy.redactor)
            return channel.policy, channel, encoded, None
        policy = connection.policy if connection is not None and connection.state is State.DOWN else None
        if policy is None:
            policy = compiled.without_policy(self._address.tenant, self._address.plugin, self._fallback)
        return policy, None, b"", self._cause(connection)

    def _cause(self, connection: Connection | None) -> Cause:
        problem = connection.problem if connection is not None else self._problem
        if isinstance(problem, AttachRefused) and problem.code in (RefusalCode.UNKNOWN, RefusalCode.FORBIDDEN):
            return Cause.UNKNOWN_PLUGIN  # never fail open on it
        return Cause.VM_DOWN

    # --- connections ---

    def _connection(self) -> Connection | None:
        """Return the connection for new streams; None: the daemon is away and it is too early to try again."""
        self._let_old_go()
        current = self._current
        if current is None or current.state is State.CLOSED:
            self._current, self._next = self._next, None
            if self._current is None or self._current.state is State.CLOSED:
                # What the last one ended with is of use until there is another.
                self._current = self._connect() or current
        elif current.state is State.DRAINING and self._next is None:
            if current.channel is not None and not current.channel.streams:
                current.close()  # a plugin may have few channels
                self._current = self._connect() or current
            else:
                self._next = self._connect()
        return self._current

    def _connect(self) -> Connection | None:
        now_s = time.monotonic()
        if now_s < self._next_try_s:
            return None
        self._next_try_s = now_s + _RETRY_S
        try:
            return Connection(self._address, self._log, self._changed)
        except (WorkerError, PeerError) as error:
            if str(error) != str(self._problem):
                _log.warning("%s", error)
            self._problem = error
            return None

    def _changed(self, connection: Connection) -> None:
        if connection.state is State.ATTACHED:
            self._next_try_s = 0.0
            if connection is self._next:
                if self._current is not None and self._current.state is not State.CLOSED:
                    self._old.add(self._current)
                self._current, self._next = connection, None
        elif connection.state is State.CLOSED:
            self._old.discard(connection)
            if connection is self._next:
                self._next = None
            if not self._closed and connection is self._current:
                _log.info("%s", connection.problem)
                self._problem = connection.problem

    def _let_old_go(self) -> None:
        for connection in list(self._old):
            if connection.channel is None or not connection.channel.streams:
                connection.close()

    def _to_logging(self, level: int, text: str) -> None:
        _log.log(level, "%s/%s: %s", self._address.tenant, self._address.plugin, text)

    # --- end ---

    async def close(self) -> None:
        """Give all channels up; streams that are open get their failure policy's answer."""
        self._closed = True
        for connection in (self._current, self._next, *self._old):
            if connection is not None:
                connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def _on_its_way(channel: Channel) -> bool:
    return channel.starting or channel.policy.failure.policy is OnFailure.RELOAD


async def connect_async(
    socket_path: str | Path,
    tenant: str,
    plugin: str = "",
    *,
    fallback: FailurePolicy | None = None,
    daemon_uid: int | None = None,
    log: LogSink | None = None,
    timeout_s: float = 10.0,
) -> AsyncSession:
    """
    Attach to a daemon.

    Args:
        socket_path: its attach socket.
        tenant: the tenant's name.
        plugin: the plugin's; empty: the tenant's only one.
        fallback: see `AsyncSession`.
        daemon_uid: user that must own the other end; None: whoever the socket's permissions let in.
        log: takes the plugin's log lines.
        timeout_s: how long to wait for the first channel.

    Raises:
        PeerError: the daemon refuses, or is not who it should be.
        WorkerError: nobody serves the socket, or no VM runs, in this time.
    """
    address = Address(Path(socket_path), tenant, plugin, daemon_uid)
    session = AsyncSession(address, fallback=fallback, log=log)
    try:
        await session.attach(timeout_s)
    except BaseException:
        await session.close()
        raise
    return session
