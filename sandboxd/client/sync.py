"""
Sessions for programs without a loop: the asyncio ones, run for the length of each call.

A session belongs to one thread, and to none that runs a loop of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Iterable, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

from sandboxd.channel.pairs import Pair
from sandboxd.client import attributes
from sandboxd.client.channel import LogSink
from sandboxd.client.outcome import Outcome
from sandboxd.client.session import AsyncSession, connect_async
from sandboxd.client.stream import AsyncStream
from sandboxd.client.tcp import PEER_UNKNOWN, AsyncConnection
from sandboxd.client.tcp_exchange import TcpOutcome
from sandboxd.errors import SandboxdError
from sandboxd.policy.model import FailurePolicy

_T = TypeVar("_T")


class Session:
    """A plugin of a tenant; made by `connect`. A context manager."""

    def __init__(self, loop: asyncio.AbstractEventLoop, session: AsyncSession) -> None:
        self._loop = loop
        self._session = session

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Run something to its end in the session's loop."""
        return self._loop.run_until_complete(work)

    @property
    def problem(self) -> SandboxdError | None:
        """Why the plugin cannot be reached now; None if it can."""
        self.run(asyncio.sleep(0))  # hear what the daemon has said meanwhile
        return self._session.problem

    def attach(self, timeout_s: float = 10.0) -> None:
        """Wait for a channel; see `AsyncSession.attach`."""
        self.run(self._session.attach(timeout_s))

    def open_stream(self, given: Mapping[attributes.Name, attributes.Value] | None = None) -> Stream:
        """Open a stream for one exchange; see `AsyncSession.open_stream`."""
        return Stream(self, self.run(self._open(given)))

    async def _open(self, given: Mapping[attributes.Name, attributes.Value] | None) -> AsyncStream:
        await asyncio.sleep(0)  # hear what the daemon has said meanwhile
        return await self._session.open_stream(given)

    def open_connection(
        self, given: Mapping[attributes.Name, attributes.Value] | None = None
    ) -> tuple[Connection, TcpOutcome]:
        """Open a TCP connection; see `AsyncSession.open_connection`."""
        connection, begun = self.run(self._open_connection(given))
        return Connection(self, connection), begun

    async def _open_connection(
        self, given: Mapping[attributes.Name, attributes.Value] | None
    ) -> tuple[AsyncConnection, TcpOutcome]:
        await asyncio.sleep(0)  # hear what the daemon has said meanwhile
        return await self._session.open_connection(given)

    def close(self) -> None:
        """Give the channel up."""
        if not self._loop.is_closed():
            self.run(self._session.close())
            self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Stream:
    """One exchange; made by `Session.open_stream`. See `AsyncStream` for each method."""

    def __init__(self, session: Session, stream: AsyncStream) -> None:
        self._session = session
        self._stream = stream

    def request_headers(self, pairs: Iterable[Pair], end_of_stream: bool = False) -> Outcome:
        """Show the request's headers to the plugin."""
        return self._session.run(self._stream.request_headers(pairs, end_of_stream))

    def request_body(self, data: bytes, end_of_stream: bool = False) -> Outcome:
        """Show a piece of the request's body."""
        return self._session.run(self._stream.request_body(data, end_of_stream))

    def request_trailers(self, pairs: Iterable[Pair]) -> Outcome:
        """Show the request's trailers."""
        return self._session.run(self._stream.request_trailers(pairs))

    def response_headers(self, pairs: Iterable[Pair], end_of_stream: bool = False) -> Outcome:
        """Show the response's headers."""
        return self._session.run(self._stream.response_headers(pairs, end_of_stream))

    def response_body(self, data: bytes, end_of_stream: bool = False) -> Outcome:
        """Show a piece of the response's body."""
        return self._session.run(self._stream.response_body(data, end_of_stream))

    def response_trailers(self, pairs: Iterable[Pair]) -> Outcome:
        """Show the response's trailers."""
        return self._session.run(self._stream.response_trailers(pairs))

    def close(self, *, reset: bool = False) -> None:
        """End the exchange: the plugin's last callbacks run."""
        self._session.run(self._close(reset))

    async def _close(self, reset: bool) -> None:
        self._stream.close(reset=reset)
        self._stream.flush()  # the loop's timer for it would not run before the next call


class Connection:
    """One TCP connection; made by `Session.open_connection`. See `AsyncConnection` for each method."""

    def __init__(self, session: Session, connection: AsyncConnection) -> None:
        self._session = session
        self._connection = connection

    def downstream_data(self, data: bytes, end_of_stream: bool = False) -> TcpOutcome:
        """Show bytes from downstream."""
        return self._session.run(self._connection.downstream_data(data, end_of_stream))

    def upstream_data(self, data: bytes, end_of_stream: bool = False) -> TcpOutcome:
        """Show bytes from upstream."""
        return self._session.run(self._connection.upstream_data(data, end_of_stream))

    def downstream_closed(self, peer: int = PEER_UNKNOWN) -> TcpOutcome:
        """Say that the connection to downstream is over."""
        return self._session.run(self._connection.downstream_closed(peer))

    def upstream_closed(self, peer: int = PEER_UNKNOWN) -> TcpOutcome:
        """Say that the connection to upstream is over."""
        return self._session.run(self._connection.upstream_closed(peer))

    def freed(self, timeout_s: float) -> TcpOutcome | None:
        """Wait until something else frees bytes, closes it or fails; None: nothing did in this time."""

        async def wait() -> TcpOutcome | None:
            with contextlib.suppress(TimeoutError):
                return await asyncio.wait_for(self._connection.freed(), timeout_s)
            return None

        return self._session.run(wait())

    def close(self, *, reset: bool = False) -> None:
        """End the connection: the plugin's last callbacks run."""
        self._session.run(self._close(reset))

    async def _close(self, reset: bool) -> None:
        self._connection.close(reset=reset)
        self._connection.flush()  # the loop's timer for it would not run before the next call


def connect(
    socket_path: str | Path,
    tenant: str,
    plugin: str = "",
    *,
    fallback: FailurePolicy | None = None,
    daemon_uid: int | None = None,
    log: LogSink | None = None,
    timeout_s: float = 10.0,
) -> Session:
    """Attach to a daemon; arguments and errors are those of `connect_async`."""
    loop = asyncio.new_event_loop()
    try:
        session = loop.run_until_complete(
            connect_async(
                socket_path, tenant, plugin, fallback=fallback, daemon_uid=daemon_uid, log=log, timeout_s=timeout_s
            )
        )
    except BaseException:
        loop.close()
        raise
    return Session(loop, session)
