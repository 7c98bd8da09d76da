"""
Names to addresses that may be reached. The answer is what the connection is made to: nobody resolves a second time.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from typing import Any, TypeAlias

from aiohttp.abc import AbstractResolver, ResolveResult

from sandboxd.egress.ssrf import refusal
from sandboxd.policy.callouts import Network

Lookup: TypeAlias = Callable[[str, int], Awaitable[list[str]]]
"""Host and port to addresses in text; raises OSError."""

MAX_ADDRESSES = 16


class AddressRefusedError(OSError):
    """The name leads nowhere that the policy allows."""


LOOKUP_THREADS = 64
LOOKUPS_AT_ONCE = 4
"""Of one tenant: its slow names must not take all threads."""


class SystemLookup:
    """The system's resolver, in threads; one object for each tenant, all with the same threads."""

    _threads = ThreadPoolExecutor(LOOKUP_THREADS, thread_name_prefix="lookup")

    def __init__(self) -> None:
        self._room = asyncio.Semaphore(LOOKUPS_AT_ONCE)

    async def __call__(self, host: str, port: int) -> list[str]:
        """Return the addresses; raises OSError."""
        await self._room.acquire()
        future = asyncio.get_running_loop().run_in_executor(self._threads, _addresses, host, port)
        # Who asked may give up; the thread is taken until the resolver does.
        future.add_done_callback(self._done)
        return await asyncio.shield(future)

    def _done(self, future: asyncio.Future[list[str]]) -> None:
        self._room.release()
        if not future.cancelled():
            future.exception()  # whoever waits gets it; if nobody does, that is no news


def _addresses(host: str, port: int) -> list[str]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError as error:
        raise OSError(str(error)) from None
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def check_address(text: str, allowed: tuple[Network, ...]) -> None:
    """
    Check one address at the last moment before a socket is made for it.

    Raises:
        AddressRefusedError: it must not be reached.
    """
    address = ip_address(text)
    if why := refusal(address, allowed):
        raise AddressRefusedError(f"{address} is refused: {why}")


class GuardedResolver(AbstractResolver):
    """
    Args:
        allowed: networks that the upstream's policy names.
        lookup: the system's resolver, or a test's.
    """

    def __init__(self, allowed: tuple[Network, ...], lookup: Lookup) -> None:
        self._allowed = allowed
        self._lookup = lookup

    async def addresses(self, host: str, port: int) -> list[str]:
        """
        Return the addresses of a host, or of an address in text, that may be reached; at least one.

        Raises:
            AddressRefusedError: there are some, but none that may be.
            OSError: there are none.
        """
        try:
            found = [str(ip_address(host))]
        except ValueError:
            found = (await self._lookup(host, port))[:MAX_ADDRESSES]
        if not found:
            raise OSError(f"{host} has no address")
        good: list[str] = []
        first: AddressRefusedError | None = None
        for text in found:
            try:
                check_address(text, self._allowed)
                good.append(text)
            except AddressRefusedError as error:
                first = first or error
        if first is not None and not good:
            raise first
        return good

    async def resolve(
        self,
        host: str,
        port: int = 0,
        family: socket.AddressFamily = socket.AF_INET,  # noqa: ARG002  (aiohttp's)
    ) -> list[ResolveResult]:
        """As aiohttp asks."""
        return [
            ResolveResult(
                hostname=host,
                host=text,
                port=port,
                family=socket.AF_INET6 if ":" in text else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for text in await self.addresses(host, port)
        ]

    async def close(self) -> None:
        """Nothing is held."""

    def socket_factory(self, address_info: Any) -> socket.socket:
        """Make the socket for one address, as aiohttp asks; the last look at where it goes."""
        family, kind, protocol, _, place = address_info
        check_address(str(place[0]), self._allowed)
        return socket.socket(family, kind, protocol)
