"""What the proofs ask of the machine: systemd, processes, cgroups, the service's own commands."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from sandboxd.config_file import load_config
from sandboxd.protos import admin_pb2
from sandboxd.supervisor.admin import admin_socket, call

SANDBOXD = "/opt/sandboxd/bin/sandboxd"
PYTHON = "/opt/sandboxd/bin/python"
PROOF = Path("/opt/proof")
CONFIG = Path("/etc/sandboxd/sandboxd.yaml")
POLICIES = Path("/etc/sandboxd/policies")
UNIT = "sandboxd.service"
SUBTREE = Path("/sys/fs/cgroup/system.slice") / UNIT

T = TypeVar("T")
Json = dict[str, Any]


def run(
    *command: str, ok: bool = True, timeout_s: float = 240, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command; with ``ok``, anything but status 0 is an error that shows what it said."""
    result = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False, cwd=cwd)
    if ok and result.returncode:
        words = (result.stdout + result.stderr).strip()[-2000:]
        raise AssertionError(f"{' '.join(command)} ended with status {result.returncode}: {words}")
    return result


def show(name: str, unit: str = UNIT) -> str:
    """Return a property of a unit."""
    return run("systemctl", "show", "--value", f"--property={name}", unit).stdout.strip()


def status(config: Path = CONFIG) -> Json:
    """Return what ``sandboxd status`` says."""
    # The command's own call without the command: the emulated processor needs seconds to load it each time.
    path = admin_socket(load_config(config))
    return call(path, admin_pb2.AdminRequest(command=admin_pb2.ADMIN_COMMAND_STATUS), 30)


def tenant(name: str) -> Json:
    """Return one tenant of the status."""
    return next(item for item in status()["tenants"] if item["tenant"] == name)


def worker_pid(name: str) -> int:
    """Return the pid of a tenant's worker, once it runs."""

    def running() -> int | None:
        item = tenant(name)
        return int(item["worker"]["pid"]) if item["state"] == "running" and item["worker"] else None

    return wait_for(running, f"tenant {name} to run", 90)


def wait_for(look: Callable[[], T | None], what: str, timeout_s: float, pause_s: float = 0.2) -> T:
    """Return the first answer that is not None, False or 0."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        if found := look():
            return found
        assert time.monotonic() < deadline_s, f"waited {timeout_s:.0f} s in vain for {what}"
        time.sleep(pause_s)


def alive(pid: int) -> bool:
    """Return whether a process exists; a zombie does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def wait_for_end(pid: int, timeout_s: float) -> None:
    """Wait until a process is gone."""
    wait_for(lambda: not alive(pid), f"the end of process {pid}", timeout_s)


def leaf_of(pid: int) -> Path:
    """Return a process's cgroup."""
    line = Path(f"/proc/{pid}/cgroup").read_text().strip()
    assert line.startswith("0::/"), line
    return Path("/sys/fs/cgroup") / line[4:]


def table(path: Path) -> dict[str, int]:
    """Read a flat keyed file of a cgroup."""
    pairs = (line.split() for line in path.read_text().splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs}


def inside(leaf: Path, code: str) -> subprocess.Popen[str]:
    """
    Run Python code in a tenant's cgroup: it stands in for a worker that native code has taken over.

    It is in the cgroup before the first line of ``code`` runs, and in a session of its own.
    """
    preamble = f"open({str(leaf / 'cgroup.procs')!r}, 'w').write('0')\n"
    return subprocess.Popen(
        [PYTHON, "-c", preamble + code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )


def main_pid() -> int:
    """Return the daemon's pid."""
    return int(show("MainPID"))


def everybody() -> set[int]:
    """Return all processes of the service."""
    return {int(word) for path in SUBTREE.rglob("cgroup.procs") for word in path.read_text().split()}


def journal_tail(since_s: float) -> str:
    """Return the service's last words, for the report of a failed proof."""
    command = ["journalctl", "-q", "-o", "cat", f"--since=-{int(since_s) + 1}s", "-n", "25", "-u", UNIT]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return f"the service's log:\n{result.stdout[-3000:]}"


def write_policy(name: str, text: str) -> None:
    """Put a policy file in place at once, as an operator's tool would."""
    new = POLICIES / f".{name}.new"
    new.write_text(text)
    new.replace(POLICIES / f"{name}.yaml")
