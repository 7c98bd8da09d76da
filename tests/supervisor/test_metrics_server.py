"""The metrics' listener: what it answers, and that nobody can hold it up."""

from __future__ import annotations

import socket
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sandboxd.config import MetricsConfig
from sandboxd.errors import ConfigError
from sandboxd.supervisor.metrics_server import MAX_CONNECTIONS, MetricsServer

GET = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
BODY = b"sandboxd_info 1\n"


@pytest.fixture
def path() -> Iterator[Path]:
    """Return a path that is short enough for a Unix socket."""
    with tempfile.TemporaryDirectory(prefix="sbx") as directory:
        yield Path(directory) / "metrics.sock"


def connected(path: Path) -> socket.socket:
    """Return a connection."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(10)
    sock.connect(str(path))
    return sock


def ask(path: Path, request: bytes) -> bytes:
    """Return the whole answer."""
    with connected(path) as sock:
        if request:  # else the server may have closed it already
            sock.sendall(request)
        return b"".join(iter(lambda: sock.recv(65536), b""))


def running(path: Path, source: Callable[[], bytes] = lambda: BODY, deadline_s: float = 10.0) -> MetricsServer:
    """Return a server that listens."""
    server = MetricsServer(MetricsConfig(socket=path, socket_mode=0o640), source, deadline_s=deadline_s)
    server.start()
    return server


def test_answers(path: Path) -> None:
    server = running(path)
    try:
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        head, _, body = ask(path, GET).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        assert b"Content-Type: text/plain; version=0.0.4; charset=utf-8" in head
        assert body == BODY
        assert ask(path, b"HEAD /metrics?x=1 HTTP/1.1\r\n\r\n").endswith(b"\r\n\r\n")
        for request, status in (
            (b"GET / HTTP/1.1\r\n\r\n", b"404"),
            (b"GET /metrics/../x HTTP/1.1\r\n\r\n", b"404"),
            (b"POST /metrics HTTP/1.1\r\nContent-Length: 0\r\n\r\n", b"501"),
            (b"\x16\x03\x01\r\n\r\n", b"400"),
        ):
            assert status in ask(path, request)[:200], request
    finally:
        server.stop()
    assert not path.exists()


def test_a_daemon_that_does_not_answer(path: Path) -> None:
    def fails() -> bytes:
        raise TimeoutError

    server = running(path, fails)
    try:
        assert ask(path, GET).startswith(b"HTTP/1.1 503 ")
    finally:
        server.stop()


def test_slow_peers_are_ended_and_do_not_hold_up_others(path: Path) -> None:
    """Who sends a byte now and then, and who does not read, is gone after the deadline; then others are served."""
    server = running(path, lambda: b"x" * (8 << 20), deadline_s=1.0)
    try:
        slow = [connected(path) for _ in range(MAX_CONNECTIONS)]
        for sock in slow[:2]:
            sock.sendall(GET)  # and never read
        with connected(path) as extra:
            assert extra.recv(1) == b""  # one too many
        began_s = time.monotonic()
        gone = threading.Event()
        while not gone.is_set():
            assert time.monotonic() - began_s < 8
            try:
                for sock in slow[2:]:
                    sock.sendall(b"G")
            except OSError:
                gone.set()
            time.sleep(0.05)
        assert len(ask(path, GET)) > 8 << 20
        for sock in slow:
            sock.close()
    finally:
        server.stop()


def test_stop_ends_open_connections(path: Path) -> None:
    server = running(path)
    with connected(path) as sock:
        began_s = time.monotonic()
        time.sleep(0.1)
        server.stop()
        assert time.monotonic() - began_s < 4
        assert sock.recv(1) == b""


def test_loopback(unused_tcp_port: int) -> None:
    server = MetricsServer(MetricsConfig(host="127.0.0.1", port=unused_tcp_port), lambda: BODY)
    server.start()
    try:
        with socket.create_connection(("127.0.0.1", unused_tcp_port), 10) as sock:
            sock.sendall(GET)
            answer = b"".join(iter(lambda: sock.recv(65536), b""))
        assert answer.endswith(BODY)
        second = MetricsServer(MetricsConfig(host="127.0.0.1", port=unused_tcp_port), lambda: BODY)
        with pytest.raises(ConfigError, match=r"cannot listen on 127\.0\.0\.1"):
            second.start()
    finally:
        server.stop()


def test_a_socket_that_cannot_be_had(path: Path) -> None:
    path.write_text("a file")
    with pytest.raises(ConfigError, match="in the way"):
        running(path)
    with pytest.raises(ConfigError, match="cannot listen"):
        running(path.parent / "absent" / "metrics.sock")


def test_a_connection_that_gets_no_thread_leaves_its_place(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All places have been lost once; then there are threads again."""
    server = running(path)
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "scrape":
            raise RuntimeError("can't start new thread")
        start(thread)

    try:
        monkeypatch.setattr(threading.Thread, "start", refuse)
        assert [ask(path, b"") for _ in range(MAX_CONNECTIONS)] == [b""] * MAX_CONNECTIONS
        monkeypatch.undo()
        assert ask(path, GET).endswith(BODY)
    finally:
        server.stop()
