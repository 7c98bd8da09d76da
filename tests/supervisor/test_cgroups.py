"""The workers' cgroups: taken or not, the order of limits, and what a worker's end leaves."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest

from sandboxd.errors import JailError
from sandboxd.jail.cgroup import CgroupFacts, CgroupLimits, CgroupUsage
from sandboxd.policy.model import Isolation, TenantPolicy
from sandboxd.supervisor import cgroups, launch
from sandboxd.supervisor.cgroups import Cgroups, WorkerCgroup, limits_of
from sandboxd.supervisor.exits import Exit
from sandboxd.supervisor.launch import WorkerSpec
from sandboxd.supervisor.process import WorkerProcess
from sandboxd.supervisor.worker_specs import WorkerSpecs

ISOLATION = Isolation(memory_bytes=64 << 20, cpu=0.1, pids=9, require=("cgroup",))
NOTHING = CgroupUsage(0, 0, 0, 0, 0, 0, 0, 0)


class Leaf:
    """Stands in for a leaf; says what was done to it."""

    def __init__(self, root: Path, name: str, prefix: str = "tenant-") -> None:
        self.path = root / f"{prefix}{name}"
        self.done: list[object] = []
        self.oom_kills = 0
        self.refuses = ""
        made.append(self)

    def create(self, limits: CgroupLimits) -> None:
        self.done.append(("create", limits))

    def set_limits(self, limits: CgroupLimits) -> None:
        self._maybe_refuse("set_limits")
        self.done.append(("limits", limits))

    def add(self, pid: int) -> None:
        self._maybe_refuse("add")
        self.done.append(("add", pid))

    def kill(self) -> None:
        self.done.append("kill")

    def remove(self) -> None:
        self._maybe_refuse("remove")
        self.done.append("remove")

    def usage(self) -> CgroupUsage:
        return CgroupUsage(1, 2, 3, 4, 5, self.oom_kills, 7, 8)

    def _maybe_refuse(self, step: str) -> None:
        if self.refuses == step:
            raise JailError("cgroup", 16, step)


made: list[Leaf] = []


def _ignore(_what: object) -> None:
    """Take an event or a sentence that the test has no use for."""


@pytest.fixture(autouse=True)
def leaves(monkeypatch: pytest.MonkeyPatch) -> list[Leaf]:
    """Have every leaf recorded."""
    made.clear()
    monkeypatch.setattr(cgroups, "TenantCgroup", Leaf)
    return made


def subtree(tmp_path: Path, pids: str) -> CgroupFacts:
    """A delegated cgroup with these processes, in a plain directory."""
    (tmp_path / "daemon").mkdir()
    for name, text in {"cgroup.procs": pids, "cgroup.subtree_control": "", "daemon/cgroup.procs": ""}.items():
        (tmp_path / name).write_text(text)
    return CgroupFacts(str(tmp_path), ("memory", "cpu", "pids"))


def policy(name: str = "acme", isolation: Isolation = ISOLATION) -> TenantPolicy:
    return TenantPolicy(name, (), isolation)


def worker_leaf() -> tuple[WorkerCgroup, Leaf]:
    leaf = Leaf(Path("/nowhere"), "acme.1")
    return WorkerCgroup(leaf, ISOLATION), leaf  # type: ignore[arg-type]


def test_a_subtree_of_our_own_is_taken(tmp_path: Path) -> None:
    (tmp_path / "tenant-old.7").mkdir()

    taken = Cgroups.take(subtree(tmp_path, "41\n"), own_pid=41)

    assert taken.live
    assert (tmp_path / "daemon" / "cgroup.procs").read_text() == "41"
    assert "+memory" in (tmp_path / "cgroup.subtree_control").read_text()
    assert [(leaf.path.name, leaf.done) for leaf in made] == [("tenant-old.7", ["remove"])]
    assert taken.status() == {"live": True, "path": str(tmp_path), "missing": ""}


def test_a_shells_cgroup_is_left_alone(tmp_path: Path) -> None:
    """Moving strangers into a leaf is not ours, root or not."""
    taken = Cgroups.take(subtree(tmp_path, "41\n77\n"), own_pid=41)

    assert not taken.live
    assert "other processes" in taken.reason
    assert (tmp_path / "daemon" / "cgroup.procs").read_text() == ""
    assert (tmp_path / "cgroup.subtree_control").read_text() == ""


def test_what_the_kernel_refuses_is_a_reason(tmp_path: Path) -> None:
    facts = CgroupFacts(str(tmp_path / "gone"), ("memory", "cpu", "pids"))

    assert "No such file" in Cgroups.take(facts, own_pid=1).reason


def test_without_delegation_a_policy_that_insists_is_refused() -> None:
    none = Cgroups.take(CgroupFacts(reason="not delegated"))

    with pytest.raises(JailError, match="not delegated"):
        none.worker(policy())
    assert none.worker(policy(isolation=Isolation())) is None
    assert none.status() == {"live": False, "path": "", "missing": "not delegated"}


def test_no_two_workers_share_a_leaf(tmp_path: Path) -> None:
    """Not two of one tenant, and not one of ``a`` and one of a tenant that is called ``a.1``."""
    own = Cgroups(tmp_path)

    for name in ("a", "a.1", "a", "a.1"):
        own.worker(policy(name))
    names = [leaf.path.name for leaf in made]

    assert len(set(names)) == 4, names


def test_memory_and_pids_hold_from_the_first_moment_and_the_cpu_quota_from_ready() -> None:
    group, leaf = worker_leaf()
    group.enter(5)
    group.hold()

    without = CgroupLimits(memory_bytes=64 << 20, cpus=None, pids=10)
    assert leaf.done == [("create", without), ("add", 5), ("limits", limits_of(ISOLATION))]
    assert limits_of(ISOLATION) == CgroupLimits(memory_bytes=64 << 20, cpus=0.1, pids=10)


def test_a_death_for_want_of_memory_is_told_as_such() -> None:
    group, leaf = worker_leaf()
    assert group.memory_death() == ""

    leaf.oom_kills = 1
    assert "isolation.memory (67108864 bytes)" in group.memory_death()


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """Have a program that only sleeps started in the worker's place."""
    started: list[subprocess.Popen[bytes]] = []

    def start(control_socket: object) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", "import time; time.sleep(60)"]
        started.append(subprocess.Popen(command, stderr=subprocess.PIPE))
        return started[-1]

    monkeypatch.setattr(launch, "start", start)
    return started


async def test_a_worker_is_inside_before_it_is_told_anything(stand_in: list[subprocess.Popen[bytes]]) -> None:
    """And its leaf is killed whole, and removed, once it is gone."""
    group, leaf = worker_leaf()
    gone: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
    worker = WorkerProcess(WorkerSpec("acme", make_cgroup=lambda: group), _ignore, gone.set_result)

    assert ("add", worker.pid) in leaf.done
    leaf.oom_kills = 1
    os.kill(worker.pid, 9)
    assert "isolation.memory" in (await asyncio.wait_for(gone, 10)).sentence
    async with asyncio.timeout(5):
        while "remove" not in leaf.done:
            await asyncio.sleep(0.01)
    assert leaf.done[-2:] == ["kill", "remove"]


async def test_killing_a_worker_kills_what_it_started(stand_in: list[subprocess.Popen[bytes]]) -> None:
    """At once, and not only when the worker is seen to be gone."""
    group, leaf = worker_leaf()
    gone: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
    worker = WorkerProcess(WorkerSpec("acme", make_cgroup=lambda: group), _ignore, gone.set_result)

    worker.kill("lied")

    assert leaf.done[-1] == "kill"
    assert "lied" in (await asyncio.wait_for(gone, 10)).sentence


async def test_a_worker_that_cannot_be_moved_is_not_started(stand_in: list[subprocess.Popen[bytes]]) -> None:
    group, leaf = worker_leaf()
    leaf.refuses = "add"

    with pytest.raises(JailError, match="add"):
        WorkerProcess(WorkerSpec("acme", make_cgroup=lambda: group), _ignore, _ignore)
    assert stand_in[0].returncode == -9
    async with asyncio.timeout(5):
        while "remove" not in leaf.done:
            await asyncio.sleep(0.01)


async def test_without_a_process_no_leaf_is_left() -> None:
    """Each retry would leave one more."""
    group, leaf = worker_leaf()

    def none() -> launch.Launched:
        raise OSError(11, "Resource temporarily unavailable")

    with pytest.raises(OSError, match="temporarily"):
        WorkerProcess(WorkerSpec("acme", make_cgroup=lambda: group, launch=none), _ignore, _ignore)
    async with asyncio.timeout(5):
        while "remove" not in leaf.done:
            await asyncio.sleep(0.01)


async def test_without_a_pidfd_nothing_is_left(
    stand_in: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the leaf nor the process."""
    group, leaf = worker_leaf()

    def none(*_: object) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "pidfd_open", none)
    with pytest.raises(OSError, match="Too many"):
        WorkerProcess(WorkerSpec("acme", make_cgroup=lambda: group), _ignore, _ignore)
    assert stand_in[0].returncode == -9
    async with asyncio.timeout(5):
        while "remove" not in leaf.done:
            await asyncio.sleep(0.01)


def test_a_leaf_is_made_for_a_process_and_not_before() -> None:
    """A tenant whose store cannot be opened comes no further than its spec."""
    maker = Mock(spec=Cgroups)
    specs = WorkerSpecs(Mock(worker=Mock(uid_base=1000)), Mock(), maker, Mock(), set)
    spec = specs.of(TenantPolicy("acme", (), Isolation()))
    maker.worker.assert_not_called()

    assert spec.make_cgroup() is maker.worker.return_value


async def test_a_leaf_that_will_not_go_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    group, leaf = worker_leaf()
    leaf.refuses = "remove"

    await group.remove()

    assert "jail step cgroup" in caplog.text


def test_a_compiler_has_a_leaf_of_its_own(tmp_path: Path) -> None:
    """With limits from the first moment, less weight than a worker, and a number that no worker has."""
    found = Cgroups(tmp_path)
    first, second = found.compiler(), found.compiler()

    assert first is not None
    assert second is not None
    assert [leaf.path.name for leaf in made] == ["compiler-1", "compiler-2"]
    ((step, limits),) = made[0].done  # type: ignore[misc]
    assert step == "create"
    assert limits == CgroupLimits(memory_bytes=2 << 30, cpus=None, pids=8, cpu_weight=25)
    first.enter(77)
    assert not first.memory_death()
    made[0].oom_kills = 1
    assert first.memory_death()
    first.remove()
    assert made[0].done[1:] == [("add", 77), "remove"]


def test_a_compilers_leaf_that_stays_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody waits for it."""
    found = Cgroups(tmp_path).compiler()
    assert found is not None
    made[0].refuses = "remove"
    found.remove()
    assert "remove" in caplog.text


def test_without_cgroups_a_compiler_has_none() -> None:
    assert Cgroups(None, "none here").compiler() is None
