"""
The socket where Prometheus reads metrics: ``GET /metrics``, and nothing else.

Lives in threads of its own, so that no scraper can hold up the daemon's loop. Connections are counted, and each has a
time in which it must be over, however slowly its peer sends or reads.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import socketserver
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Final

from sandboxd.config import MetricsConfig
from sandboxd.errors import ConfigError
from sandboxd.supervisor.metrics_text import CONTENT_TYPE
from sandboxd.supervisor.rundir import remove_dead_socket

_log = logging.getLogger(__name__)

MAX_CONNECTIONS: Final = 8
"""At one time; a further one is closed at once."""
SILENCE_S: Final = 5.0
"""Longest wait for a peer to send or read something."""
DEADLINE_S: Final = 10.0
"""Longest life of a connection."""
_LOOK_S: Final = 0.25

Source = Callable[[], bytes]
"""Returns the text; TimeoutError if it cannot be had now."""


class MetricsServer:
    """
    Args:
        config: where to listen.
        source: makes the text; called in a connection's thread.
        deadline_s: longest life of a connection.
    """

    def __init__(self, config: MetricsConfig, source: Source, *, deadline_s: float = DEADLINE_S) -> None:
        self._config = config
        self._source = source
        self._deadline_s = deadline_s
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """
        Listen.

        Raises:
            ConfigError: the socket cannot be had.
        """
        config = self._config
        where = str(config.socket) if config.socket else f"{config.host}:{config.port}"
        try:
            self._server = self._listen()
        except OSError as error:
            raise ConfigError(f"cannot listen on {where}: {error.strerror}", key="metrics.listen") from None
        self._thread = threading.Thread(target=self._server.serve_forever, args=(_LOOK_S,), name="metrics", daemon=True)
        self._thread.start()
        _log.info("metrics are served on %s", where)

    def _listen(self) -> _Server:
        config = self._config
        if config.socket is None:
            family, *_, address = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)[0]
            return _Server(family, address, self._source, self._deadline_s)
        remove_dead_socket(config.socket)
        return _Server(socket.AF_UNIX, str(config.socket), self._source, self._deadline_s, config.socket_mode)

    def stop(self) -> None:
        """Listen no more and end all connections; takes a moment at most."""
        if self._server is None or self._thread is None:
            return
        self._server.shutdown()
        self._server.server_close()
        self._server.end_all()
        self._thread.join()
        self._server = None
        if self._config.socket is not None:
            self._config.socket.unlink(missing_ok=True)


class _Server(socketserver.TCPServer):
    allow_reuse_address = True
    request_queue_size = 2 * MAX_CONNECTIONS

    def __init__(self, family: int, address: Any, source: Source, deadline_s: float, mode: int | None = None) -> None:
        self.address_family = family
        self._mode = mode
        self.source = source
        self._deadline_s = deadline_s
        self._lock = threading.Lock()
        self._open: dict[socket.socket, float] = {}
        """When each connection has to be over."""
        super().__init__(address, _Handler)

    def server_activate(self) -> None:
        """Listen; before that nobody can connect, so a Unix socket's mode is right from the first moment."""
        if self._mode is not None:
            Path(str(self.server_address)).chmod(self._mode)
        super().server_activate()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection in a thread of its own, if there are not too many."""
        with self._lock:
            full = len(self._open) >= MAX_CONNECTIONS
            if not full:
                self._open[request] = time.monotonic() + self._deadline_s
        if full:
            self.shutdown_request(request)
            return
        thread = threading.Thread(target=self._serve, args=(request, client_address), name="scrape", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # there are too many threads
            _log.warning("a connection to the metrics is closed: %s", error)
            self._forget(request)

    def _serve(self, request: socket.socket, client_address: Any) -> None:
        try:
            self.finish_request(request, client_address)
        except OSError as error:  # the peer left, or its time was over
            _log.debug("a connection to the metrics ended: %s", error)
        finally:
            self._forget(request)

    def _forget(self, request: socket.socket) -> None:
        with self._lock:
            self._open.pop(request, None)
        self.shutdown_request(request)

    def service_actions(self) -> None:
        """Called every `_LOOK_S`: end the connections whose time is over."""
        self._end(time.monotonic())

    def end_all(self) -> None:
        """End every connection."""
        self._end(float("inf"))

    def _end(self, now_s: float) -> None:
        with self._lock:
            overdue = [sock for sock, until_s in self._open.items() if until_s <= now_s]
            for sock in overdue:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = SILENCE_S
    protocol_version = "HTTP/1.1"
    server_version = "sandboxd"
    sys_version = ""

    def do_GET(self) -> None:
        """Answer a scrape."""
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        """Answer what a GET would, without the body."""
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        self.close_connection = True
        if self.path.partition("?")[0] != "/metrics":
            self.send_error(HTTPStatus.NOT_FOUND, explain="/metrics is all there is")
            return
        try:
            body = self.server.source()
        except (TimeoutError, CancelledError, RuntimeError):  # the loop is busy, or ends
            self.send_error(HTTPStatus.SERVICE_UNAVAILABLE)
            return
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", CONTENT_TYPE)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: scrapes are no news."""
