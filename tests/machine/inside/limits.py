"""Proofs: every limit of a worker's cgroup holds, by going past it, and its neighbour notices nothing."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path
from typing import Any

import exchange
import system
import tenants

MIB = 1 << 20
_HOG = """
import time
kept = []
while True:
    kept.append(bytearray(b'x') * (4 << 20))
    print(len(kept) * 4, flush=True)
"""
_BOMB = """
import os, signal, sys, time, ctypes
children = []
try:
    while True:
        pid = os.fork()
        if pid == 0:
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)
            time.sleep(600)
        children.append(pid)
except OSError as error:
    print(len(children), error.errno, flush=True)
sys.stdin.read()
for pid in children:
    os.kill(pid, signal.SIGKILL)
"""
_EAGAIN = 11
_SLEEPER = "import sys, time\nprint('in', flush=True)\ntime.sleep(600)\n"


def workers_are_in_cgroups_with_the_policys_limits() -> dict[str, Any]:
    """One leaf per worker under the delegated subtree, the daemon in one of its own, nobody in between."""
    assert not (system.SUBTREE / "cgroup.procs").read_text().split()
    daemon = system.leaf_of(system.main_pid())
    assert daemon == system.SUBTREE / "daemon"
    leaves = {name: system.leaf_of(system.worker_pid(name)) for name in ("calm", "hungry", "busy")}
    assert len(set(leaves.values())) == 3
    for name, leaf in leaves.items():
        assert re.fullmatch(rf"tenant-{name}\.\d+", leaf.name), leaf
        memory = tenants.HUNGRY_MEMORY_MIB if name == "hungry" else tenants.CALM_MEMORY_MIB
        found = {file: (leaf / file).read_text().strip() for file in _FILES}
        quota = f"{round(tenants.BUSY_CPU * 100_000)} 100000" if name == "busy" else "max 100000"
        assert found["memory.max"] == str(memory * MIB), (name, found)
        assert found["memory.swap.max"] == "0", (name, found)
        assert found["memory.oom.group"] == "1", (name, found)
        assert found["pids.max"] == str(tenants.PIDS + 1), (name, found)  # and the worker's waiter
        assert found["cpu.max"] == quota, (name, found)
        assert found["memory.high"].isdigit(), (name, found)
        assert int(found["memory.high"]) < memory * MIB
        assert "cgroup" in system.tenant(name)["worker"]["layers"]
    return {name: str(leaf) for name, leaf in leaves.items()}


_FILES = (
    "memory.max",
    "memory.high",
    "memory.swap.max",
    "memory.oom.group",
    "pids.max",
    "cpu.max",
    "cpu.weight",
)


def status_shows_usage_and_pressure() -> dict[str, Any]:
    """The figures of the status are the kernel's."""
    worker = system.tenant("calm")["worker"]
    shown = worker["cgroup"]
    leaf = system.leaf_of(worker["pid"])
    memory, cpu = int((leaf / "memory.current").read_text()), system.table(leaf / "cpu.stat")["usage_usec"]
    assert 0.5 * memory < shown["memory_bytes"] < 2 * memory, (shown, memory)
    assert 0.2 * cpu < shown["cpu_us"] <= cpu, (shown, cpu)
    assert shown["pids"] >= 2, shown
    assert "total=" in (leaf / "memory.pressure").read_text()
    assert {"memory_pressure_us", "cpu_pressure_us", "throttled_us", "oom_kills"} <= shown.keys()
    # Pressure that exists is shown: the tenant with little CPU waited for it while its module was started.
    assert system.tenant("busy")["worker"]["cgroup"]["cpu_pressure_us"] > 0
    return {key: str(value) for key, value in shown.items()}


def memory_limit_kills_a_greedy_guest_alone() -> dict[str, Any]:
    """A guest that fills its VM past the worker's limit loses the worker, and nobody else anything."""
    calm, hungry = system.worker_pid("calm"), system.worker_pid("hungry")
    answer = exchange.request("hungry")
    assert exchange.failure_status(answer) == 503, answer
    exchange.check_calm()
    system.wait_for_end(hungry, 60)
    message = system.wait_for(lambda: _memory_words("hungry"), "the log to say why", 30)
    again = system.worker_pid("hungry")
    assert again != hungry
    assert system.worker_pid("calm") == calm
    exchange.check_calm()
    return {"answer": answer.immediate_response.details, "said": message}


def _memory_words(name: str) -> str:
    log = system.run("journalctl", "-q", "-o", "cat", "-b", "-u", system.UNIT).stdout
    lines = [line for line in log.splitlines() if f"tenant {name}" in line and "isolation.memory" in line]
    return lines[-1] if lines else ""


def memory_limit_kills_native_code_with_its_group_and_without_swap() -> dict[str, Any]:
    """Native code in the worker's place takes the whole group with it, and never gets a page of swap."""
    swap = Path("/var/swap.proof")
    system.run("fallocate", "-l", "512M", str(swap))
    swap.chmod(0o600)
    system.run("mkswap", str(swap))
    system.run("swapon", str(swap))
    try:
        calm, hungry = system.worker_pid("calm"), system.worker_pid("hungry")
        leaf = system.leaf_of(hungry)
        hog = system.inside(leaf, _HOG)
        most_swap = 0
        deadline_s = time.monotonic() + 90
        while hog.poll() is None and time.monotonic() < deadline_s:
            most_swap = max(most_swap, _read_number(leaf / "memory.swap.current"))
            time.sleep(0.05)
        taken = hog.stdout.read().split() if hog.stdout else []
        assert hog.wait(5) == -9, hog.returncode
        assert most_swap == 0, f"{most_swap} bytes were swapped out"
        reached = int(taken[-1])
        assert reached <= tenants.HUNGRY_MEMORY_MIB, f"it got {reached} MiB"
        system.wait_for_end(hungry, 10)
        assert system.worker_pid("calm") == calm
        exchange.check_calm()
        system.worker_pid("hungry")
    finally:
        system.run("swapoff", str(swap))
        swap.unlink()
    return {"MiB before the end": reached, "swapped": most_swap}


def _read_number(path: Path) -> int:
    try:
        return int(path.read_text())
    except OSError:
        return 0


def cpu_limit_throttles() -> dict[str, Any]:
    """A guest that loops gets its share of the CPU and no more, while its neighbour is served."""
    leaf = system.leaf_of(system.worker_pid("busy"))
    before, began_s = system.table(leaf / "cpu.stat"), time.monotonic()
    loop = subprocess.Popen(
        [system.PYTHON, "-c", "import exchange\nexchange.request('busy')"], cwd="/opt/proof", text=True
    )
    try:
        # The client takes its time to start; the loop runs when the quota first bites.
        throttled = before["nr_throttled"]
        system.wait_for(lambda: system.table(leaf / "cpu.stat")["nr_throttled"] > throttled + 2, "a throttle", 60)
        first, first_s = system.table(leaf / "cpu.stat"), time.monotonic()
        time.sleep(5)
        exchange.check_calm()
        second, second_s = system.table(leaf / "cpu.stat"), time.monotonic()
        loop.wait(120)
    finally:
        loop.kill()
        loop.wait()
    after = system.table(leaf / "cpu.stat")
    share = (second["usage_usec"] - first["usage_usec"]) / 1e6 / (second_s - first_s)
    assert second["nr_throttled"] > first["nr_throttled"], (first, second)
    # Half of the share at least, or nothing was proven; a tenth above it for the period's grain.
    assert tenants.BUSY_CPU / 2 < share < tenants.BUSY_CPU * 1.15, share
    used_s = (after["usage_usec"] - before["usage_usec"]) / 1e6
    return {"CPU share": round(share, 3), "limit": tenants.BUSY_CPU, "CPU seconds": round(used_s, 2),
            "wall seconds": round(time.monotonic() - began_s, 1)}  # fmt: skip


def pids_limit_stops_a_fork_bomb() -> dict[str, Any]:
    """Native code in the worker's place gets no more processes than the policy says."""
    leaf = system.leaf_of(system.worker_pid("calm"))
    own = _read_number(leaf / "pids.current")
    bomb = system.inside(leaf, _BOMB)
    try:
        assert bomb.stdout is not None
        children, errno = map(int, bomb.stdout.readline().split())
        assert errno == _EAGAIN
        assert children == tenants.PIDS + 1 - own - 1, (children, own)  # the limit counts the worker's waiter
        assert system.table(leaf / "pids.events")["max"] > 0
        exchange.check_calm()
        subprocess.run(["true"], check=True)  # and the machine forks on
    finally:
        bomb.communicate(timeout=30)
    exchange.check_calm()
    return {"children": children, "worker's own": own}


def removed_tenant_leaves_no_process() -> dict[str, Any]:
    """A removed tenant's cgroup is killed whole: what native code left behind in it is gone too."""
    hungry = system.worker_pid("hungry")
    leaf = system.leaf_of(hungry)
    left = system.inside(leaf, _SLEEPER)
    try:
        assert left.stdout is not None
        assert left.stdout.readline() == "in\n"
        (system.POLICIES / "hungry.yaml").unlink()
        system.run("systemctl", "reload", "sandboxd")
        system.wait_for(lambda: left.poll() is not None, "the end of what was left behind", 60)
        assert left.returncode == -9, left.returncode
        system.wait_for(lambda: not leaf.exists(), "the leaf's removal", 10)
        assert not system.alive(hungry)
    finally:
        left.kill()
        left.communicate(timeout=10)
        tenants.write_all()
        system.run("systemctl", "reload", "sandboxd")
    system.worker_pid("hungry")
    exchange.check_calm()
    return {"leaf": leaf.name}


def _two(leaf: Path) -> list[str] | None:
    pids = (leaf / "cgroup.procs").read_text().split()
    return pids if len(pids) == 2 else None


def compilers_have_cgroups_of_their_own() -> dict[str, Any]:
    """A compiler is limited apart from the daemon: by the kernel's files, and by a fork bomb in its place."""
    before = time.monotonic()
    system.write_policy("fresh", tenants.policy("fresh", "rust/http_headers.wasm", f"pids: {tenants.PIDS}"))
    reload = subprocess.Popen(["systemctl", "reload", "sandboxd"])
    bomb: subprocess.Popen[str] | None = None
    try:
        leaf = system.wait_for(lambda: next(system.SUBTREE.glob("compiler-*"), None), "a compiler", 60, pause_s=0.01)
        # Both of its processes: a bomb that came first would keep it from closing its own jail.
        inside = system.wait_for(lambda: _two(leaf), "a compiler in its jail", 30, pause_s=0.01)
        found = {name: (leaf / name).read_text().strip() for name in _FILES}
        daemon = (system.SUBTREE / "daemon" / "cgroup.procs").read_text().split()
        assert not set(inside) & set(daemon)
        assert found["memory.max"] == str(2 << 30), found
        assert found["memory.swap.max"] == "0", found
        assert found["memory.oom.group"] == "1", found
        assert found["pids.max"] == "8", found
        assert found["cpu.weight"] == "25", found
        bomb = system.inside(leaf, _BOMB)
        assert bomb.stdout is not None
        children, errno = map(int, bomb.stdout.readline().split())
        assert errno == _EAGAIN
        assert children < 8, children
        exchange.check_calm()
        assert reload.wait(120) == 0
    finally:
        reload.wait(120)
        (system.POLICIES / "fresh.yaml").unlink()
        system.run("systemctl", "reload", "sandboxd")
        if bomb is not None:
            bomb.communicate(timeout=30)
    # The bomb was still in it: a compiler's leaf takes everything along when it goes.
    assert bomb.returncode == -9, bomb.returncode
    assert not list(system.SUBTREE.glob("compiler-*"))
    return {"children": children, "seconds": round(time.monotonic() - before, 1), **found}
