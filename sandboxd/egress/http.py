"""
HTTP/1.1 to one upstream, by aiohttp.

Connections are kept between calls of the same tenant and upstream, and only there. Each is made to an address that the
guard has seen. Redirects are answers like any other; proxies, cookies and decompression do not exist.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

import aiohttp
from yarl import URL

from sandboxd.channel.pairs import Pair
from sandboxd.egress.budget import Lease
from sandboxd.egress.resolve import AddressRefusedError, GuardedResolver, Lookup
from sandboxd.egress.rules import HttpRequest
from sandboxd.policy.callouts import Method, Upstream
from sandboxd.supervisor.upstream_tls import Material, client_context

MAX_HEADER_LINE_BYTES = 16 * 1024
MAX_RESPONSE_HEADERS = 128
MAX_RESPONSE_HEADER_BYTES = 64 * 1024
KEPT_S = 15.0
_CHUNK_BYTES = 64 * 1024
_REPEATABLE = frozenset({Method.GET, Method.HEAD, Method.OPTIONS, Method.PUT, Method.DELETE})
_OF_THE_CONNECTION = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade"}
)


class CallFailedError(Exception):
    """
    No (whole) response came.

    Args:
        kind: a word for the counter.
        text: what a plugin and the log may see of it.
    """

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """A whole response."""

    headers: list[Pair]
    """With ``:status`` first; names in lower case."""
    body: bytes


class HttpUpstream:
    """
    Args:
        upstream: its policy, of scheme http or https.
        material: what its TLS needs.
        lookup: resolves names.
    """

    def __init__(self, upstream: Upstream, material: Material, lookup: Lookup) -> None:
        self._upstream = upstream
        self._origin = URL.build(scheme=upstream.scheme.value, host=upstream.host, port=upstream.port)
        guard = GuardedResolver(upstream.allow_addresses, lookup)
        connector = aiohttp.TCPConnector(
            resolver=guard,
            use_dns_cache=False,
            socket_factory=guard.socket_factory,
            limit=upstream.concurrency,
            keepalive_timeout=KEPT_S,
            ssl=client_context(material) if upstream.scheme.is_tls else True,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            max_line_size=MAX_HEADER_LINE_BYTES,
            max_field_size=MAX_HEADER_LINE_BYTES,
            max_headers=MAX_RESPONSE_HEADERS,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
            timeout=aiohttp.ClientTimeout(total=None),
        )
        # It would send what may be repeated a second time by itself. There is no public switch; a test holds it.
        self._session._retry_connection = False

    async def call(self, request: HttpRequest, lease: Lease) -> HttpResponse:
        """
        Send a request and wait for the whole response.

        Args:
            request: it.
            lease: pays for the response's body.

        Raises:
            CallFailedError: there is none within the policy's bounds; of kind ``timeout`` if its headers came in time
                and its end did not.
            AddressRefusedError: the upstream's name leads where it must not.
            BudgetSpentError: the tenant's calls hold too much.
            TimeoutError: its headers did not come in time.
        """
        deadline = asyncio.get_running_loop().time() + request.timeout_ms / 1000
        for _ in range(self._upstream.retries):
            try:
                return await self._once(request, lease, deadline)
            except CallFailedError as error:
                if error.kind != "connect" and not (error.kind == "reset" and request.method in _REPEATABLE):
                    raise
        return await self._once(request, lease, deadline)

    async def _once(self, request: HttpRequest, lease: Lease, deadline: float) -> HttpResponse:
        async with asyncio.timeout_at(deadline):
            response = await self._begin(request)
        try:
            async with asyncio.timeout_at(deadline), response:
                return await self._read(response, lease)
        except TimeoutError as error:
            raise CallFailedError("timeout", "the response did not end in time") from error

    async def _begin(self, request: HttpRequest) -> aiohttp.ClientResponse:
        """Send a request and wait for the response's headers."""
        path, _, query = request.target.partition("?")
        url = self._origin.with_path(path, encoded=True)
        if query:
            url = URL(f"{url}?{query}", encoded=True)
        try:
            return await self._session.request(
                request.method.value,
                url,
                headers=[*request.headers, ("Host", self._upstream.authority)],
                data=request.body or None,
                allow_redirects=False,
                server_hostname=self._upstream.tls.sni or None,
            )
        except AddressRefusedError:
            raise
        except aiohttp.ClientConnectorError as error:
            if isinstance(error.__cause__, AddressRefusedError):
                raise error.__cause__ from None
            raise CallFailedError("connect", "no connection") from error
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
            raise CallFailedError("reset", "the connection was reset") from error
        except (aiohttp.ClientError, ValueError) as error:
            raise CallFailedError("protocol", "no proper HTTP response") from error

    async def _read(self, response: aiohttp.ClientResponse, lease: Lease) -> HttpResponse:
        most = self._upstream.response_bytes
        if response.status < 200:  # 101: the upstream would go on in a protocol that nobody bounds
            raise CallFailedError("protocol", f"status {response.status}")
        if sum(len(name) + len(value) for name, value in response.raw_headers) > MAX_RESPONSE_HEADER_BYTES:
            raise CallFailedError("response_bytes", f"more than {MAX_RESPONSE_HEADER_BYTES} bytes of headers")
        body = bytearray()
        try:
            async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
                if len(body) + len(chunk) > most:
                    raise CallFailedError("response_bytes", f"a response of more than {most} bytes")
                lease.take(len(chunk))
                body += chunk
        except BaseException as error:
            response.close()  # what is left of it must not come to the next call
            lease.give(len(body))
            if isinstance(error, (aiohttp.ClientError, ValueError)):
                raise CallFailedError("cut", "the response ended early") from error
            raise
        headers = [(b":status", b"%d" % response.status), *_end_to_end(response.raw_headers)]
        return HttpResponse(headers, bytes(body))

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()


def _end_to_end(headers: Iterable[Pair]) -> list[Pair]:
    """Return headers, their names in lower case, without those that are for this connection alone (RFC 9110, 7.6.1)."""
    found = [(name.lower(), value) for name, value in headers]
    named = b",".join(value for name, value in found if name == b"connection").lower().split(b",")
    left_out = _OF_THE_CONNECTION.union(name.strip(b" \t") for name in named)
    return [(name, value) for name, value in found if name not in left_out]
