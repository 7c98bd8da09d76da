"""
The daemon whole, with real workers and fronts that speak no gRPC: what dies comes back, what changes is
swapped.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from sandboxd.errors import WorkerError
from sandboxd.protos import admin_pb2 as admin
from tests.support.daemon_client import (
    ADD_HEADER,
    GUESTS,
    RUST_HEADERS,
    FakeDaemon,
    alive,
    fake_daemon,
    policy_text,
    wait_for,
)

MARK = ["x-wasm-processed", "Yes"]


@pytest.fixture
def daemon(short_path: Path, artefact_cache: Path) -> Iterator[FakeDaemon]:
    """A daemon with two tenants and two fronts."""
    policies = {"a": policy_text("alpha", ADD_HEADER), "b": policy_text("beta", RUST_HEADERS)}
    with fake_daemon(short_path, artefact_cache, policies) as running:
        yield running


def test_serves_and_tells_its_status(daemon: FakeDaemon) -> None:
    """Each front has a VM of its own of each plugin; status says so in the documented shape."""
    assert MARK in daemon.ask("alpha main", 0)["headers"]
    assert MARK in daemon.ask("alpha main", 1)["headers"]

    status = daemon.status()

    assert status["pid"] == daemon.process.pid
    assert [front["index"] for front in status["fronts"]] == [0, 1]
    assert all(front["pid"] and front["addresses"] and front["rss_bytes"] for front in status["fronts"])
    assert status["policy_errors"] == {}
    alpha = status["tenants"][0]
    assert alpha["tenant"] == "alpha"
    assert alpha["state"] == "running"
    assert alpha["last_error"] == ""
    assert alpha["worker"]["rss_bytes"] > 1 << 20
    assert "no_new_privs" in alpha["worker"]["layers"]
    plugin = alpha["plugins"][0]
    assert plugin["abi"] == "0.2.1"
    assert plugin["module_sha256"] in (daemon.policies / "a.yaml").read_text()
    assert [vm["state"] for vm in plugin["vms"]] == ["running", "running"]
    assert {vm["front"] for vm in plugin["vms"]} == {0, 1}
    json.dumps(status)


def test_the_operators_socket_is_the_operators_alone(daemon: FakeDaemon) -> None:
    """Mode 0600 on the socket; the state directory is closed too."""
    assert stat.S_IMODE((daemon.runtime / "admin.sock").stat().st_mode) == 0o600
    assert stat.S_IMODE((daemon.directory / "state").stat().st_mode) == 0o700
    assert stat.S_IMODE((daemon.directory / "state" / "redaction.key").stat().st_mode) == 0o600


def test_a_killed_worker_is_back_soon_and_nobody_else_notices(daemon: FakeDaemon) -> None:
    """SIGKILL of one tenant's worker under load of another tenant's; how soon is measured by the benchmark."""
    failures = []
    done = threading.Event()

    def load() -> None:
        while not done.is_set():
            answer = daemon.ask("beta main", 1)
            if answer.get("code") != 0:
                failures.append(answer)

    thread = threading.Thread(target=load)
    thread.start()
    try:
        old = daemon.worker_pid("alpha")
        os.kill(old, signal.SIGKILL)
        wait_for(lambda: not daemon.serves("alpha main") or not alive(old), 1, "the kill is noticed")
        wait_for(lambda: daemon.serves("alpha main") and daemon.serves("alpha main", 1), 5, "back")
    finally:
        done.set()
        thread.join()

    assert failures == []
    assert daemon.worker_pid("alpha") != old
    assert daemon.tenant("alpha")["restarts"] == 1
    assert daemon.tenant("beta")["restarts"] == 0
    assert "SIGKILL" in daemon.log
    wait_for(lambda: daemon.tenant("alpha")["state"] == "running", 5, "running again")
    assert daemon.tenant("alpha")["last_error"] == ""


def test_a_worker_that_dies_again_and_again_is_started_ever_later(daemon: FakeDaemon) -> None:
    """The first restart is at once, the second one waits."""
    for _ in range(3):
        wait_for(lambda: daemon.tenant("alpha")["worker"] is not None, 10, "a worker")
        os.kill(daemon.worker_pid("alpha"), signal.SIGKILL)
        wait_for(lambda: daemon.tenant("alpha")["worker"] is None or daemon.serves("alpha main"), 5, "noticed")

    delays = [line.rpartition(" in ")[2] for line in daemon.log.splitlines() if "starts again in" in line]

    assert delays[0] == "0.0 s"
    assert all(float(delay.split()[0]) > 0.1 for delay in delays[1:])
    wait_for(lambda: daemon.serves("alpha main"), 10, "back")


@pytest.mark.long
def test_a_worker_that_stops_answering_is_killed(daemon: FakeDaemon) -> None:
    """SIGSTOP: no pong for some seconds, then SIGKILL, then a fresh one."""
    old = daemon.worker_pid("alpha")
    os.kill(old, signal.SIGSTOP)

    wait_for(lambda: not alive(old), 15, "killed")
    wait_for(lambda: daemon.serves("alpha main"), 3, "back")

    assert "did not answer" in daemon.log


def test_a_killed_front_is_replaced_and_gets_its_channels(daemon: FakeDaemon) -> None:
    """The other front serves on; workers stay the same."""
    old, worker = daemon.status()["fronts"][0]["pid"], daemon.worker_pid("alpha")
    os.kill(old, signal.SIGKILL)

    assert daemon.serves("alpha main", 1)
    wait_for(lambda: daemon.serves("alpha main", 0) and daemon.serves("beta main", 0), 5, "the front is back")

    status = daemon.status()
    assert status["fronts"][0]["pid"] != old
    assert status["front_restarts"] == 1
    assert daemon.worker_pid("alpha") == worker
    wait_for(lambda: len(daemon.tenant("alpha")["plugins"][0]["vms"]) == 2, 3, "the dead front's VM is closed")


def test_a_broken_channel_costs_its_worker(daemon: FakeDaemon) -> None:
    """A front says that the VM broke the rules: the worker is killed, and a fresh one takes over."""
    old = daemon.worker_pid("alpha")
    daemon.ask("broken alpha main")

    wait_for(lambda: not alive(old), 3, "killed")
    wait_for(lambda: daemon.serves("alpha main"), 3, "back")

    assert "broke a channel: a test says so" in daemon.log


def test_reload_swaps_what_changed_and_nothing_else(daemon: FakeDaemon) -> None:
    """A changed tenant gets a new worker, the old one ends; the other tenant keeps its worker."""
    alpha, beta = daemon.worker_pid("alpha"), daemon.worker_pid("beta")
    (daemon.policies / "a.yaml").write_text(policy_text("alpha", RUST_HEADERS))

    results = daemon.reload()

    assert results == {
        "alpha": {"result": "swapped", "error": ""},
        "beta": {"result": "unchanged", "error": ""},
    }
    assert MARK not in daemon.ask("alpha main")["headers"]
    assert daemon.worker_pid("beta") == beta
    assert daemon.worker_pid("alpha") != alpha
    wait_for(lambda: not alive(alpha), 5, "the old worker ends when it is drained")


def test_reload_loses_no_request(daemon: FakeDaemon) -> None:
    """Requests during many swaps all get a verdict."""
    failures = []
    done = threading.Event()

    def load() -> None:
        while not done.is_set():
            answer = daemon.ask("alpha main")
            if answer.get("code") != 0:
                failures.append(answer)

    thread = threading.Thread(target=load)
    thread.start()
    try:
        for number in range(4):
            (daemon.policies / "a.yaml").write_text(policy_text("alpha", ADD_HEADER) + f"# {number}\n")
            assert daemon.reload()["alpha"]["result"] == "swapped"
    finally:
        done.set()
        thread.join()

    assert failures == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tenant: [", "is not valid YAML"),
        (policy_text("alpha", ADD_HEADER, more="limits: {cpu_per_call: 5 parsecs}"), "limits.cpu_per_call"),
        (policy_text("alpha", ADD_HEADER, sha256="0" * 64), "sha256"),
        (policy_text("alpha", GUESTS / "misdeeds" / "configure_false.wasm"), "configure"),
        (policy_text("alpha", Path("/nonexistent.wasm"), sha256="0" * 64), "nonexistent"),
    ],
    ids=["yaml", "unit", "sha256", "configure", "missing"],
)
def test_a_bad_version_leaves_the_last_good_one(daemon: FakeDaemon, text: str, expected: str) -> None:
    """Whatever is wrong with the new version, the old worker goes on, and status tells the error."""
    before = daemon.worker_pid("alpha")
    (daemon.policies / "a.yaml").write_text(text)

    results = daemon.reload()

    assert results["alpha"]["result"] == "kept"
    assert expected in results["alpha"]["error"]
    assert MARK in daemon.ask("alpha main")["headers"]
    tenant = daemon.tenant("alpha")
    assert expected in tenant["last_error"]
    assert tenant["worker"]["pid"] == before
    assert tenant["state"] == "running"

    (daemon.policies / "a.yaml").write_text(policy_text("alpha", ADD_HEADER))
    assert daemon.reload()["alpha"] == {"result": "unchanged", "error": ""}
    assert daemon.tenant("alpha")["last_error"] == ""


def test_duplicate_tenants_are_errors_and_the_running_one_goes_on(daemon: FakeDaemon) -> None:
    """
    A second file that claims a tenant is refused; so is the first, which goes on with its last good version.
    """
    (daemon.policies / "c.yaml").write_text(policy_text("alpha", RUST_HEADERS))

    results = daemon.reload()

    assert results["alpha"]["result"] == "kept"
    assert results[str(daemon.policies / "c.yaml")]["result"] == "failed"
    assert "each tenant has one file" in results["alpha"]["error"]
    assert MARK in daemon.ask("alpha main")["headers"]
    assert str(daemon.policies / "c.yaml") in daemon.status()["policy_errors"]


def test_a_removed_tenant_is_gone_and_a_new_one_is_there(daemon: FakeDaemon) -> None:
    """By SIGHUP; the removed tenant's worker ends."""
    old = daemon.worker_pid("alpha")
    (daemon.policies / "a.yaml").rename(daemon.policies / "a.yaml.off")
    (daemon.policies / "g.yaml").write_text(policy_text("gamma", ADD_HEADER))
    daemon.process.send_signal(signal.SIGHUP)

    wait_for(lambda: daemon.serves("gamma main"), 10, "the new tenant serves")
    wait_for(lambda: not alive(old), 5, "the removed tenant's worker ends")

    assert daemon.ask("alpha main") == {"down": "removed"}
    assert [tenant["tenant"] for tenant in daemon.status()["tenants"]] == ["beta", "gamma"]


def test_restart_gives_a_fresh_worker(daemon: FakeDaemon) -> None:
    """And an unknown tenant is an error that names the known ones."""
    old = daemon.worker_pid("alpha")

    result = daemon.admin(admin.ADMIN_COMMAND_RESTART, "alpha")

    assert result["results"]["alpha"]["result"] == "restarted"
    assert daemon.worker_pid("alpha") != old
    assert daemon.serves("alpha main")
    with pytest.raises(WorkerError, match=r"no tenant nobody .*alpha, beta"):
        daemon.admin(admin.ADMIN_COMMAND_RESTART, "nobody")


def test_stops_cleanly(daemon: FakeDaemon) -> None:
    """SIGTERM: status 0, no process left, no stray warning or traceback in the log."""
    status = daemon.status()
    pids = [front["pid"] for front in status["fronts"]]
    pids += [tenant["worker"]["pid"] for tenant in status["tenants"]]

    start_s = time.monotonic()
    assert daemon.stop() == 0

    assert time.monotonic() - start_s < 8
    assert not [pid for pid in pids if alive(pid)]
    assert "Traceback" not in daemon.log
    assert "Warning" not in daemon.log
    assert not (daemon.runtime / "admin.sock").exists()
    assert "front-0: fake front 0 begins" in daemon.log, "the fronts' records come through the supervisor"


def test_nothing_survives_a_supervisor_that_is_killed(daemon: FakeDaemon) -> None:
    """Workers, fronts and the zygote end by the end of their sockets."""
    status = daemon.status()
    pids = [front["pid"] for front in status["fronts"]]
    pids += [tenant["worker"]["pid"] for tenant in status["tenants"]]

    daemon.process.kill()
    daemon.process.wait()

    wait_for(lambda: not [pid for pid in pids if alive(pid)], 8, "all have ended")


def test_two_daemons_do_not_share_a_runtime_directory(daemon: FakeDaemon) -> None:
    """The second one says who has it, in one line, and ends."""
    command = [*daemon.process.args]  # type: ignore[misc]
    second = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, cwd=GUESTS.parents[1])

    assert second.returncode != 0
    assert f"another sandboxd (pid {daemon.process.pid}) uses this runtime directory" in second.stderr
    assert daemon.serves("alpha main")


def test_a_tenant_that_cannot_start_is_down_and_the_others_serve(short_path: Path, artefact_cache: Path) -> None:
    """The front is told why; the good plugin of the same tenant serves."""
    bad = GUESTS / "misdeeds" / "configure_false.wasm"
    both = policy_text("alpha", ADD_HEADER) + policy_text("alpha", bad, name="bad").partition("plugins:\n")[2]
    policies = {"a": both, "b": policy_text("beta", ADD_HEADER), "c": "tenant: ["}
    with fake_daemon(short_path, artefact_cache, policies, fronts=1) as daemon:
        assert daemon.serves("alpha main")
        assert daemon.serves("beta main")
        # Until its VM has failed, the others serving meanwhile, it is starting.
        wait_for(lambda: "configure" in daemon.ask("alpha bad")["down"], 10, "the reason why it is down")

        status = daemon.status()

        assert [tenant["state"] for tenant in status["tenants"]] == ["degraded", "running"]
        assert "plugin bad: failed while starting" in status["tenants"][0]["last_error"]
        failures = status["tenants"][0]["plugins"][1]["last_failures"]
        assert failures[0]["cause"] == "start_refused"
        assert [Path(path).name for path in status["policy_errors"]] == ["c.yaml"]


def test_tells_systemd(short_path: Path, artefact_cache: Path) -> None:
    """READY at the start, RELOADING and READY around a reload, WATCHDOG in between, STOPPING at the end."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(short_path / "notify"))
        sock.settimeout(20)
        environment = {"NOTIFY_SOCKET": str(short_path / "notify"), "WATCHDOG_USEC": "300000"}
        policies = {"a": policy_text("alpha", ADD_HEADER)}
        with fake_daemon(short_path, artefact_cache, policies, fronts=1, environment=environment) as daemon:
            assert sock.recv(1000).startswith(b"READY=1\nSTATUS=1 of 1 tenants run")
            assert sock.recv(1000) == b"WATCHDOG=1"
            daemon.reload()
            assert daemon.stop() == 0
        sock.setblocking(False)
        said = []
        while not said or said[-1] != b"STOPPING=1":
            said.append(sock.recv(1000))

    assert any(word.startswith(b"RELOADING=1\nMONOTONIC_USEC=") for word in said)
    assert any(word.startswith(b"READY=1") for word in said)


def test_too_few_threads_are_an_error_at_once(short_path: Path, artefact_cache: Path) -> None:
    """Not a worker that dies at every start; the front is told the reason too."""
    few = "isolation: {pids: 4}\n" + policy_text("alpha", ADD_HEADER)
    with fake_daemon(short_path, artefact_cache, {"a": few, "b": policy_text("beta", ADD_HEADER)}, fronts=3) as daemon:
        tenant = daemon.tenant("alpha")
        assert tenant["state"] == "failed"
        assert "isolation.pids: is too small: 1 plugins on 3 fronts need 5 threads" in tenant["last_error"]
        assert "isolation.pids" in daemon.ask("alpha main")["down"]
        assert daemon.serves("beta main")


def test_a_vm_that_waits_after_crashes_is_shown_and_restart_brings_it_back(
    short_path: Path, artefact_cache: Path
) -> None:
    """The worker lives, the plugin is down; the failures say where it trapped."""
    trap = GUESTS / "misdeeds" / "trap_in_request_headers.wasm"
    more = "failure: {restart: {backoff: 5s, max_crashes: 3}}"
    policies = {"a": policy_text("alpha", trap, more=more)}
    with fake_daemon(short_path, artefact_cache, policies, fronts=1) as daemon:

        def is_down() -> bool:
            """Down for its backoff: after its first crash it is down as well, for a moment."""
            daemon.ask("alpha main")
            tenant = daemon.tenant("alpha")
            return tenant["state"] == "failed" and tenant["plugins"][0]["vms"][0]["crashes"] == 2

        wait_for(is_down, 10, "the VM waits")

        tenant = daemon.tenant("alpha")
        assert tenant["state"] == "failed"
        assert "wait to be started again" in tenant["last_error"]
        plugin = tenant["plugins"][0]
        assert plugin["vms"][0]["state"] == "failed"
        assert plugin["vms"][0]["crashes"] >= 2
        assert plugin["last_failures"][-1]["cause"] == "trap"
        assert plugin["last_failures"][-1]["callback"] == "proxy_on_request_headers"

        daemon.admin(admin.ADMIN_COMMAND_RESTART, "alpha")
        assert daemon.tenant("alpha")["state"] == "running"


def test_without_a_zygote_the_daemon_ends_for_its_service_manager(daemon: FakeDaemon) -> None:
    """Fronts could not be replaced any more."""
    front = psutil.Process(daemon.status()["fronts"][0]["pid"])
    zygote = front.parent()
    assert zygote is not None
    assert zygote.ppid() == daemon.process.pid
    zygote.kill()

    assert daemon.process.wait(20) == 1
    assert "the zygote is gone" in daemon.log


def test_a_front_that_cannot_serve_ends_the_daemon(short_path: Path, artefact_cache: Path) -> None:
    """Status 2 and the reason in the log, in place of starting it again and again."""
    (short_path / "policies").mkdir()
    missing = short_path / "none.pem"
    tls = f"tls: {{certificate: {missing}, key: {missing}}}"
    (short_path / "c.yaml").write_text(
        f"policies: {short_path}/policies\nruntime_directory: {short_path}/run\n"
        f"cache_directory: {artefact_cache}\nstate_directory: {short_path}/state\n"
        f"front: {{processes: 1, listen: [{{tcp: '127.0.0.1:1', {tls}}}]}}\n"
    )
    command = [sys.executable, "-m", "sandboxd", "serve", "--config", str(short_path / "c.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 2
    assert f"cannot read {missing}" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_fresh_daemon_takes_over_after_a_crash(short_path: Path, artefact_cache: Path) -> None:
    """Dead sockets and a stale pid file are no obstacle."""
    policies = {"a": policy_text("alpha", ADD_HEADER)}
    with fake_daemon(short_path, artefact_cache, policies, fronts=1) as first:
        first.process.kill()
        first.process.wait()
        assert (short_path / "run" / "admin.sock").exists()
        second = FakeDaemon(short_path, artefact_cache, fronts=1)
        try:
            second.wait_ready()
            assert second.serves("alpha main")
        finally:
            assert second.stop() == 0
