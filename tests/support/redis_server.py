"""
Debian's Redis server for the tests: ``python -m tests.support.redis_server`` fetches it into ``build/redis`` with
``apt-get download``, without privilege; one in the path is used as it is. Where neither is to be had the tests that
need it are skipped, and both this program and pytest's summary say so.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

FOLDER: Final = Path(__file__).parents[2] / "build/redis"
PACKAGES: Final = ("redis-server", "redis-tools", "libjemalloc2", "liblzf1", "liblua5.1-0", "libatomic1")
MISSING: Final = "there is no Redis server to test with: run python -m tests.support.redis_server"


def command() -> tuple[list[str], dict[str, str]]:
    """
    Return the server's command and environment.

    Raises:
        FileNotFoundError: there is none.
    """
    if found := shutil.which("redis-server") or shutil.which("valkey-server"):
        return [found], dict(os.environ)
    binary = FOLDER / "usr/bin/redis-server"
    if not binary.exists():
        raise FileNotFoundError(MISSING)
    libraries = ":".join(str(path) for path in (FOLDER / "usr/lib").glob("*-linux-gnu"))
    return [str(binary)], {**os.environ, "LD_LIBRARY_PATH": libraries}


class Server:
    """A server on a port of its own, with what it has in memory alone unless it is told to save."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """As in a policy."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it, and wait until it answers; what was written before is there again."""
        binary, environment = command()
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._directory)]
        options += ["--appendonly", "yes", "--appendfsync", "always", "--save", ""]
        log = (self._directory / "redis.log").open("ab")
        with log:
            self.process = subprocess.Popen([*binary, *options], env=environment, stdout=log, stderr=log)
        deadline_s = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as sock:
                sock.sendall(b"PING\r\n")
                if sock.recv(64).startswith(b"+PONG"):
                    return
            assert time.monotonic() < deadline_s, (self._directory / "redis.log").read_text()
            assert self.process.poll() is None, (self._directory / "redis.log").read_text()
            time.sleep(0.05)

    def stop(self) -> None:
        """End it at once."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@contextlib.contextmanager
def redis_server(directory: Path) -> Iterator[Server]:
    """A running server for the length of a ``with`` block; skips the test, with the reason, if there is none."""
    try:
        command()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    server = Server(directory)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def install() -> int:
    """Fetch it, unless there is one."""
    with contextlib.suppress(FileNotFoundError):
        command()
        return 0
    FOLDER.mkdir(parents=True, exist_ok=True)
    try:
        try:
            _fetch([])
        except subprocess.CalledProcessError:  # the machine's lists of packages are missing or old: have our own
            for part in ("lists/partial", "cache/archives/partial"):
                (FOLDER / part).mkdir(parents=True, exist_ok=True)
            own = ["-o", f"Dir::State::Lists={FOLDER}/lists", "-o", f"Dir::Cache={FOLDER}/cache"]
            _run(["apt-get", *own, "update"])
            _fetch(own)
        for archive in FOLDER.glob("*.deb"):
            _run(["dpkg", "-x", str(archive), str(FOLDER)])
        command()
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        print(f"NOT RUN: the tests against a real Redis server, for there is none to be had: {said}", file=sys.stderr)
        return 1
    return 0


def _fetch(options: list[str]) -> None:
    for package in PACKAGES:
        try:
            _run(["apt-get", *options, "download", package])
        except subprocess.CalledProcessError:
            if package in PACKAGES[:2]:
                raise
            # the other distribution's name of a library, or one that is installed anyway


def _run(command_line: list[str]) -> None:
    subprocess.run(command_line, cwd=FOLDER, check=True, capture_output=True, text=True, timeout=300)


if __name__ == "__main__":
    sys.exit(install())
