"""
`sandboxd serve` as a child process in a directory of its own, as a service manager would run it.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sandboxd.compiler.cache import KEY_NAME, read_or_make_key
from sandboxd.demo.process import Child, ChildFailedError
from sandboxd.protos import admin_pb2
from sandboxd.supervisor import admin, rundir

SHARED_CACHE = Path(__file__).resolve().parents[2] / "build" / "cache"
START_TIMEOUT_S = 90.0
"""The first start compiles every module of every tenant."""
COMMAND_TIMEOUT_S = 20.0


def _cache(directory: Path) -> Path:
    """Return a place for compiled modules that the next start finds again, if the checkout has one that is ours."""
    try:
        SHARED_CACHE.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = SHARED_CACHE.stat()
    except OSError:
        return directory / "cache"
    ours = found.st_uid == os.geteuid() and not found.st_mode & 0o077
    return SHARED_CACHE if ours else directory / "cache"


def _state(directory: Path) -> Path:
    """Return the daemon's state directory, with the key of the shared cache in it, or its files would be refused."""
    state = directory / "state"
    state.mkdir(mode=0o700, exist_ok=True)
    if _cache(directory) == SHARED_CACHE:
        copy = state / KEY_NAME
        copy.touch(0o600)
        copy.write_bytes(read_or_make_key(SHARED_CACHE / KEY_NAME))
    return state


class Daemon:
    """
    A running sandboxd.

    Args:
        policies: directory of the tenants' files.
        directory: for its configuration, sockets, state and log.
        fronts: gRPC server processes.
        config: further sections of ``sandboxd.yaml``; ``front`` is merged.
    """

    def __init__(
        self, policies: Path, directory: Path, *, fronts: int = 1, config: Mapping[str, Any] | None = None
    ) -> None:
        self.runtime = directory / "run"
        self.fronts = fronts
        self.config_path = directory / "sandboxd.yaml"
        self.config_path.write_text(json.dumps(self._config(policies, directory, dict(config or {}))))
        address = directory / "notify.sock"
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._notify.bind(str(address))
        environment = {**os.environ, "NOTIFY_SOCKET": str(address)}
        self.child = Child("sandboxd", self._command("serve"), directory / "sandboxd.log", environment)
        self.said: list[str] = []
        """States that the daemon told its service manager."""

    def _config(self, policies: Path, directory: Path, config: dict[str, Any]) -> dict[str, Any]:
        front = {"processes": self.fronts, **config.pop("front", {})}
        return {
            "policies": str(policies),
            "runtime_directory": str(self.runtime),
            "cache_directory": str(_cache(directory)),
            "state_directory": str(_state(directory)),
            "front": front,
            **config,
        }

    def _command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "sandboxd.cli", *arguments, "--config", str(self.config_path)]

    @property
    def sockets(self) -> list[Path]:
        """The Unix sockets of the fronts."""
        return [self.runtime / f"front-{index}.sock" for index in range(self.fronts)]

    def _heard(self, state: str) -> bool:
        with contextlib.suppress(BlockingIOError):
            while True:
                self.said.extend(self._notify.recv(4096).decode(errors="replace").splitlines())
        return state in self.said

    def wait_ready(self) -> None:
        """Wait until the daemon serves. Raises ChildFailedError if it ends instead or takes too long."""
        self.child.wait_until(lambda: self._heard("READY=1"), START_TIMEOUT_S)

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run another ``sandboxd`` command against this daemon, such as ``reload``."""
        self._heard("")
        return subprocess.run(
            self._command(*arguments), capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False
        )

    def status(self) -> dict[str, Any]:
        """
        Return what ``sandboxd status --json`` prints.

        Raises:
            SandboxdError: the daemon does not answer.
        """
        request = admin_pb2.AdminRequest(command=admin_pb2.ADMIN_COMMAND_STATUS)
        return admin.call(self.runtime / rundir.ADMIN_SOCKET_NAME, request, COMMAND_TIMEOUT_S)

    def tenants(self) -> dict[str, dict[str, Any]]:
        """Return the status of each tenant by its name. Raises as `status`."""
        return {tenant["tenant"]: tenant for tenant in self.status()["tenants"]}

    def expect_tenants(self) -> None:
        """Raise ChildFailedError if a tenant does not run: the daemon serves the others all the same."""
        for name, tenant in self.tenants().items():
            if tenant["last_error"]:
                raise ChildFailedError(f"tenant {name} does not run: {tenant['last_error']}")

    def stop(self) -> int:
        """End the daemon and return its exit code."""
        code = self.child.stop(timeout_s=20)
        self._notify.close()
        return code


@contextlib.contextmanager
def running(
    policies: Path, directory: Path, *, fronts: int = 1, config: Mapping[str, Any] | None = None
) -> Iterator[Daemon]:
    """Run a daemon for the length of a ``with`` block. Raises as `Daemon.wait_ready`."""
    daemon = Daemon(policies, directory, fronts=fronts, config=config)
    try:
        daemon.wait_ready()
        yield daemon
    finally:
        daemon.stop()
