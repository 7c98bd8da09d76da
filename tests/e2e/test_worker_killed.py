"""A worker killed under load costs its tenant its own requests, for a moment, and nobody else anything."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from sandboxd.demo.client import Request
from tests.support import guests, stage, traffic

pytestmark = [pytest.mark.long, pytest.mark.envoy, pytest.mark.timeout(120)]

BACK_WITHIN_S = 1.0
PLUGIN = guests.C_ADD_HEADER.name


@pytest.fixture(scope="module", params=stage.TRANSPORTS)
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[stage.Stage]:
    """Three tenants with the same filter; one of them fails open."""
    plugin = guests.C_ADD_HEADER.plugin()
    tenants = [
        stage.Tenant("victim", [plugin]),
        stage.Tenant("lenient", [{**plugin, "failure": {"policy": "open"}}]),
        stage.Tenant("bystander", [plugin]),
    ]
    with stage.running(tmp_path_factory.mktemp("killed"), tenants, fronts=2, transport=request.param) as found:
        yield found


def processed(answer: traffic.Answer) -> bool:
    """Tell whether the filter saw the response."""
    return answer.message is not None and answer.message.values("x-wasm-processed") == ("Yes",)


def flood(running: stage.Stage, tenant: str) -> traffic.Traffic:
    """Return traffic through a tenant's plugin."""
    return traffic.Traffic(running.port, Request("GET", f"/{tenant}/{PLUGIN}/"))


def kill_under_load(running: stage.Stage, tenant: str) -> tuple[traffic.Traffic, traffic.Traffic, float]:
    """Kill a tenant's worker while it and the bystander are busy; return both traffics and the moment."""
    own, other = flood(running, tenant), flood(running, "bystander")
    pid = running.worker_pid(tenant)
    own.start()
    other.start()
    try:
        stage.eventually(lambda: len(own.answers) > 50 and len(other.answers) > 50, "traffic flows")
        os.kill(pid, signal.SIGKILL)
        moment = time.monotonic()
        time.sleep(BACK_WITHIN_S + 0.7)
    finally:
        own.stop()
        other.stop()
    return own, other, moment


def test_a_killed_worker_follows_the_failure_policy_and_comes_back(running: stage.Stage) -> None:
    """Closed: 503 while it is away, 200 again within a second. The bystander does not notice."""
    own, other, moment = kill_under_load(running, "victim")

    assert other.statuses() == {200}
    assert all(map(processed, other.answers))
    assert own.statuses() <= {200, 503}
    late = [answer for answer in own.answers if answer.sent_s > moment + BACK_WITHIN_S]
    assert late
    assert all(map(processed, late)), f"not back within {BACK_WITHIN_S} s"
    assert any(processed(answer) for answer in own.answers if answer.done_s < moment)


def test_fail_open_lets_traffic_pass_without_the_filter(running: stage.Stage) -> None:
    """Open: every request is answered by the upstream; some of them were not filtered."""
    own, other, moment = kill_under_load(running, "lenient")

    assert other.statuses() == {200}
    assert own.statuses() == {200}
    away = [answer for answer in own.answers if not processed(answer)]
    assert away, "the worker was never away: the test shows nothing"
    assert all(answer.done_s < moment + BACK_WITHIN_S for answer in away)


def test_the_new_worker_is_another_process(running: stage.Stage) -> None:
    """And the status says that there was a restart."""
    before = running.sandbox.tenants()["victim"]
    os.kill(before["worker"]["pid"], signal.SIGKILL)

    def replaced() -> bool:
        worker = running.sandbox.tenants()["victim"]["worker"]
        return bool(worker) and worker["pid"] != before["worker"]["pid"]

    stage.eventually(replaced, "a new worker")
    assert running.sandbox.tenants()["victim"]["restarts"] == before["restarts"] + 1
    stage.eventually(lambda: running.get(f"/victim/{PLUGIN}/").status == 200, "requests pass again")
