"""The dynamic module: traffic over shared memory, straight from Envoy's worker thread to the VM."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandboxd.demo import daemon
from sandboxd.demo.client import Request
from tests.support import guests, stage, traffic

pytestmark = [pytest.mark.envoy, pytest.mark.timeout(120)]


@pytest.fixture(scope="module", params=[0, 200], ids=["asleep", "spinning"])
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[stage.Stage]:
    """One tenant with filters of all kinds, with and without a spin budget."""
    plugins = [guests.HTTP_HEADERS.plugin(), guests.TOKEN_GATE.plugin(), guests.HTTP_BODY_REQUEST.plugin()]
    tenants = [stage.Tenant("acme", plugins)]
    directory = tmp_path_factory.mktemp("shm")
    with stage.running(directory, tenants, transport=stage.SHM, shm={"spin_us": request.param}) as found:
        yield found


def counter(running: stage.Stage, name: str) -> int:
    """Return one of the module's counters in Envoy's statistics."""
    found = running.proxy.stats(f"sandboxd.{name}$")
    return sum(found.values())


def test_headers_pass_the_filter(running: stage.Stage) -> None:
    """Both directions were shown to the plugin, and Envoy counts it."""
    before = counter(running, "streams")
    for _ in range(3):
        answer = running.get("/acme/http-headers/hello", ("x-token", "sesame"))
        assert answer.status == 200

    assert counter(running, "streams") == before + 3
    assert counter(running, "failed_open") == counter(running, "failed_closed") == 0


def test_a_local_response_answers(running: stage.Stage) -> None:
    """Without the token the request never reaches the upstream."""
    denied = running.get("/acme/token-gate/")

    assert denied.status == 403
    assert running.recorder.take() == ()
    assert running.get("/acme/token-gate/", ("x-token", "sesame")).status == 200


def test_bodies_pass_the_filter(running: stage.Stage) -> None:
    """A filter that waits for the whole body gets it, and so does the upstream."""
    body = b"x" * 100_000
    answer = running.send(Request("POST", "/acme/http-body-request/", (), body))

    assert answer.status == 200
    (seen,) = running.recorder.take()
    assert len(seen.body) == len(body)


@pytest.mark.parametrize(("failure", "status"), [("closed", 503), ("open", 200)])
def test_envoy_survives_the_daemon_and_finds_the_next(tmp_path: Path, failure: str, status: int) -> None:
    """While it is away its own configuration decides; no restart of Envoy is needed afterwards."""
    tenants = [stage.Tenant("acme", [guests.C_ADD_HEADER.plugin()])]
    path = f"/acme/{guests.C_ADD_HEADER.name}/"
    with stage.running(tmp_path, tenants, transport=stage.SHM, shm={"failure": failure}) as running:
        assert running.get(path).values("x-wasm-processed") == ("Yes",)
        envoy_pid = running.proxy.child.pid
        os.kill(running.sandbox.child.pid, signal.SIGKILL)
        stage.eventually(lambda: not running.get(path).values("x-wasm-processed"), "the daemon is missed")
        assert {running.get(path).status for _ in range(20)} == {status}

        (tmp_path / "notify.sock").unlink()
        with daemon.running(running.policies, tmp_path, config={"attach": {"channels": 2}}):
            stage.eventually(lambda: running.get(path).values("x-wasm-processed") == ("Yes",), "filtered again")
            assert running.proxy.child.pid == envoy_pid
            assert running.proxy.child.exit_code is None


def test_a_reload_in_the_middle_of_traffic_loses_nothing(tmp_path: Path) -> None:
    """Each request is answered, by the older version of the plugin or the newer one."""
    tenant = stage.Tenant("acme", [guests.C_ADD_HEADER.plugin()])
    path = f"/acme/{guests.C_ADD_HEADER.name}/"
    with stage.running(tmp_path, [tenant], transport=stage.SHM) as running:
        flood = traffic.Traffic(running.port, Request("GET", path))
        flood.start()
        try:
            stage.eventually(lambda: len(flood.answers) > 30, "traffic flows")
            plugin = guests.C_ADD_HEADER.plugin(configuration="another")
            stage.Tenant("acme", [plugin]).write(running.policies)
            assert running.sandbox.command("reload").returncode == 0
            before = len(flood.answers)
            stage.eventually(lambda: len(flood.answers) > before + 30, "traffic flows on")
        finally:
            flood.stop()

    assert flood.statuses() == {200}
    assert all(a.message is not None and a.message.values("x-wasm-processed") == ("Yes",) for a in flood.answers)
