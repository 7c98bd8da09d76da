"""The daemon and the jail: what every worker gets, what is refused, what may be tolerated, what is tried at start."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sandboxd.jail.layers import ALWAYS_REQUIRED, Layer
from sandboxd.protos import admin_pb2 as admin
from tests.support.daemon_client import ADD_HEADER, FakeDaemon, fake_daemon, policy_text

pytestmark = pytest.mark.long

POOR = "tests.support.poor_machine"
ALPHA = {"a": policy_text("alpha", ADD_HEADER)}


def test_every_worker_is_jailed_whole(short_path: Path, artefact_cache: Path) -> None:
    """Status names the layers; the kernel confirms some of them; the pid is the worker's, not its waiter's."""
    policies = {"a": policy_text("alpha", ADD_HEADER), "b": policy_text("beta", ADD_HEADER)}
    with fake_daemon(short_path, artefact_cache, policies, fronts=1) as daemon:
        status = daemon.status()
        uids = set()
        for tenant in status["tenants"]:
            worker = tenant["worker"]
            assert {Layer(name) for name in worker["layers"]} >= ALWAYS_REQUIRED
            assert status["jail"]["layers"] == [name for name in worker["layers"] if name != "cgroup"]
            text = Path(f"/proc/{worker['pid']}/status").read_text()
            assert f"PPid:\t{worker['waiter_pid']}\n" in text
            assert "Seccomp_filters:\t2" in text
            assert "CapEff:\t0000000000000000" in text
            uids.add(re.search(r"Uid:\t(\d+)", text)[1])  # type: ignore[index]
            assert worker["rss_bytes"] > 1 << 20
        assert status["jail"]["self_test"] == "off"
        if os.geteuid() == 0:
            assert len(uids) == 2
            assert "0" not in uids


def test_self_test_at_start(short_path: Path, artefact_cache: Path) -> None:
    """It is made unless the operator says no, before a worker is started."""
    with fake_daemon(short_path, artefact_cache, ALPHA, fronts=1, more="") as daemon:
        assert "self-test: no attack gets out of the jail" in daemon.log
        assert daemon.status()["jail"]["self_test"] == "passed"


def test_daemon_whose_jail_does_not_hold_does_not_serve(short_path: Path) -> None:
    """Exit status 1, with the attack's name, and no worker was started."""
    script = (
        "import sys, sandboxd.supervisor.daemon as daemon, sandboxd.supervisor.launch as launch\n"
        "from sandboxd.cli import main\n"
        "daemon.self_test = lambda uid, tolerate: {'open': 'succeeded'}\n"
        "launch.start = lambda *_: print('a worker was started')\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    (short_path / "policies").mkdir()
    (short_path / "policies" / "a.yaml").write_text(ALPHA["a"])
    arguments = [f"--{name}-directory={short_path / name}" for name in ("runtime", "cache", "state")]
    done = subprocess.run(
        [sys.executable, "-c", script, "serve", f"--policies={short_path}/policies", "--fronts=1", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 1, done.stderr
    assert "attacks got through: open (succeeded)" in done.stderr
    assert "a worker was started" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_tenant_that_requires_what_the_machine_lacks_is_refused(short_path: Path, artefact_cache: Path) -> None:
    """State ``refused``, with the reason; not tried again and again; the others serve."""
    picky = "isolation: {require: [landlock, seccomp]}\n" + policy_text("alpha", ADD_HEADER)
    policies = {"a": picky, "b": policy_text("beta", ADD_HEADER)}
    options = {"environment": {"LACKS": "landlock"}, "program": POOR}
    with fake_daemon(short_path, artefact_cache, policies, fronts=1, **options) as daemon:  # type: ignore[arg-type]
        alpha = daemon.tenant("alpha")
        assert (alpha["state"], alpha["worker"]) == ("refused", None)
        assert "refused: jail step landlock: not available (needs Linux 5.13" in alpha["last_error"]
        assert "starts again" not in daemon.log
        assert "jail step landlock" in daemon.log
        assert "jail step landlock" in daemon.ask("alpha main")["down"]
        assert daemon.serves("beta main")
        assert "landlock" in daemon.status()["jail"]["missing"]
        assert "landlock" not in daemon.tenant("beta")["worker"]["layers"]

        # A version that asks for less runs; one that asks for more leaves the one that runs alone.
        (daemon.policies / "a.yaml").write_text(policy_text("alpha", ADD_HEADER))
        assert daemon.reload()["alpha"]["result"] == "started"
        assert daemon.serves("alpha main")
        (daemon.policies / "a.yaml").write_text(picky)
        assert daemon.reload()["alpha"]["result"] == "kept"
        alpha = daemon.tenant("alpha")
        assert alpha["state"] == "running"
        assert "landlock" in alpha["last_error"]
        assert daemon.serves("alpha main")


def test_machine_without_namespaces_is_refused_by_default(short_path: Path, artefact_cache: Path) -> None:
    """Nothing starts; the error names the layer and what can be done."""
    (short_path / "policies").mkdir()
    daemon = FakeDaemon(short_path, artefact_cache, environment={"LACKS": "network"}, program=POOR)

    assert daemon.process.wait(30) != 0
    assert "jail step network_namespace: not available (a test says so)" in daemon.log


def test_what_is_tolerated_is_told_loudly(short_path: Path, artefact_cache: Path) -> None:
    """Workers run with all the other layers; log and status say what they lack; the self-test agrees."""
    more = "jail: {tolerate: [network_namespace]}\n"
    options = {"environment": {"LACKS": "network"}, "program": POOR, "more": more}
    with fake_daemon(short_path, artefact_cache, ALPHA, fronts=1, **options) as daemon:  # type: ignore[arg-type]
        assert "WORKERS ARE LESS ISOLATED: jail.tolerate does without network_namespace (a test says so)" in daemon.log
        status = daemon.status()
        assert status["jail"]["tolerated"] == {"network_namespace": "a test says so"}
        layers = status["tenants"][0]["worker"]["layers"]
        assert "network_namespace" not in layers
        assert {"seccomp", "mount_namespace", "pid_namespace"} <= set(layers)
        inside = Path(f"/proc/{daemon.worker_pid('alpha')}/ns/net")
        if os.geteuid() == 0:
            assert inside.readlink() == Path("/proc/self/ns/net").readlink()
        assert daemon.serves("alpha main")


def test_tolerance_does_not_help_against_a_policy(short_path: Path, artefact_cache: Path) -> None:
    """What ``isolation.require`` names is required whatever the operator of the machine tolerates."""
    picky = "isolation: {require: [namespaces]}\n" + policy_text("alpha", ADD_HEADER)
    more = "jail: {tolerate: [namespaces], self_test: false}\n"
    options = {"environment": {"LACKS": "network"}, "program": POOR, "more": more}
    with fake_daemon(short_path, artefact_cache, {"a": picky}, fronts=1, **options) as daemon:  # type: ignore[arg-type]
        assert daemon.tenant("alpha")["state"] == "refused"


def test_artefact_that_was_altered_never_reaches_a_worker(short_path: Path, tmp_path: Path) -> None:
    """It is refused, logged and made again; the key is nobody else's to read."""
    with fake_daemon(short_path, tmp_path / "cache", ALPHA, fronts=1) as daemon:
        assert (daemon.directory / "state" / "artefact.key").stat().st_mode & 0o777 == 0o600
        (entry,) = (tmp_path / "cache").glob("*.sbxb")
        content = bytearray(entry.read_bytes())
        content[-100] ^= 1
        entry.write_bytes(content)
        (daemon.policies / "a.yaml").write_text(ALPHA["a"] + "# changed\n")

        assert daemon.reload()["alpha"]["result"] == "swapped"
        assert "is damaged, was altered" in daemon.log
        assert entry.read_bytes() != content
        daemon.admin(admin.ADMIN_COMMAND_RESTART, "alpha")
        assert daemon.serves("alpha main")
