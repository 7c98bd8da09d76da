"""
The operator's socket (``admin.proto``): one request and one answer per connection.

Whoever can open the socket is the operator; its mode is 0600. What comes in is still bounded in size and
time.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from sandboxd.config import DaemonConfig
from sandboxd.errors import ConfigError, SandboxdError, WorkerError
from sandboxd.protos import admin_pb2 as admin
from sandboxd.supervisor.rundir import ADMIN_SOCKET_NAME, remove_dead_socket

_log = logging.getLogger(__name__)

_LENGTH = struct.Struct("<I")
MAX_REQUEST_BYTES = 4096
MAX_RESPONSE_BYTES = 64 * 1024 * 1024
REQUEST_TIMEOUT_S = 5.0

Handler = Callable[[admin.AdminRequest], Awaitable[dict[str, Any]]]
"""Returns the answer's JSON; raises `SandboxdError` for a request that cannot be met."""


class AdminServer:
    """
    Args:
        path: of the socket; a dead one is replaced.
        handler: does what is asked.
    """

    def __init__(self, path: Path, handler: Handler) -> None:
        self._path = path
        self._handler = handler
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """
        Listen.

        Raises:
            ConfigError: the socket cannot be made.
        """
        remove_dead_socket(self._path)
        before = os.umask(0o177)  # the mode must be right from the first moment
        try:
            self._server = await asyncio.start_unix_server(self._serve, str(self._path))
        except OSError as error:
            raise ConfigError(f"cannot listen: {error.strerror}", path=str(self._path)) from None
        finally:
            os.umask(before)

    async def stop(self) -> None:
        """Listen no more."""
        if self._server is not None:
            self._server.close()
            self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                request = await _read_request(reader)
            _write(writer, await self._answer(request))
            await writer.drain()
        except asyncio.CancelledError:
            # Only the end of the event loop cancels. Not raised again: Python 3.11 would log it as an error.
            _write(writer, admin.AdminResponse(ok=False, error="the daemon ends"))
        except (OSError, EOFError, TimeoutError, ValueError, DecodeError) as error:
            _log.debug("a request on the admin socket was dropped: %s", error)
        finally:
            writer.close()

    async def _answer(self, request: admin.AdminRequest) -> admin.AdminResponse:
        try:
            body = await self._handler(request)
        except SandboxdError as error:
            return admin.AdminResponse(ok=False, error=str(error))
        except Exception:
            _log.exception("a request on the admin socket failed")
            return admin.AdminResponse(ok=False, error="internal error; see the daemon's log")
        return admin.AdminResponse(ok=True, body_json=json.dumps(body))


def _write(writer: asyncio.StreamWriter, response: admin.AdminResponse) -> None:
    data = response.SerializeToString()
    writer.write(_LENGTH.pack(len(data)) + data)


async def _read_request(reader: asyncio.StreamReader) -> admin.AdminRequest:
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    if length > MAX_REQUEST_BYTES:
        raise ValueError(f"a request of {length} bytes")
    return admin.AdminRequest.FromString(await reader.readexactly(length))


def admin_socket(config: DaemonConfig) -> Path:
    """Return the operator's socket of the daemon with this configuration."""
    return config.runtime_directory / ADMIN_SOCKET_NAME


def call(path: Path, request: admin.AdminRequest, timeout_s: float) -> dict[str, Any]:
    """
    Ask the daemon, from another process; blocks.

    Raises:
        ConfigError: no daemon listens there, or we may not talk to it.
        WorkerError: the daemon refused, with its reason; or it did not answer.
    """
    data = request.SerializeToString()
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(timeout_s)
            sock.connect(str(path))
            sock.sendall(_LENGTH.pack(len(data)) + data)
            (length,) = _LENGTH.unpack(_read_exactly(sock, _LENGTH.size))
            if length > MAX_RESPONSE_BYTES:
                raise WorkerError("the daemon's answer is too long")
            response = admin.AdminResponse.FromString(_read_exactly(sock, length))
    except TimeoutError:
        raise WorkerError(f"the daemon did not answer in {timeout_s:.0f} seconds") from None
    except (FileNotFoundError, ConnectionRefusedError):
        raise ConfigError("no sandboxd listens there: is it running?", path=str(path)) from None
    except (OSError, EOFError) as error:
        raise ConfigError(f"cannot talk to the daemon: {error}", path=str(path)) from None
    if not response.ok:
        raise WorkerError(response.error)
    body = json.loads(response.body_json)
    assert isinstance(body, dict)
    return body


def _read_exactly(sock: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        piece = sock.recv(min(65536, count - len(data)))
        if not piece:
            raise EOFError("the connection ended early")
        data += piece
    return bytes(data)
