"""What a real Envoy and real fronts make of services, and how their exchanges show in metrics."""

from __future__ import annotations

import http.client
import os
import signal
from pathlib import Path

import pytest

from tests.support import guests, stage

pytestmark = [pytest.mark.envoy, pytest.mark.timeout(90)]


def scraped(port: int) -> str:
    """Return what Prometheus reads, the way that it reads it."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", "/metrics", headers={"Accept": "text/plain;version=0.0.4"})
        answer = connection.getresponse()
        assert answer.status == 200
        return answer.read().decode()
    finally:
        connection.close()


def test_exchanges_services_and_fronts_that_die(tmp_path: Path, unused_tcp_port: int) -> None:
    """A request to a service is nobody's; the filter's lines are shipped; counters of a dead front stay."""
    shipper = guests.C_LOG_SHIPPER.plugin(kind="service")
    tenants = [stage.Tenant("acme", [guests.C_ACCESS_LOG.plugin(), shipper])]
    config = {"metrics": {"listen": f"127.0.0.1:{unused_tcp_port}"}}
    filter_path, names = f"/acme/{guests.C_ACCESS_LOG.name}/", f'tenant="acme",plugin="{guests.C_ACCESS_LOG.name}"'
    with stage.running(tmp_path, tenants, config=config) as running:
        for _ in range(3):
            assert running.get(filter_path).status == 200
        assert running.get(f"/acme/{guests.C_LOG_SHIPPER.name}/").status >= 500
        log = running.sandbox.child.log
        stage.eventually(lambda: log.read_text().count(f"shipped {filter_path}") == 3, "three lines shipped")

        def shows(line: str) -> None:
            stage.eventually(lambda: f"\n{line}\n" in scraped(unused_tcp_port), line)

        shows(f"sandboxd_plugin_exchanges_total{{{names}}} 3")
        shows('sandboxd_front_events_total{event="unknown_plugin"} 1')
        shows(f'sandboxd_plugin_log_lines_total{{tenant="acme",plugin="{guests.C_LOG_SHIPPER.name}"}} 3')

        os.kill(running.sandbox.status()["fronts"][0]["pid"], signal.SIGKILL)
        shows("sandboxd_front_restarts_total 1")
        stage.eventually(lambda: running.get(filter_path).status == 200, "the new front serves")
        stage.eventually(lambda: f"{{{names}}} 4\n" in scraped(unused_tcp_port), "old and new front together")
