"""The daemon whole, while it starts: what the operator and the service manager see then."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from sandboxd.errors import SandboxdError
from tests.support.daemon_client import ADD_HEADER, FakeDaemon, policy_text, wait_for
from tests.support.hanging_daemon import MARK


@contextlib.contextmanager
def starting_daemon(directory: Path, cache: Path, **more: Any) -> Iterator[FakeDaemon]:
    """Run a daemon of one tenant that listens for its operator, but does not serve yet."""
    (directory / "policies").mkdir()
    (directory / "policies" / "a.yaml").write_text(policy_text("alpha", ADD_HEADER))
    daemon = FakeDaemon(directory, cache, fronts=1, **more)
    try:
        wait_for((daemon.runtime / "admin.sock").exists, 30, "it listens for its operator")
        yield daemon
    finally:
        daemon.stop()


def test_a_reload_while_it_starts_comes_after_the_start(short_path: Path, artefact_cache: Path) -> None:
    """The tenant that came meanwhile is started, once, and stays."""
    with starting_daemon(short_path, artefact_cache) as daemon:
        (daemon.policies / "late.yaml").write_text(policy_text("late", ADD_HEADER))
        daemon.process.send_signal(signal.SIGHUP)
        assert " ready: " not in daemon.log, "too late for this test"
        results = daemon.reload()

        assert {name: result["error"] for name, result in results.items()} == {"alpha": "", "late": ""}
        lines = daemon.log.splitlines()
        ready = next(number for number, line in enumerate(lines) if " ready: " in line)
        assert not [line for line in lines[:ready] if "late" in line]
        assert "removed" not in daemon.log
        assert daemon.serves("late main")
        assert daemon.serves("alpha main")


def test_a_reload_that_waits_for_the_start_does_not_hold_up_the_end(short_path: Path, artefact_cache: Path) -> None:
    """The operator is told, and nothing is in the log that looks like a fault."""
    with starting_daemon(short_path, artefact_cache) as daemon:
        told: list[SandboxdError] = []

        def reload() -> None:
            try:
                daemon.reload()
            except SandboxdError as error:
                told.append(error)

        thread = threading.Thread(target=reload)
        thread.start()
        assert daemon.stop() == 0
        thread.join(10)
        assert not thread.is_alive()
        assert len(told) == 1
        assert "Traceback" not in daemon.log, daemon.log


def compilers_of(daemon: FakeDaemon) -> list[psutil.Process]:
    """Return the compilers that hang."""
    found = []
    for child in psutil.Process(daemon.process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has ended meanwhile
            found += [child] if child.cmdline()[-1:] == [MARK] else []
    return found


def test_compilers_that_hang_hold_up_neither_the_service_manager_nor_the_end(short_path: Path) -> None:
    """The start's time is extended while it goes on; SIGTERM ends the compilers, and then the daemon."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(short_path / "notify"))
        sock.settimeout(30)
        environment = {"NOTIFY_SOCKET": str(short_path / "notify")}
        more = {"environment": environment, "program": "tests.support.hanging_daemon"}
        with starting_daemon(short_path, short_path / "cache", **more) as daemon:
            wait_for(lambda: bool(compilers_of(daemon)), 30, "it compiles")
            compilers = compilers_of(daemon)
            said = [sock.recv(1000) for _ in range(3)]

            start_s = time.monotonic()
            assert daemon.stop() == 0

            assert time.monotonic() - start_s < 8
            assert said == [b"EXTEND_TIMEOUT_USEC=300000"] * 3
            _, alive = psutil.wait_procs(compilers, timeout=0)
            assert alive == []
            assert "Traceback" not in daemon.log, daemon.log
            assert "left behind" not in daemon.log
