"""The dynamic module's file, and that a real Envoy takes its configuration or says what is wrong with it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from sandboxd.demo import envoy, envoy_config
from tests.support import envoy_module

pytestmark = [pytest.mark.envoy, pytest.mark.timeout(120)]

HOOKS_OF_A_FILTER = (
    "program_init",
    "http_filter_config_new",
    "http_filter_new",
    "http_filter_request_headers",
    "http_filter_response_trailers",
    "http_filter_scheduled",
    "http_filter_destroy",
)


def validate(directory: Path, own: dict[str, Any], route: dict[str, Any] | None = None) -> str:
    """Return what Envoy says of a configuration; empty if it takes it."""
    envoy_module.built()
    filter_ = envoy_config.shm(Path("/nowhere/attach.sock"))
    filter_["typed_config"]["filter_config"]["value"] = own
    per_route = None
    if route is not None:
        per_route = envoy_config.shm_route("", "")
        per_route["sandboxd.shm"]["filter_config"]["value"] = route
    routes = [envoy_config.route("/", "upstream", per_route)]
    config = envoy_config.bootstrap(
        [envoy_config.listener("one", [filter_], routes)], [envoy_config.http_cluster("upstream", 1)]
    )
    file = directory / "envoy.json"
    file.write_text(json.dumps(config))
    done = subprocess.run(
        [str(envoy.find_envoy()), "--mode", "validate", "--config-path", str(file), "--log-level", "warning"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={envoy.MODULES_VARIABLE: str(envoy.MODULES)},
    )
    return "" if done.returncode == 0 else done.stdout + done.stderr


def test_the_file_exports_its_hooks_and_nothing_of_the_library() -> None:
    """libsandboxd is inside, and stays there."""
    names = envoy_module.built().read_bytes()

    for hook in HOOKS_OF_A_FILTER:
        assert f"envoy_dynamic_module_on_{hook}\0".encode() in names
    listed = subprocess.run(
        ["nm", "-D", "--defined-only", str(envoy_module.built())], capture_output=True, text=True, check=True
    ).stdout
    assert all(line.split()[-1].startswith("envoy_dynamic_module_on_") for line in listed.splitlines())


def test_envoy_takes_a_configuration(tmp_path: Path) -> None:
    """All keys at once, and a route of its own."""
    own = {"socket": "/nowhere", "tenant": "a", "plugin": "b", "failure": "open", "spin_us": 50}
    assert not validate(tmp_path, own | {"attach_timeout_ms": 10, "daemon_uid": 0}, {"tenant": "c", "plugin": "d"})


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({}, "is missing: socket"),
        ({"socket": "/s", "failure": "maybe"}, 'must be "open" or "closed": failure'),
        ({"socket": "/s", "spin_us": -1}, "not a number in range: spin_us"),
        ({"socket": "/s", "spin_us": "many"}, "not a number in range: spin_us"),
        ({"socket": "/" + "s" * 200}, "too long: socket"),
        ({"socket": "/s", "tennant": "a"}, "unknown key"),
        ({"socket": "/s", "tenant": "a" * 300}, "too long: tenant"),
    ],
)
def test_a_bad_configuration_is_refused_with_its_reason(tmp_path: Path, own: dict[str, Any], said: str) -> None:
    """The text names the key and what may stand there."""
    assert said in validate(tmp_path, own)


def test_a_route_without_a_tenant_is_refused(tmp_path: Path) -> None:
    """It would pass unfiltered."""
    assert "is missing: tenant" in validate(tmp_path, {"socket": "/s"}, {"plugin": "b"})
