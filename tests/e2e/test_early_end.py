"""Streams that sandboxd ends with its last reply, before Envoy does: nothing of the exchange is lost by that."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandboxd.commands.envoy_filters import NOTHING_AFTER_RESPONSE_HEADERS
from sandboxd.demo.client import Request
from tests.support import guests, stage

pytestmark = [pytest.mark.envoy, pytest.mark.timeout(60)]

GRPC_SERVICE = {
    "envoy_grpc": {"cluster_name": "sandboxd"},
    "initial_metadata": [NOTHING_AFTER_RESPONSE_HEADERS],
}
"""Tenant and plugin come from the route."""


def test_bodies_pass_and_envoy_counts_no_failure(tmp_path: Path) -> None:
    """Request and response bodies, a local response; one stream each, ended by the server, none failed."""
    tenants = [stage.Tenant("quick", [guests.C_ADD_HEADER.plugin(), guests.TOKEN_GATE.plugin()])]
    body = bytes(range(256)) * 4096
    with stage.running(tmp_path, tenants, ext_proc={"grpc_service": GRPC_SERVICE}) as running:
        path = f"/quick/{guests.C_ADD_HEADER.name}/"
        for _ in range(3):
            answer = running.send(Request("POST", path, (), body))
            assert (answer.status, answer.values("x-wasm-processed")) == (200, ("Yes",))
            (seen,) = running.recorder.take()
            assert seen.body == body
        assert running.get(path).status == 200
        assert running.get(f"/quick/{guests.TOKEN_GATE.name}/").status == 403

        stats = {name.rpartition(".")[2]: value for name, value in running.proxy.stats("ext_proc").items()}
        assert (stats["streams_started"], stats["streams_closed"]) == (5, 5)
        # A pair for each request but the rejected one.
        assert (stats["stream_msgs_sent"], stats["stream_msgs_received"]) == (9, 9)
        assert stats["immediate_responses_sent"] == 1
        bad = ("streams_failed", "spurious_msgs_received", "message_timeouts", "failure_mode_allowed")
        assert [stats[name] for name in bad] == [0, 0, 0, 0]


def test_an_observing_filter_may_say_it_too(tmp_path: Path) -> None:
    """Envoy takes no notice of how such a stream ends."""
    tenants = [stage.Tenant("quick", [guests.C_ADD_HEADER.plugin()])]
    more = {"grpc_service": GRPC_SERVICE, "observability_mode": True}
    with stage.running(tmp_path, tenants, ext_proc=more) as running:
        path = f"/quick/{guests.C_ADD_HEADER.name}/"
        answer = running.send(Request("POST", path, (), b"body"))
        assert (answer.status, answer.values("x-wasm-processed")) == (200, ())
        assert running.recorder.take()[0].body == b"body"
        assert running.proxy.stats("ext_proc")["http.stage.ext_proc.streams_failed"] == 0
