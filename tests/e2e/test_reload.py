"""Policy files changed under load: no request is lost, and a bad file changes nothing."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import psutil
import pytest

from sandboxd.demo.client import Request
from tests.support import guests, stage, traffic

pytestmark = [pytest.mark.long, pytest.mark.envoy, pytest.mark.timeout(120)]

PLUGIN = guests.HTTP_CONFIG.name


def tenant(value: str) -> stage.Tenant:
    """Return the tenant with a filter that adds ``x-version``."""
    plugin = guests.HTTP_CONFIG.plugin(configuration={"header": "x-version", "value": value})
    return stage.Tenant("tenant", [plugin])


def version(answer: traffic.Answer) -> str:
    """Return which version of the policy was at work."""
    return answer.message.value("x-version") if answer.message is not None else ""


@pytest.mark.parametrize("transport", stage.TRANSPORTS)
def test_a_reload_loses_no_request(tmp_path: Path, transport: str) -> None:
    """By SIGHUP and by command; versions follow without a gap, and a bad file leaves the last good one."""
    with stage.running(tmp_path, [tenant("1")], fronts=2, transport=transport) as running:
        with traffic.running(running.port, Request("GET", f"/tenant/{PLUGIN}/")) as flow:
            stage.eventually(lambda: len(flow.answers) > 50, "traffic flows")

            tenant("2").write(running.policies)
            running.sandbox.child.signal(signal.SIGHUP)
            stage.eventually(lambda: version(flow.answers[-1]) == "2", "the second version")

            tenant("3").write(running.policies)
            assert running.sandbox.command("reload").returncode == 0
            stage.eventually(lambda: version(flow.answers[-1]) == "3", "the third version")

            (running.policies / "tenant.yaml").write_text("tenant: tenant\nplugin: []\n")
            result = running.sandbox.command("reload")
            assert result.returncode == 1
            assert "plugin" in result.stdout + result.stderr
            time.sleep(0.3)

        assert flow.statuses() == {200}
        order = [version(answer) for answer in sorted(flow.answers, key=lambda answer: answer.sent_s)]
        assert set(order) == {"1", "2", "3"}
        assert order[-1] == "3"
        status = running.sandbox.tenants()["tenant"]
        assert "tenant.yaml:2" in status["last_error"]


@pytest.mark.parametrize(("transport", "unknown"), [(stage.EXT_PROC, 500), (stage.SHM, 500)])
def test_a_tenant_can_come_and_go(tmp_path: Path, transport: str, unknown: int) -> None:
    """A new file is a new tenant; without its file it is unknown, while others go on."""
    guest = guests.C_ADD_HEADER
    others = stage.Tenant("guest", [guest.plugin()])
    with stage.running(tmp_path, [tenant("1"), others], transport=transport) as running:
        path = f"/guest/{guest.name}/"
        assert running.get(path).status == 200

        (running.policies / "guest.yaml").unlink()
        assert running.sandbox.command("reload").returncode == 0
        stage.eventually(lambda: running.get(path).status == unknown, "the tenant is gone")
        assert running.get(f"/tenant/{PLUGIN}/").status == 200

        others.write(running.policies)
        assert running.sandbox.command("reload").returncode == 0
        stage.eventually(lambda: running.get(path).status == 200, "the tenant is back")


def test_a_tenant_that_goes_leaves_its_uid(tmp_path: Path) -> None:
    """Names come and go for as long as the daemon runs."""

    def uid(name: str) -> int:
        return psutil.Process(running.worker_pid(name)).uids().real

    leaves, comes = (stage.Tenant(name, [guests.C_ADD_HEADER.plugin()]) for name in ("leaves", "comes"))
    with stage.running(tmp_path, [tenant("1"), leaves]) as running:
        theirs, pid = uid("leaves"), running.worker_pid("leaves")

        (running.policies / "leaves.yaml").unlink()
        assert running.sandbox.command("reload").returncode == 0
        stage.eventually(lambda: not psutil.pid_exists(pid), "the worker is gone")
        comes.write(running.policies)
        assert running.sandbox.command("reload").returncode == 0

        assert uid("comes") == theirs
        assert running.sandbox.status()["jail"]["identity"] == "user namespace" or uid("tenant") != theirs
