"""What the trusted side knows of the machine, and the plans that it makes of it."""

from __future__ import annotations

import os
import socket
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sandboxd.errors import JailError
from sandboxd.jail import capabilities, facts, jailer, namespaces
from sandboxd.jail.enter import enter
from sandboxd.jail.facts import MachineFacts, machine_facts
from sandboxd.jail.filter_files import load_filters
from sandboxd.jail.full_plan import Phase
from sandboxd.jail.jailer import SPARE_UID, Jailer, WorkerWishes
from sandboxd.jail.layers import ALWAYS_REQUIRED, Layer, resolve
from sandboxd.jail.syscalls import prctl, syscall
from tests.support.jailed import Child

FILTERS = load_filters()
RICH = replace(
    machine_facts(), privileged=True, may_change_uid=True, namespaces=dict.fromkeys(namespaces.CLONE_FLAGS, "")
)
POOR = replace(RICH, namespaces={**RICH.namespaces, "network": "not here"})


def uids(found: Any) -> set[int]:
    return {dict(step.arguments)["uid"] for step in found.steps if step.name == "change_uid"}


def test_facts_survive_the_way_between_processes() -> None:
    assert MachineFacts.decode(machine_facts().encode()) == machine_facts()
    with pytest.raises((ValueError, KeyError, TypeError)):
        MachineFacts.decode("{}")


def test_a_process_with_threads_has_another_one_ask() -> None:
    """A fork of it would be undefined behaviour; the answers are the same."""
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    facts.machine_facts.cache_clear()
    try:
        found = facts.machine_facts()
        assert (found.kernel, found.architecture, found.seccomp) == (RICH.kernel, RICH.architecture, RICH.seccomp)
        assert set(found.namespaces) == set(namespaces.CLONE_FLAGS)
    finally:
        done.set()
        thread.join()


def test_a_process_that_cannot_ask_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    monkeypatch.setattr(facts, "python_module", lambda _: (["/bin/false"], {}))
    facts.machine_facts.cache_clear()
    try:
        with pytest.raises(JailError, match="the machine could not be asked"):
            facts.machine_facts()
    finally:
        done.set()
        thread.join()
        facts.machine_facts.cache_clear()


def test_uids() -> None:
    """The tenant's own, or a spare one; none where nobody can give any."""
    rich = Jailer(RICH, FILTERS)
    assert uids(rich.worker(3, 1, WorkerWishes(uid=7, gid=8))) == {7}
    assert uids(rich.worker(3, 1, WorkerWishes())) == {SPARE_UID}
    assert uids(rich.compiler(3, 4, 1, cpu_seconds=1, memory_bytes=1, result_bytes=1)) == {SPARE_UID}
    plain = Jailer(replace(RICH, privileged=False, may_change_uid=False), FILTERS)
    found = plain.worker(3, 1, WorkerWishes(uid=7))
    assert uids(found) == set()
    assert "user_namespace" in [step.name for step in found.phase(Phase.OUTSIDE)]


def test_missing_layers_are_refused_tolerated_or_required_all_the_same() -> None:
    with pytest.raises(JailError, match=r"network_namespace.*not here"):
        Jailer(POOR, FILTERS).check(frozenset())
    tolerant = Jailer(POOR, FILTERS, resolve(("namespaces",)))
    tolerant.check(frozenset())
    assert tolerant.tolerated() == ((Layer.NETWORK_NAMESPACE, "not here"),)
    assert Layer.NETWORK_NAMESPACE not in tolerant.worker(3, 1, WorkerWishes()).layers()
    with pytest.raises(JailError, match="network_namespace"):
        tolerant.check(frozenset({Layer.NETWORK_NAMESPACE}))
    with pytest.raises(JailError, match="network_namespace"):
        Jailer(POOR, FILTERS).compiler(3, 4, 1, cpu_seconds=1, memory_bytes=1, result_bytes=1)


def test_layers_that_must_be_asked_for() -> None:
    """By the policy that requires them."""
    rich = Jailer(replace(RICH, architecture="x86_64"), FILTERS)
    assert Layer.TSC not in rich.worker(3, 1, WorkerWishes()).layers()
    assert Layer.TSC in rich.worker(3, 1, WorkerWishes(require=frozenset({Layer.TSC}))).layers()


def test_a_compiler_writes_one_file_and_has_no_thread() -> None:
    found = Jailer(RICH, FILTERS).compiler(3, 4, 1, cpu_seconds=9, memory_bytes=1 << 30, result_bytes=100)
    limits = next(dict(step.arguments) for step in found.phase(Phase.INSIDE) if step.name == "rlimits")["limits"]

    assert {("FSIZE", 100), ("NPROC", 1), ("CPU", 9), ("AS", 1 << 30)} <= set(limits)  # type: ignore[arg-type]
    assert dict(found.steps[0].arguments)["keep"] == (0, 1, 2, 3, 4)


def test_this_machine_is_made_once() -> None:
    assert jailer.this_machine() is jailer.this_machine()
    assert jailer.this_machine(frozenset({Layer.UID})).tolerate == {Layer.UID}


@pytest.mark.skipif(os.getuid() != 0, reason="a container's root is played by a process that was root")
@pytest.mark.parametrize("may_change_uid", [True, False], ids=["root", "nobody"])
def test_container_without_namespaces(may_change_uid: bool) -> None:
    """
    Where neither namespaces nor user namespaces can be had: refused, and with the operator's leave jailed by the rest.
    """

    def act(control: socket.socket) -> Any:
        control.recv(1)  # the parent has written the id maps
        os.setgroups([])
        (Path("/proc/sys/user/max_user_namespaces")).write_text("0")
        if not may_change_uid:
            os.setresgid(1234, 1234, 1234)
            os.setresuid(1234, 1234, 1234)
            prctl(4, 1)  # dumpable, as a process that never was root
        else:
            _without_sys_admin()
        found = facts.read_facts()
        try:
            Jailer(found, FILTERS).check(frozenset())
            refusal = ""
        except JailError as error:
            refusal = error.step
        tolerant = Jailer(found, FILTERS, ALWAYS_REQUIRED)
        plan = tolerant.worker(control.fileno(), os.getpid(), WorkerWishes(uid=4321, gid=4321))
        enter(plan).lock()
        missing = [layer for layer, _ in tolerant.tolerated()]
        return [refusal, found.own_uids, missing, _opens(), list(plan.layers())]

    def container(control: socket.socket) -> Any:
        namespaces.unshare("user")
        control.send(b"?")
        return act(control)

    child = Child(container)
    assert child.receive() == b"?"
    for name in ("uid_map", "gid_map"):
        Path(f"/proc/{child.pid}/{name}").write_text("0 0 65536")
    child.socket.send(b"!")
    report = child.end().report

    assert isinstance(report, list), report
    refusal, own_uids, missing, opened, layers = report
    assert refusal == ("pid_namespace" if may_change_uid else "uid")
    assert own_uids == may_change_uid
    assert "network_namespace" in missing
    assert ("uid" in missing) == (not may_change_uid)
    assert opened == "ENOENT"
    assert {"seccomp", "no_new_exec", "capabilities", "rlimits", "no_new_privs"} <= set(layers)


def _without_sys_admin() -> None:
    effective = capabilities.effective_sets()[0] & ~(1 << 21)
    header = capabilities._Header(0x2008_0522, 0)
    words = (effective & 0xFFFF_FFFF, effective & 0xFFFF_FFFF, 0, effective >> 32, effective >> 32, 0)
    sets = capabilities._Sets()
    sets.words[:] = words
    syscall("capset", header, sets)


def _opens() -> str:
    try:
        os.close(os.open("/etc/passwd", os.O_RDONLY))
    except OSError as error:
        return "ENOENT" if error.errno == 2 else str(error)
    return "opened"
