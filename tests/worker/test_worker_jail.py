"""The jail round a worker process, as the kernel tells of it."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from sandboxd.channel import layout
from sandboxd.jail.facts import machine_facts
from sandboxd.jail.filter_files import load_filters
from sandboxd.jail.jailer import Jailer
from sandboxd.jail.layers import ALWAYS_REQUIRED, Layer
from sandboxd.protos import control_pb2 as control
from sandboxd.supervisor import frames, launch
from tests.support.vm_traffic import guest_bundle, request
from tests.support.worker_process import OneVm, WorkerProcess

BUNDLE = guest_bundle("c/c_add_header")


def test_worker_reports_its_layers() -> None:
    """All that the machine can give, and the kernel says the same of the process."""
    spec = launch.WorkerSpec("test")
    with WorkerProcess() as worker:
        status = Path(f"/proc/{worker.pid}/status").read_text()
        limits = Path(f"/proc/{worker.pid}/limits").read_text()
        fds = sorted(int(entry.name) for entry in Path(f"/proc/{worker.pid}/fd").iterdir())

    assert worker.layers == tuple(layer.value for layer in spec.plan(5, 7).layers())
    assert {Layer(name) for name in worker.layers} >= ALWAYS_REQUIRED
    assert "NoNewPrivs:\t1" in status
    assert "Seccomp_filters:\t1" in status
    assert re.search(r"NSpid:\t\d+\t1\n", status)
    assert "CapBnd:\t0000000000000000" in status
    assert len(fds) == 5  # 0 to 2, the control socket, and its own maps until the modules are loaded
    for name, value in (
        ("core file size", "0"),
        ("file size", "0"),
        ("open files", "64"),
        ("locked memory", "0"),
    ):
        line = next(line for line in limits.splitlines() if line.startswith(f"Max {name}  "))
        assert line.removeprefix(f"Max {name}").split()[:2] == [value, value]


def test_jail_is_complete_before_a_guest_runs() -> None:
    """The second filter is there when the first VM says that it runs, in every thread."""
    with OneVm(guest_bundle("c/c_add_header")) as one:
        one.worker.receive("vm_started")
        tasks = list(Path(f"/proc/{one.worker.pid}/task").iterdir())
        filters = [re.search(r"Seccomp_filters:\t(\d)", (task / "status").read_text()) for task in tasks]
        fds = {str(entry.readlink()) for entry in Path(f"/proc/{one.worker.pid}/fd").iterdir()}
        maps = Path(f"/proc/{one.worker.pid}/maps").read_text()

    assert len(tasks) >= 3
    assert {found[1] for found in filters if found} == {"2"}
    assert not any(name.startswith("/proc") for name in fds)
    assert " rwx" not in maps


@pytest.mark.skipif(os.geteuid() != 0, reason="changing the user needs root")
def test_worker_takes_its_own_user() -> None:
    """For good, and with no group left."""
    with WorkerProcess(uid=64321, gid=64322) as worker:
        status = Path(f"/proc/{worker.pid}/status").read_text()
        waiter = Path(f"/proc/{worker.process.pid}/status").read_text()

    for text in (status, waiter):
        assert "Uid:\t64321\t64321\t64321\t64321" in text
        assert "Gid:\t64322\t64322\t64322\t64322" in text
        assert "Groups:\t \n" in text or "Groups:\t\n" in text


def test_worker_serves_in_a_user_namespace() -> None:
    """The road of a daemon without privilege: a namespace with a single id takes the place of the uid."""
    facts = replace(machine_facts(), privileged=False, may_change_uid=False)
    with OneVm(BUNDLE, jailer=Jailer(facts, load_filters())) as one:
        one.worker.receive("vm_started")
        one.vm.wait_ready(5)

        assert request(one).code == layout.CODE_OK
        outside = Path("/proc/self/ns/user").readlink()
        assert Path(f"/proc/{one.worker.pid}/ns/user").readlink() != outside
        assert Path(f"/proc/{one.worker.pid}/uid_map").read_text().split() == ["65534", str(os.getuid()), "1"]
        assert "uid" in one.worker.layers


@pytest.mark.parametrize("plan", [b"", b"rubbish", b'{"steps": [["inside", "dance", "uid", {}]], "missing": []}'])
def test_worker_without_a_plan_ends(plan: bytes) -> None:
    """It never goes on unjailed."""
    with frames.Pair() as pair:
        process = launch.start(pair.theirs)
        sock = pair.ours
    with sock:
        setup = control.WorkerSetup(tenant="t", jail_plan=plan)
        frames.send(sock, control.ToWorker(setup=setup).SerializeToString())

        assert process.wait(10) != 0
        assert process.stderr is not None
        words = process.stderr.read().decode()
        process.stderr.close()
    assert "the jail's plan makes no sense" in words or "dance" in words
