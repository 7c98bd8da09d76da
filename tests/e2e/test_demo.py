"""`python -m sandboxd.demo`, as a user runs it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytestmark = [pytest.mark.long, pytest.mark.envoy, pytest.mark.timeout(180)]

ROOT = Path(__file__).resolve().parents[2]


def demo(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Start the demo in a session of its own."""
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "sandboxd.demo", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_the_tour_goes_as_it_should() -> None:
    """Exit code 0, every finding ok, no colour in a pipe."""
    with demo("--once", "--port", "0") as process:
        output, errors = process.communicate(timeout=150)

    assert process.returncode == 0, output + errors
    assert "All as it should be." in output
    assert "NOT SO" not in output
    assert output.count("   ok  ") >= 15
    assert "\x1b[" not in output
    assert errors == ""


def read_until(process: subprocess.Popen[str], pattern: str) -> re.Match[str]:
    """Read the demo's output up to a line that fits."""
    assert process.stdout is not None
    for line in process.stdout:
        if match := re.search(pattern, line):
            return match
    raise AssertionError(f"the demo ended without a line like {pattern}")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_stays_until_the_user_ends_it(number: signal.Signals) -> None:
    """The shown URL works for curl; one signal ends everything, with exit code 0 and no process left."""
    with demo("--port", "0") as process:
        port = int(read_until(process, r"^  curl .*127\.0\.0\.1:(\d+)/shop/")[1])
        read_until(process, "Ctrl-C")
        family = psutil.Process(process.pid).children(recursive=True)
        with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
            client.sendall(b"GET /shop/ HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            assert b"x-wasm-processed: Yes" in client.makefile("rb").read()

        assert len(family) >= 8  # Envoy, daemon, zygote, two fronts, six workers
        process.send_signal(number)
        process.communicate(timeout=30)

    assert process.returncode == 0
    deadline = time.monotonic() + 10
    while any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in family):
        assert time.monotonic() < deadline, "processes were left behind"
        time.sleep(0.05)


def test_a_port_in_use_is_explained() -> None:
    """Before anything is started."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with demo("--port", str(port)) as process:
            output, errors = process.communicate(timeout=30)

    assert process.returncode == 2
    assert f"port {port}: Address already in use" in errors
    assert "--port" in errors
    assert output == ""


def test_a_missing_envoy_is_explained() -> None:
    """With the way to get one."""
    with demo("--port", "0", SANDBOXD_ENVOY="/no/such/envoy") as process:
        _, errors = process.communicate(timeout=30)

    assert process.returncode == 2
    assert "SANDBOXD_ENVOY names /no/such/envoy" in errors
