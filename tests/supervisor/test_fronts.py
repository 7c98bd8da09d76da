"""What the fronts of a privileged daemon have left: by the kernel's own account, thread by thread."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest

from sandboxd.demo import daemon
from tests.support.daemon_client import ADD_HEADER, policy_text

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="another user has nothing to give up")
FIELDS = re.compile(
    r"^(Uid|Gid|Groups|CapInh|CapPrm|CapEff|CapBnd|CapAmb|NoNewPrivs|Seccomp):[ \t]*(.*)$", re.MULTILINE
)


def threads_of(pid: int) -> list[dict[str, str]]:
    """Return the status fields of each thread."""
    return [dict(FIELDS.findall((t / "status").read_text())) for t in Path(f"/proc/{pid}/task").iterdir()]


@as_root
def test_fronts_of_a_privileged_daemon_have_nothing_left(short_path: Path, unused_tcp_port: int) -> None:
    """No thread has a capability or root's uid, though the sockets are root's; a front that comes back neither."""
    policies = short_path / "policies"
    policies.mkdir()
    (policies / "a.yaml").write_text(policy_text("alpha", ADD_HEADER))
    listen = ["{runtime_directory}/front-{index}.sock", {"tcp": f"127.0.0.1:{unused_tcp_port}"}]
    config = {"jail": {"self_test": False}, "front": {"listen": listen, "user": "4242"}}
    with daemon.running(policies, short_path, config=config) as running:
        first = running.status()["fronts"][0]
        for thread in threads_of(first["pid"]):
            assert set(thread["Uid"].split()) == set(thread["Gid"].split()) == {"4242"}
            assert thread["Groups"].strip() == ""
            for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
                assert int(thread[name], 16) == 0, name
            assert thread["NoNewPrivs"] == "1"
            assert thread["Seccomp"] == "2"
        # Not dumpable: its files in /proc are root's, and other processes of its uid cannot trace it.
        assert Path(f"/proc/{first['pid']}/environ").stat().st_uid == 0
        assert running.sockets[0].stat().st_uid == 0
        assert running.sockets[0].stat().st_mode & 0o777 == 0o660
        assert any("127.0.0.1" in address for address in first["addresses"])

        os.kill(first["pid"], signal.SIGKILL)
        running.child.wait_until(lambda: _other_front(running, first["pid"]), 10)
        second = running.status()["fronts"][0]
        assert threads_of(second["pid"])[0]["CapEff"] == "0" * 16
    assert not running.sockets[0].exists()


def _other_front(running: daemon.Daemon, old: int) -> bool:
    return any(front["ready"] and front["pid"] != old for front in running.status()["fronts"])
