"""
Channels to plugins for Python programs, over the daemon's attach socket; see ``docs/client.md``.

Imports `sandboxd.channel`, `sandboxd.policy`, errors and limits, and nothing else of the project.
"""

from sandboxd.client.asgi import SandboxMiddleware
from sandboxd.client.connection import Address
from sandboxd.client.errors import AttachRefused, DaemonAway, ExchangeReset, PluginDown
from sandboxd.client.outcome import Outcome, Part
from sandboxd.client.session import AsyncSession, connect_async
from sandboxd.client.stream import AsyncStream
from sandboxd.client.sync import Connection, Session, Stream, connect
from sandboxd.client.tcp import AsyncConnection
from sandboxd.client.tcp_exchange import TcpOutcome

__all__ = [
    "Address",
    "AsyncConnection",
    "AsyncSession",
    "AsyncStream",
    "AttachRefused",
    "Connection",
    "DaemonAway",
    "ExchangeReset",
    "Outcome",
    "Part",
    "PluginDown",
    "SandboxMiddleware",
    "Session",
    "Stream",
    "TcpOutcome",
    "connect",
    "connect_async",
]
