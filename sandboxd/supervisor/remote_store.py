"""
A tenant's shared data in Valkey or Redis, for several machines that serve one tenant.

Each value is a hash of two fields, ``v`` and ``c``: the bytes, and a compare-and-swap number that the server counts up.
Comparing and setting is one script on the server, so it is decided there, for all machines alike.
"""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path
from typing import Final

import redis.asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from sandboxd.errors import WorkerError
from sandboxd.log import one_line
from sandboxd.policy.model import SharedBackend
from sandboxd.supervisor.questions import GET, INTERNAL_FAILURE, MAX_VALUE_BYTES, NOT_FOUND, OK, Question, answer

_log = logging.getLogger(__name__)

AWAY_S: Final = 1.0
"""After a failure nothing is asked for so long: callers get their answer at once instead of a time-out each."""

_SET_SCRIPT: Final = """
local now = tonumber(redis.call('HGET', KEYS[1], 'c') or '0')
local asked = tonumber(ARGV[2])
if now ~= 0 and asked ~= 0 and now ~= asked then return {8, now} end
local fresh = now % 4294967295 + 1
redis.call('HSET', KEYS[1], 'v', ARGV[1], 'c', fresh)
return {0, fresh}
"""

# Whoever has put something else there, the supervisor does not take more of it than it can use.
_GET_SCRIPT: Final = """
local longest = tonumber(ARGV[1])
if redis.call('HSTRLEN', KEYS[1], 'v') > longest or redis.call('HSTRLEN', KEYS[1], 'c') > 20 then
  return {false, false}
end
return redis.call('HMGET', KEYS[1], 'v', 'c')
"""


class RemoteStore:
    """
    One tenant's store. For the supervisor's loop.

    Args:
        tenant: whose it is; part of every key.
        backend: where it is.

    Raises:
        WorkerError: the password cannot be read.
    """

    def __init__(self, tenant: str, backend: SharedBackend) -> None:
        self._prefix = f"sandboxd:{tenant}:".encode()
        self._tenant = tenant
        self._timeout_s = backend.timeout_ms / 1000
        password = _password(backend.password_file) if backend.password_file else None
        self._client = redis.from_url(
            backend.url,
            password=password,
            socket_timeout=self._timeout_s,
            socket_connect_timeout=self._timeout_s,
            max_connections=64,
            retry=Retry(NoBackoff(), 1),  # of a connection that the server has closed meanwhile
        )
        self._get = self._client.register_script(_GET_SCRIPT)
        self._set = self._client.register_script(_SET_SCRIPT)
        self._away_until_s = 0.0
        self._is_away = False
        self.asked = 0
        self.failed = 0
        """Questions that the store did not answer; the guest got INTERNAL_FAILURE."""

    async def ask(self, vm_id: str, question: Question) -> bytes:
        """Return the answer, in bounded time; ``vm_id``: Proxy-Wasm's, of the plugin."""
        self.asked += 1
        if time.monotonic() < self._away_until_s:
            self.failed += 1
            return answer(INTERNAL_FAILURE)
        scope = vm_id.encode()
        place = self._prefix + str(len(scope)).encode() + b":" + scope + b":" + question.key
        try:
            async with asyncio.timeout(self._timeout_s):
                found = await (
                    self._read(place) if question.kind == GET else self._write(place, question.value, question.cas)
                )
        except (RedisError, OSError, TimeoutError, ValueError, TypeError, RecursionError) as error:
            # The last three: an answer of another form than ours, that somebody else has put there.
            self._gone(error)
            return answer(INTERNAL_FAILURE)
        if self._is_away:
            self._is_away = False
            _log.warning("tenant %s: the store of its shared data is back", self._tenant)
        return found

    async def _read(self, place: bytes) -> bytes:
        value, cas = await self._get(keys=[place], args=[MAX_VALUE_BYTES])
        if value is None or cas is None or len(value) > MAX_VALUE_BYTES:
            return answer(NOT_FOUND)
        return answer(OK, int(cas), bytes(value))

    async def _write(self, place: bytes, value: bytes, cas: int) -> bytes:
        status, number = await self._set(keys=[place], args=[value, cas])
        return answer(int(status), int(number))

    def _gone(self, error: Exception) -> None:
        self.failed += 1
        self._away_until_s = time.monotonic() + AWAY_S
        if not self._is_away:
            self._is_away = True
            reason = one_line(str(error) or type(error).__name__, 300)
            _log.error("tenant %s: the store of its shared data is away: %s", self._tenant, reason)

    async def close(self) -> None:
        """Give its connections back."""
        await self._client.aclose()


def _password(file: Path) -> str:
    try:
        return file.read_text("utf-8").strip()
    except OSError as error:
        raise WorkerError(f"shared.backend.password_file: {file} cannot be read: {error.strerror}") from None
    except ValueError:
        raise WorkerError(f"shared.backend.password_file: {file} is not UTF-8") from None
