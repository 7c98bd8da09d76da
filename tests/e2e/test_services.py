"""Services through the whole daemon: one VM that takes what filters hand over, and how metrics show it all."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandboxd.cli import main
from sandboxd.client import wire
from sandboxd.limits import MAX_RESTART_MAX_CRASHES
from tests.support.daemon_client import FakeDaemon, Json, fake_daemon, policy_text, wait_for
from tests.support.guests import C_ACCESS_LOG, C_LOG_SHIPPER

pytestmark = [pytest.mark.long, pytest.mark.timeout(120)]

FILTER, SHIPPER = C_ACCESS_LOG.path, C_LOG_SHIPPER.path
PATIENT = f"failure: {{restart: {{backoff: 10ms, max_crashes: {MAX_RESTART_MAX_CRASHES}}}}}"
LISTEN = "jail: {self_test: false}\nmetrics: {}\nattach: {}\n"


@pytest.fixture(scope="module")
def artefact_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a cache of compiled modules for all tests here."""
    return tmp_path_factory.mktemp("artefacts")


@pytest.fixture
def short_path() -> Iterator[Path]:
    """Return a directory whose path is short enough for Unix sockets."""
    with tempfile.TemporaryDirectory(prefix="sbx") as directory:
        yield Path(directory)


def policy(more: str = PATIENT, *, kind: str = "service", tail: str = "") -> str:
    """Return a policy with a filter ``log`` that hands lines to the service ``shipper``."""
    both = policy_text("alpha", FILTER, name="log", more=PATIENT)
    return (
        both
        + policy_text("alpha", SHIPPER, name="shipper", more=f"kind: {kind}\n{more}").partition("plugins:\n")[2]
        + tail
    )


def plugin(daemon: FakeDaemon, name: str) -> Json:
    """Return one plugin's status."""
    return next(dict(found) for found in daemon.tenant("alpha")["plugins"] if found["plugin"] == name)


def scrape(daemon: FakeDaemon, request: bytes = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n") -> str:
    """Return what the metrics' socket answers."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(10)
        sock.connect(str(daemon.runtime / "metrics.sock"))
        sock.sendall(request)
        return b"".join(iter(lambda: sock.recv(65536), b"")).decode()


def value(text: str, series: str) -> float:
    """Return a series' value; -1 if it is not there."""
    found = re.search(rf"^{re.escape(series)} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else -1


def test_a_service_has_one_vm_and_takes_what_filters_hand_over(short_path: Path, artefact_cache: Path) -> None:
    """With two fronts the filter has two VMs; what both enqueue comes to the one service, which logs and ticks."""
    with fake_daemon(short_path, artefact_cache, {"a": policy()}, more=LISTEN) as daemon:
        assert [vm["front"] for vm in plugin(daemon, "log")["vms"]] == [0, 1]
        (vm,) = plugin(daemon, "shipper")["vms"]
        assert (plugin(daemon, "shipper")["kind"], vm["state"]) == ("service", "running")
        assert daemon.ask("alpha shipper") == {"down": "unknown"}  # fronts have never heard of it
        for front in (0, 1, 1):
            assert daemon.serves("alpha log", front)
        wait_for(lambda: daemon.log.count("alpha/shipper stream=0: shipped /\n") == 3, 10, "three lines shipped")
        text = scrape(daemon)
        wait_for(
            lambda: (
                value(
                    scrape(daemon),
                    'sandboxd_plugin_counter_total{tenant="alpha",plugin="shipper",name="shipper.lines"}',
                )
                == 3
            ),
            20,
            "the service's own counter",
        )
        text = scrape(daemon)
        assert value(text, 'sandboxd_plugin_gauge{tenant="alpha",plugin="shipper",name="shipper.ticks"}') > 5
        assert value(text, 'sandboxd_plugin_counter_total{tenant="alpha",plugin="log",name="access_log.lost"}') == 0
        assert value(text, 'sandboxd_plugin_histogram_sum{tenant="alpha",plugin="shipper",name="shipper.bytes"}') == 3
        assert value(text, 'sandboxd_plugin_log_lines_total{tenant="alpha",plugin="shipper"}') == 3
        assert value(text, 'sandboxd_plugin_vms{tenant="alpha",plugin="shipper",state="running"}') == 1
        assert value(text, 'sandboxd_shared_queue_items_total{tenant="alpha"}') == 3


def test_a_service_that_traps_comes_back_by_the_ledgers_rules(short_path: Path, artefact_cache: Path) -> None:
    """Its queue is still there, and its counters go on; past the limit it is in quarantine, the filter serves on."""
    quick = "failure: {restart: {backoff: 10ms, max_crashes: 1, window: 60m}}"
    with fake_daemon(short_path, artefact_cache, {"a": policy(quick)}, fronts=1, more=LISTEN) as daemon:
        worker = daemon.worker_pid("alpha")
        daemon.ask("alpha log /trap")
        wait_for(lambda: plugin(daemon, "shipper")["vms"][0]["generation"] == 2, 10, "the service runs again")
        assert plugin(daemon, "shipper")["crash_counts"] == {"trap": 1}
        daemon.ask("alpha log /again")
        wait_for(lambda: "shipped /again" in daemon.log, 10, "a line after the trap")

        daemon.ask("alpha log /trap")
        wait_for(lambda: plugin(daemon, "shipper")["quarantine"] is not None, 10, "quarantine")
        assert daemon.serves("alpha log")
        assert daemon.worker_pid("alpha") == worker
        text = scrape(daemon)
        assert value(text, 'sandboxd_plugin_quarantined{tenant="alpha",plugin="shipper"}') == 1
        assert value(text, 'sandboxd_plugin_crashes_total{tenant="alpha",plugin="shipper",cause="trap"}') == 2
        assert value(text, 'sandboxd_plugin_up{tenant="alpha",plugin="log"}') == 1


def test_reloads_change_services(short_path: Path, artefact_cache: Path) -> None:
    """A new version's VM takes the old one's place; a service becomes a filter and back."""
    with fake_daemon(short_path, artefact_cache, {"a": policy()}, fronts=1, more=LISTEN) as daemon:
        (first,) = plugin(daemon, "shipper")["vms"]
        (daemon.policies / "a.yaml").write_text(policy(tail="# another version\n"))
        assert daemon.reload()["alpha"]["result"] == "swapped"
        (second,) = plugin(daemon, "shipper")["vms"]
        assert second["id"] != first["id"]
        wait_for(lambda: not daemon.tenant("alpha")["draining_workers"], 10, "the old worker ends")
        daemon.ask("alpha log /new")
        wait_for(lambda: "shipped /new" in daemon.log, 10, "a line to the new version")

        (daemon.policies / "a.yaml").write_text(policy(kind="filter"))
        assert daemon.reload()["alpha"]["result"] == "swapped"
        assert daemon.serves("alpha shipper")
        (daemon.policies / "a.yaml").write_text(policy())
        assert daemon.reload()["alpha"]["result"] == "swapped"
        wait_for(lambda: daemon.ask("alpha shipper") == {"down": "removed"}, 10, "fronts know it no more")
        assert [vm["front"] for vm in plugin(daemon, "shipper")["vms"]] == [-1]


def test_services_survive_fronts(short_path: Path, artefact_cache: Path) -> None:
    """A front that dies takes its own VMs along, not the service's; what it has counted stays counted."""
    with fake_daemon(short_path, artefact_cache, {"a": policy()}, fronts=1, more=LISTEN) as daemon:
        before = plugin(daemon, "shipper")["vms"]
        os.kill(daemon.status()["fronts"][0]["pid"], signal.SIGKILL)
        wait_for(lambda: daemon.status()["front_restarts"] == 1 and daemon.serves("alpha log"), 20, "a new front")
        assert [vm["id"] for vm in plugin(daemon, "shipper")["vms"]] == [vm["id"] for vm in before]


def test_the_command_shows_what_prometheus_reads(
    short_path: Path, artefact_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As text and as JSON, of all or of one plugin; and a wrong name is an error that names the right ones."""
    with fake_daemon(short_path, artefact_cache, {"a": policy()}, fronts=1, more=LISTEN) as daemon:
        config = ["--config", str(daemon.config)]
        assert main(["metrics", *config]) == 0
        shown = capsys.readouterr().out
        answer = scrape(daemon)
        assert "Content-Type: text/plain; version=0.0.4; charset=utf-8" in answer
        types = re.compile("^# TYPE .*$", re.MULTILINE)
        assert types.findall(shown) == types.findall(answer)
        assert value(shown, 'sandboxd_tenant_state{tenant="alpha",state="running"}') == 1
        assert value(shown, "sandboxd_front_restarts_total") == 0
        assert value(shown, 'sandboxd_worker_memory_bytes{tenant="alpha"}') > 1 << 20

        assert main(["metrics", "alpha/shipper", "--json", *config]) == 0
        found = json.loads(capsys.readouterr().out)["families"]
        labels = [sample["labels"] for family in found for sample in family["samples"]]
        assert labels
        assert all(one["tenant"] == "alpha" and one["plugin"] == "shipper" for one in labels)

        assert main(["metrics", "alpha/nobody", *config]) == 1
        assert "allowed: log, shipper" in capsys.readouterr().err


def test_nobody_attaches_to_a_service(short_path: Path, artefact_cache: Path) -> None:
    """It is as if it were not there, also when no plugin is named: the filter is the tenant's only one then."""
    with fake_daemon(short_path, artefact_cache, {"a": policy()}, fronts=1, more=LISTEN) as daemon:
        for asked, refused in (("shipper", True), ("", False)):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
                sock.settimeout(10)
                sock.connect(str(daemon.runtime / "attach.sock"))
                sock.send(wire.encode_attach("alpha", asked))
                assert (b"no such tenant or plugin" in sock.recv(65536)) is refused


def queue_full(daemon: FakeDaemon) -> float:
    """Return how many items were refused since the region was made."""
    return value(scrape(daemon), 'sandboxd_shared_queue_full_total{tenant="alpha"}')


def test_reloads_change_the_shared_memory(short_path: Path, artefact_cache: Path) -> None:
    """Another size is an empty region; another limit keeps what is there, and so does a version that fails."""
    stuck = policy("limits: {tick_period: 60m}\n" + PATIENT)
    with fake_daemon(short_path, artefact_cache, {"a": stuck}, fronts=1, more=LISTEN) as daemon:
        assert daemon.serves("alpha log")
        wait_for(lambda: daemon.tenant("alpha")["shared"]["enqueued"] == 1, 5, "an item")
        assert daemon.tenant("alpha")["shared"]["size_bytes"] == 1 << 20

        (daemon.policies / "a.yaml").write_text(stuck + "shared: {queue_items: 0}\n")
        assert daemon.reload()["alpha"]["result"] == "swapped"
        assert daemon.serves("alpha log")
        wait_for(lambda: daemon.tenant("alpha")["shared"]["queue_full"] == 1, 5, "an item is refused")
        assert daemon.tenant("alpha")["shared"]["enqueued"] == 1

        (daemon.policies / "a.yaml").write_text(stuck.replace("sha256: ", "sha256: 0") + "shared: {memory: 64KiB}\n")
        assert daemon.reload()["alpha"]["error"]
        assert daemon.tenant("alpha")["shared"]["size_bytes"] == 1 << 20

        (daemon.policies / "a.yaml").write_text(stuck + "shared: {memory: 64KiB, value: 4B}\n")
        assert daemon.reload()["alpha"]["result"] == "swapped"
        shared = daemon.tenant("alpha")["shared"]
        assert (shared["size_bytes"], shared["enqueued"]) == (64 << 10, 0)
        daemon.ask("alpha log /12")
        daemon.ask("alpha log /longer-than-a-value")
        wait_for(lambda: queue_full(daemon) == 1, 5, "the longer one is refused")
        wait_for(lambda: daemon.log.count("shipped /12") == 1, 5, "the short one is taken")
        text = scrape(daemon)
        assert value(text, 'sandboxd_plugin_gauge{tenant="alpha",plugin="shipper",name="shipper.ticks"}') <= 0


def test_counters_go_on_over_reloads_and_workers_that_die(short_path: Path, artefact_cache: Path) -> None:
    """What a plugin has counted stays counted, whichever worker it was in."""
    series = 'sandboxd_plugin_counter_total{tenant="alpha",plugin="shipper",name="shipper.lines"}'

    def shipped(count: int) -> None:
        wait_for(lambda: daemon.serves("alpha log"), 20, "served")
        wait_for(lambda: value(scrape(daemon), series) == count, 20, f"{count} lines counted")

    with fake_daemon(short_path, artefact_cache, {"a": policy()}, fronts=1, more=LISTEN) as daemon:
        shipped(1)
        (daemon.policies / "a.yaml").write_text(policy(tail="# another version\n"))
        assert daemon.reload()["alpha"]["result"] == "swapped"
        shipped(2)
        os.kill(daemon.worker_pid("alpha"), signal.SIGKILL)
        wait_for(lambda: daemon.tenant("alpha")["restarts"] == 1, 10, "the worker's death")
        shipped(3)
