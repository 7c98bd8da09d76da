"""Envoy with the dynamic module outlives daemon, worker, both and a reload, and filters again without a restart."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from sandboxd.demo import daemon
from sandboxd.demo.client import Request
from tests.support import guests, stage, traffic

pytestmark = [pytest.mark.long, pytest.mark.envoy, pytest.mark.timeout(120)]

GUEST = guests.C_ADD_HEADER
PATH = f"/acme/{GUEST.name}/"
CONFIG = {"attach": {"channels": 3}}
RESTART = {"backoff": "10ms", "max_crashes": 1000}


def tenant(policy: str, configuration: str = "1") -> stage.Tenant:
    """Return the tenant, whose filter fails by this policy."""
    failure = {"policy": policy, "restart": RESTART}
    return stage.Tenant("acme", [GUEST.plugin(failure=failure, configuration=configuration)])


def filtered(answer: traffic.Answer) -> bool:
    """Tell whether the filter saw the response."""
    return answer.message is not None and answer.message.values("x-wasm-processed") == ("Yes",)


def kill(pids: Sequence[int]) -> None:
    """Kill processes at once, as far as they are still there: a worker dies with its daemon."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def next_daemon(running: stage.Stage, directory: Path) -> daemon.Daemon:
    """Start another daemon in the place of the one that was killed."""
    (directory / "notify.sock").unlink()
    found = daemon.Daemon(running.policies, directory, config=CONFIG)
    found.wait_ready()
    return found


@pytest.mark.parametrize("policy", ["closed", "open"])
@pytest.mark.parametrize(
    "victims", [("worker",), ("daemon",), ("daemon", "worker"), ("worker", "daemon")], ids="+".join
)
def test_envoy_survives_whom_it_depends_on(tmp_path: Path, victims: tuple[str, ...], policy: str) -> None:
    """Under load: every request is answered, by the filter or as the policy says; and then by the filter again."""
    allowed = {"closed": {200, 503}, "open": {200}}[policy]
    shm = {"failure": policy}
    with stage.running(tmp_path, [tenant(policy)], transport=stage.SHM, shm=shm, config=CONFIG) as running:
        pids = {"daemon": running.sandbox.child.pid, "worker": running.worker_pid("acme")}
        envoy_pid = running.proxy.child.pid
        second = None
        with traffic.running(running.port, Request("GET", PATH)) as flow:
            try:
                stage.eventually(lambda: len(flow.answers) > 50, "traffic flows")
                assert filtered(flow.answers[-1])
                kill([pids[name] for name in victims])
                if "daemon" in victims:
                    stage.eventually(lambda: not filtered(flow.answers[-1]), "the daemon is missed")
                    second = next_daemon(running, tmp_path)
                moment = time.monotonic()
                stage.eventually(
                    lambda: filtered(flow.answers[-1]) and flow.answers[-1].sent_s > moment, "filtered again", 20
                )
                back = time.monotonic()
                time.sleep(0.5)
            finally:
                flow.stop()
                if second is not None:
                    second.stop()

        assert all(filtered(answer) for answer in flow.answers if back < answer.sent_s < back + 0.4)
        assert flow.statuses() <= allowed
        if policy == "closed":
            assert all(filtered(answer) == (answer.status == 200) for answer in flow.answers)
        assert running.proxy.child.pid == envoy_pid
        assert running.proxy.child.exit_code is None


@pytest.mark.parametrize("kills", [False, True], ids=["alone", "with-the-worker-killed"])
def test_a_reload_in_the_middle_of_traffic(tmp_path: Path, kills: bool) -> None:
    """Each request is answered, by the older version or the newer one; if a worker dies meanwhile, by the policy."""
    with stage.running(tmp_path, [tenant("closed")], transport=stage.SHM, config=CONFIG) as running:
        with traffic.running(running.port, Request("GET", PATH)) as flow:
            for number in ("2", "3", "4"):
                before = len(flow.answers)
                stage.eventually(lambda count=before: len(flow.answers) > count + 30, "traffic flows")  # type: ignore[misc]
                stage.eventually(lambda: running.sandbox.tenants()["acme"]["worker"] is not None, "a worker")
                tenant("closed", number).write(running.policies)
                old = running.worker_pid("acme")
                assert running.sandbox.command("reload").returncode == 0
                if kills:
                    kill([old])  # it drains
                    kill([running.worker_pid("acme")])
            moment = time.monotonic()
            stage.eventually(
                lambda: filtered(flow.answers[-1]) and flow.answers[-1].sent_s > moment + 0.1, "filtered again"
            )

        assert flow.statuses() == ({200, 503} if kills else {200})
        assert all(filtered(answer) == (answer.status == 200) for answer in flow.answers)
        assert running.proxy.child.exit_code is None
