"""From crash to quarantine and back, through the whole daemon: VMs that trap, workers that die, the commands."""

from __future__ import annotations

import json
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandboxd.cli import main
from sandboxd.limits import MAX_RESTART_MAX_CRASHES
from tests.support.daemon_client import ADD_HEADER, FakeDaemon, Json, alive, fake_daemon, policy_text, wait_for
from tests.support.guests import GUESTS

pytestmark = [pytest.mark.long, pytest.mark.timeout(120)]

TRAPS = GUESTS / "misdeeds" / "trap_in_request_headers.wasm"
REFUSES = GUESTS / "misdeeds" / "configure_false.wasm"
QUICK = "failure: {restart: {backoff: 10ms, max_crashes: 2, window: 60m}}"
PATIENT = f"failure: {{restart: {{backoff: 10ms, max_crashes: {MAX_RESTART_MAX_CRASHES}}}}}"


@pytest.fixture(scope="module")
def artefact_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a cache of compiled modules for all tests here."""
    return tmp_path_factory.mktemp("artefacts")


@pytest.fixture
def short_path() -> Iterator[Path]:
    """Return a directory whose path is short enough for Unix sockets."""
    with tempfile.TemporaryDirectory(prefix="sbx") as directory:
        yield Path(directory)


def pair(bad: Path, policy: str = QUICK) -> str:
    """Return a policy with a good plugin ``main`` and a bad one."""
    good = policy_text("alpha", ADD_HEADER, more=PATIENT)
    return good + policy_text("alpha", bad, name="bad", more=policy).partition("plugins:\n")[2]


def plugin(daemon: FakeDaemon, name: str) -> Json:
    """Return one plugin's status."""
    return next(dict(found) for found in daemon.tenant("alpha")["plugins"] if found["plugin"] == name)


def crash_until_quarantine(daemon: FakeDaemon) -> str:
    """Send requests until the plugin is down for good; return what its streams are told."""
    wait_for(lambda: "quarantine" in daemon.ask("alpha bad").get("down", ""), 20, "quarantine")
    return str(daemon.ask("alpha bad")["down"])


def test_a_module_that_traps_ends_in_quarantine(
    short_path: Path, artefact_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is answered at once and told why; its neighbour in the same worker serves on; restart lifts it."""
    with fake_daemon(short_path, artefact_cache, {"a": pair(TRAPS)}, fronts=1) as daemon:
        worker = daemon.worker_pid("alpha")
        said = crash_until_quarantine(daemon)

        assert "3 crashes within 3600 s (failure.restart.max_crashes is 2), the last: trap: unreachable" in said
        assert "`sandboxd restart alpha/bad` lifts it" in said
        assert daemon.serves("alpha main")
        assert daemon.worker_pid("alpha") == worker
        shown = plugin(daemon, "bad")
        assert shown["crash_counts"] == {"trap": 3}
        assert shown["quarantine"]["since_s"] > 0
        assert [failure["callback"] for failure in shown["last_failures"]] == ["proxy_on_request_headers"] * 3
        assert "(function 2, " in shown["last_failures"][-1]["backtrace"][0]  # a module without names
        assert daemon.tenant("alpha")["state"] == "degraded"
        assert daemon.reload()["alpha"] == {"result": "unchanged", "error": ""}
        assert daemon.worker_pid("alpha") == worker

        config = ["--config", str(daemon.config)]
        assert main(["crashes", *config]) == 1
        out = capsys.readouterr().out
        assert "alpha/bad  module" in out
        assert "3 crashes: 3 trap" in out
        assert "in quarantine since" in out
        assert "      at ? (function 2, " in out
        assert main(["status", *config]) == 1
        assert "3 QUARANTINE" in capsys.readouterr().out
        assert main(["crashes", "alpha/main", "--json", *config]) == 0
        assert json.loads(capsys.readouterr().out) == {"entries": []}
        assert main(["crashes", "alpha/", *config]) == 2
        assert "TENANT or TENANT/PLUGIN" in capsys.readouterr().err
        assert main(["restart", "alpha/nobody", *config]) == 1
        assert "has no plugin nobody (allowed: main, bad)" in capsys.readouterr().err

        assert main(["restart", "alpha/bad", *config]) == 0
        assert plugin(daemon, "bad")["quarantine"] is None
        wait_for(lambda: "down" not in daemon.ask("alpha bad"), 10, "back")
        assert main(["crashes", *config]) in (0, 1)
        assert crash_until_quarantine(daemon)


def test_a_module_that_does_not_start_ends_in_quarantine(short_path: Path, artefact_cache: Path) -> None:
    """Without any request; no further start is tried."""
    with fake_daemon(short_path, artefact_cache, {"a": pair(REFUSES)}, fronts=1) as daemon:
        wait_for(lambda: plugin(daemon, "bad")["quarantine"] is not None, 10, "quarantine")

        shown = plugin(daemon, "bad")
        assert shown["crash_counts"] == {"start_refused": 3}
        assert all(failure["while_starting"] for failure in shown["last_failures"])
        assert "start refused: proxy_on_configure returned false" in daemon.ask("alpha bad")["down"]
        assert daemon.serves("alpha main")
        assert sum("it starts again in" in line for line in daemon.log.splitlines()) == 2


def test_quarantine_outlives_the_daemon_and_ends_with_another_module(short_path: Path, artefact_cache: Path) -> None:
    """A restart of the daemon is no way out for the module; a mended module is."""
    with fake_daemon(short_path, artefact_cache, {"a": pair(TRAPS)}, fronts=1) as daemon:
        crash_until_quarantine(daemon)
        assert daemon.stop() == 0
        second = FakeDaemon(short_path, artefact_cache, fronts=1)
        try:
            second.wait_ready()
            assert "quarantine" in second.ask("alpha bad")["down"]
            assert second.serves("alpha main")
            assert plugin(second, "bad")["crash_counts"] == {"trap": 3}
            assert [item["plugin"] for item in second.tenant("alpha")["plugins"] if item["vms"]] == ["main"]

            (second.policies / "a.yaml").write_text(pair(ADD_HEADER))
            assert second.reload()["alpha"] == {"result": "swapped", "error": ""}
            assert second.serves("alpha bad")
            assert plugin(second, "bad")["crash_counts"] == {}
            assert second.tenant("alpha")["state"] == "running"
        finally:
            second.stop()


def test_a_worker_that_dies_counts_for_its_plugins(short_path: Path, artefact_cache: Path) -> None:
    """Nobody can tell whose doing it was. The strict plugin is left out in the end, the patient one serves on."""
    policies = {"a": pair(ADD_HEADER), "b": policy_text("beta", ADD_HEADER)}
    with fake_daemon(short_path, artefact_cache, policies, fronts=1) as daemon:
        for _ in range(3):
            wait_for(lambda: daemon.serves("alpha main") and daemon.tenant("alpha")["worker"] is not None, 10, "serves")
            pid = daemon.worker_pid("alpha")
            os.kill(pid, signal.SIGKILL)
            wait_for(lambda pid=pid: not alive(pid), 5, "dead")  # type: ignore[misc]

        wait_for(lambda: "quarantine" in daemon.ask("alpha bad").get("down", ""), 10, "quarantine")
        wait_for(lambda: daemon.serves("alpha main"), 10, "the patient one is back")
        assert plugin(daemon, "main")["crash_counts"] == {"worker_signal": 3}
        assert plugin(daemon, "bad")["crash_counts"] == {"worker_signal": 3}
        assert plugin(daemon, "main")["quarantine"] is None
        assert "SIGKILL" in plugin(daemon, "main")["last_failures"][-1]["message"]
        assert daemon.serves("beta main")
        assert daemon.tenant("beta")["restarts"] == 0


def test_each_worker_death_has_its_cause(short_path: Path, artefact_cache: Path) -> None:
    """A broken channel, and silence."""
    with fake_daemon(short_path, artefact_cache, {"a": pair(ADD_HEADER, PATIENT)}, fronts=1) as daemon:
        daemon.ask("broken alpha main")
        wait_for(lambda: daemon.tenant("alpha")["restarts"] == 1 and daemon.serves("alpha main"), 10, "back")
        os.kill(daemon.worker_pid("alpha"), signal.SIGSTOP)
        wait_for(lambda: daemon.tenant("alpha")["restarts"] == 2 and daemon.serves("alpha main"), 30, "back")

        assert plugin(daemon, "main")["crash_counts"] == {"worker_protocol": 1, "worker_silent": 1}
