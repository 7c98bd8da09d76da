"""A daemon with fake fronts for tests: started, asked, stopped."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sandboxd.compiler.cache import KEY_BYTES, KEY_NAME
from sandboxd.protos import admin_pb2 as admin
from sandboxd.supervisor.admin import call

GUESTS = Path(__file__).resolve().parents[1] / "guests"
ROOT = GUESTS.parents[1]
ADD_HEADER = GUESTS / "c" / "c_add_header.wasm"
RUST_HEADERS = GUESTS / "rust" / "http_headers.wasm"
Json = dict[str, Any]


def policy_text(tenant: str, module: Path, *, name: str = "main", more: str = "", sha256: str = "") -> str:
    """Return a policy file with one plugin; ``more`` are further lines of the plugin, not indented."""
    digest = sha256 or hashlib.sha256(module.read_bytes()).hexdigest()
    lines = "".join(f"    {line}\n" for line in more.splitlines())
    return (
        f"tenant: {tenant}\n"
        "plugins:\n"
        f"  - name: {name}\n"
        f"    module: {{file: {module}, sha256: {digest}}}\n"
        "    capabilities: {preset: standard}\n" + lines
    )


def wait_for(condition: Callable[[], bool], timeout_s: float, what: str) -> float:
    """Wait until the condition holds; return how long that took. Fails with ``what`` otherwise."""
    start_s = time.monotonic()
    while not condition():
        assert time.monotonic() - start_s < timeout_s, f"not in {timeout_s} s: {what}"
        time.sleep(0.01)
    return time.monotonic() - start_s


def share_artefact_key(state: Path) -> None:
    """Give a daemon's state directory the key that all daemons of the tests' shared cache have."""
    state.mkdir(mode=0o700, exist_ok=True)
    key = state / KEY_NAME
    key.touch(0o600)
    key.write_bytes(bytes(range(KEY_BYTES)))


class FakeDaemon:
    """A running daemon; ``more`` are further lines of its file."""

    def __init__(
        self,
        directory: Path,
        cache: Path,
        *,
        fronts: int = 2,
        environment: dict[str, str] | None = None,
        more: str = "jail: {self_test: false}\n",
        program: str = "tests.support.fake_daemon",
    ) -> None:
        self.directory = directory
        self.policies = directory / "policies"
        self.runtime = directory / "run"
        self.config = directory / "sandboxd.yaml"
        share_artefact_key(directory / "state")
        self.config.write_text(
            f"policies: {self.policies}\nruntime_directory: {self.runtime}\ncache_directory: {cache}\n"
            f"state_directory: {directory / 'state'}\nfront: {{processes: {fronts}}}\n{more}"
        )
        self.log_path = directory / "log"
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-W", "error", "-m", program, str(self.config)],
                stdout=log,
                stderr=log,
                cwd=ROOT,
                env={**os.environ, **(environment or {})},
            )

    @property
    def log(self) -> str:
        """All that was logged so far."""
        return self.log_path.read_text()

    def wait_ready(self) -> None:
        """Wait until the daemon serves."""
        wait_for(lambda: " ready: " in self.log or self.process.poll() is not None, 60, "ready")
        assert self.process.poll() is None, self.log

    def ask(self, what: str, front: int = 0) -> Json:
        """Have a fake front do an exchange with ``TENANT PLUGIN``."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(10)
            sock.connect(str(self.runtime / f"front-{front}.sock"))
            sock.sendall(what.encode() + b"\n")
            with sock.makefile("r") as lines:
                return dict(json.loads(lines.readline()))

    def serves(self, what: str, front: int = 0) -> bool:
        """Return whether an exchange gets a verdict."""
        try:
            return self.ask(what, front).get("code") == 0
        except (OSError, ValueError):
            return False

    def admin(self, command: int, tenant: str = "") -> Json:
        """Send a command to the operator's socket."""
        return call(self.runtime / "admin.sock", admin.AdminRequest(command=command, tenant=tenant), 30)

    def status(self) -> Json:
        """Return the daemon's status."""
        return self.admin(admin.ADMIN_COMMAND_STATUS)

    def reload(self) -> Json:
        """Reload, and return what came of each tenant."""
        return dict(self.admin(admin.ADMIN_COMMAND_RELOAD)["results"])

    def tenant(self, name: str) -> Json:
        """Return one tenant's status."""
        return next(dict(tenant) for tenant in self.status()["tenants"] if tenant["tenant"] == name)

    def worker_pid(self, tenant: str) -> int:
        """Return the pid of a tenant's worker."""
        return int(self.tenant(tenant)["worker"]["pid"])

    def stop(self) -> int:
        """End the daemon as a service manager does; return its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise


@contextlib.contextmanager
def fake_daemon(
    directory: Path,
    cache: Path,
    policies: dict[str, str],
    *,
    fronts: int = 2,
    environment: dict[str, str] | None = None,
    more: str = "jail: {self_test: false}\n",
    program: str = "tests.support.fake_daemon",
) -> Iterator[FakeDaemon]:
    """
    Run a daemon with these policy files (name without suffix to text) for the length of a ``with`` block.
    """
    (directory / "policies").mkdir()
    for name, text in policies.items():
        (directory / "policies" / f"{name}.yaml").write_text(text)
    daemon = FakeDaemon(directory, cache, fronts=fronts, environment=environment, more=more, program=program)
    try:
        daemon.wait_ready()
        yield daemon
    finally:
        daemon.stop()


def alive(pid: int) -> bool:
    """Return whether a process runs (and is no zombie)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
