"""cgroup v2 against a plain directory: what is written where, what is refused, what is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandboxd.errors import JailError
from sandboxd.jail.cgroup import (
    CONTROLLERS,
    CgroupLimits,
    TenantCgroup,
    leaf_name,
    prepare_subtree,
    pressure_total,
    read_cgroup_facts,
    settings,
    stale_leaves,
)

LIMITS = CgroupLimits(memory_bytes=256 << 20, cpus=0.5, pids=17)


def fake(root: Path, controllers: str = "cpuset cpu io memory hugetlb pids") -> Path:
    """A delegated subtree as systemd makes it."""
    (root / "cgroup.controllers").write_text("cpu memory pids\n")
    own = root / "system.slice" / "sandboxd.service"
    own.mkdir(parents=True)
    for name, text in {
        "cgroup.controllers": controllers,
        "cgroup.subtree_control": "",
        "cgroup.procs": "11\n",
    }.items():
        (own / name).write_text(text)
    return own


def fake_leaf(own: Path, tenant: str) -> Path:
    """A leaf with the files that the kernel would put there."""
    leaf = own / leaf_name(tenant)
    leaf.mkdir()
    for name in [*settings(LIMITS), "cgroup.procs", "cgroup.kill"]:
        (leaf / name).write_text("")
    return leaf


def membership(tmp_path: Path, line: str = "0::/system.slice/sandboxd.service") -> Path:
    path = tmp_path / "self-cgroup"
    path.write_text(f"12:cpu:/x\n{line}\n")
    return path


def test_the_settings() -> None:
    assert settings(LIMITS) == {
        "memory.max": "268435456",
        "memory.high": "260046848",
        "memory.swap.max": "0",
        "memory.oom.group": "1",
        "cpu.max": "50000 100000",
        "cpu.weight": "100",
        "pids.max": "17",
    }
    assert settings(CgroupLimits(1 << 20))["cpu.max"] == "max 100000"
    assert settings(CgroupLimits(1 << 20, cpus=0.0001))["cpu.max"] == "1000 100000"
    # Soft before hard: memory.high must lie below memory.max.
    assert int(settings(LIMITS)["memory.high"]) < int(settings(LIMITS)["memory.max"])


def test_a_delegated_subtree(tmp_path: Path) -> None:
    own = fake(tmp_path)
    facts = read_cgroup_facts(tmp_path, membership(tmp_path))
    assert (facts.path, facts.controllers, facts.reason) == (str(own), CONTROLLERS, "")


@pytest.mark.parametrize(
    ("line", "controllers", "reason"),
    [
        ("0::/system.slice/sandboxd.service", "cpu pids", "controllers are missing: memory"),
        ("1:memory:/", "cpu memory pids", "in no cgroup"),
        ("0::/../other", "cpu memory pids", "in no cgroup"),
    ],
)
def test_what_is_not_delegated_says_why(tmp_path: Path, line: str, controllers: str, reason: str) -> None:
    fake(tmp_path, controllers)
    assert reason in read_cgroup_facts(tmp_path, membership(tmp_path, line)).reason


def test_no_v2_hierarchy(tmp_path: Path) -> None:
    facts = read_cgroup_facts(tmp_path, membership(tmp_path))
    assert "is not a cgroup v2 hierarchy" in facts.reason
    assert "Delegate=yes" in facts.reason


def test_the_daemon_finds_its_subtree_from_its_leaf(tmp_path: Path) -> None:
    own = fake(tmp_path)
    line = "0::/system.slice/sandboxd.service/daemon"
    assert read_cgroup_facts(tmp_path, membership(tmp_path, line)).path == str(own)


def test_prepare_moves_the_daemon_aside(tmp_path: Path) -> None:
    own = fake(tmp_path)
    (own / "daemon").mkdir()
    (own / "daemon" / "cgroup.procs").write_text("")
    prepare_subtree(own)
    assert (own / "daemon" / "cgroup.procs").read_text() == "11"
    assert (own / "cgroup.subtree_control").read_text() == "+memory +cpu +pids"


def test_a_tenants_life(tmp_path: Path) -> None:
    own = fake(tmp_path)
    leaf = fake_leaf(own, "acme")
    cgroup = TenantCgroup(own, "acme")
    cgroup.create(LIMITS)
    assert {name: (leaf / name).read_text() for name in settings(LIMITS)} == settings(LIMITS)
    cgroup.add(4242)
    assert cgroup.pids() == (4242,)
    cgroup.kill()
    assert (leaf / "cgroup.kill").read_text() == "1"
    for file in list(leaf.iterdir()):
        file.unlink()
    cgroup.remove()
    assert not leaf.exists()
    cgroup.remove()  # gone already: nothing to do


def test_a_leaf_that_will_not_go(tmp_path: Path) -> None:
    own = fake(tmp_path)
    fake_leaf(own, "acme")
    with pytest.raises(JailError, match="cannot be removed"):
        TenantCgroup(own, "acme").remove()


def test_a_missing_control_file_is_an_error_and_swap_is_not(tmp_path: Path) -> None:
    """On cgroupfs a file that is not there means a controller that is not there."""
    own = fake(tmp_path)
    leaf = fake_leaf(own, "acme")
    (leaf / "memory.swap.max").unlink()
    TenantCgroup(own, "acme").create(LIMITS)
    assert not (leaf / "memory.swap.max").exists()
    (leaf / "pids.max").unlink()
    with pytest.raises(JailError, match=r"cgroup pids\.max"):
        TenantCgroup(own, "acme").create(LIMITS)


@pytest.mark.parametrize("tenant", ["", "..", ".hidden", "a/b", "a\nb", "x" * 129])
def test_names_that_could_leave_the_subtree(tenant: str) -> None:
    with pytest.raises(ValueError, match="cannot be the name"):
        leaf_name(tenant)


def test_usage(tmp_path: Path) -> None:
    own = fake(tmp_path)
    leaf = fake_leaf(own, "acme")
    files = {
        "memory.current": "1000\n",
        "memory.peak": "max\n",
        "pids.current": "3\n",
        "cpu.stat": "usage_usec 77\nuser_usec 1\nnr_throttled 2\nthrottled_usec 5\n",
        "memory.events": "low 0\nhigh 3\nmax 2\noom 1\noom_kill 4\noom_group_kill 1\n",
        "memory.pressure": "some avg10=0.00 avg60=0.00 avg300=0.00 total=123\nfull avg10=0 total=9\n",
    }
    for name, text in files.items():
        (leaf / name).write_text(text)
    usage = TenantCgroup(own, "acme").usage()
    assert (usage.memory_bytes, usage.memory_peak_bytes, usage.pids) == (1000, 0, 3)
    assert (usage.cpu_us, usage.throttled_us, usage.oom_kills) == (77, 5, 1)
    assert (usage.memory_pressure_us, usage.cpu_pressure_us) == (123, 0)


def test_pressure_without_a_total() -> None:
    assert pressure_total("full total=3\n") == 0


def test_stale_leaves(tmp_path: Path) -> None:
    for tenant in ("acme", "gone"):
        (tmp_path / leaf_name(tenant)).mkdir()
    (tmp_path / "daemon").mkdir()
    assert [path.name for path in stale_leaves(tmp_path, frozenset({"acme"}))] == ["tenant-gone"]
