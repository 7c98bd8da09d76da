"""A front process killed under load: the other fronts go on, and a new one takes its place."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from sandboxd.demo.client import Request
from tests.support import guests, stage, traffic

pytestmark = [pytest.mark.long, pytest.mark.envoy, pytest.mark.timeout(120)]


def test_a_killed_front_is_replaced(tmp_path: Path) -> None:
    """What it had in hand fails with an error; a moment later all is well, with as many fronts as before."""
    tenants = [stage.Tenant("tenant", [guests.C_ADD_HEADER.plugin()])]
    with stage.running(tmp_path, tenants, fronts=2) as running:
        request = Request("GET", f"/tenant/{guests.C_ADD_HEADER.name}/")
        pids = {front["pid"] for front in running.sandbox.status()["fronts"]}
        assert len(pids) == 2

        with traffic.running(running.port, request, connections=8) as flow:
            stage.eventually(lambda: len(flow.answers) > 50, "traffic flows")
            os.kill(min(pids), signal.SIGKILL)
            moment = time.monotonic()

            def replaced() -> bool:
                fronts = [front for front in running.sandbox.status()["fronts"] if front["ready"]]
                return len(fronts) == 2 and min(pids) not in {front["pid"] for front in fronts}

            stage.eventually(replaced, "a new front")
            back = time.monotonic()
            time.sleep(1.5)

        # Envoy may take a moment to connect to the new front's socket.
        settled = [answer for answer in flow.answers if answer.sent_s > back + 1]
        assert settled
        assert {answer.status for answer in settled} == {200}
        assert flow.statuses() <= {200, 500, 503, 504}
        failed = [answer for answer in flow.answers if answer.status != 200]
        assert len(failed) <= 8 * 2, "only what the front had in hand may fail"
        assert all(answer.done_s > moment for answer in failed)


def test_a_killed_front_does_not_touch_the_dynamic_module(tmp_path: Path) -> None:
    """Its traffic does not go through fronts: nothing fails, nothing passes unfiltered."""
    tenants = [stage.Tenant("tenant", [guests.C_ADD_HEADER.plugin()])]
    with stage.running(tmp_path, tenants, transport=stage.SHM) as running:
        (front,) = running.sandbox.status()["fronts"]
        with traffic.running(running.port, Request("GET", f"/tenant/{guests.C_ADD_HEADER.name}/")) as flow:
            stage.eventually(lambda: len(flow.answers) > 50, "traffic flows")
            os.kill(front["pid"], signal.SIGKILL)
            stage.eventually(
                lambda: (
                    [one["pid"] for one in running.sandbox.status()["fronts"] if one["ready"]]
                    not in ([], [front["pid"]])
                ),
                "a new front",
            )
            time.sleep(0.5)

        assert flow.statuses() == {200}
        assert all(
            answer.message is not None and answer.message.values("x-wasm-processed") == ("Yes",)
            for answer in flow.answers
        )
