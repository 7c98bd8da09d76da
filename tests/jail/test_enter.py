"""Entering and locking the jail for real, on both roads, seen from outside."""

from __future__ import annotations

import ctypes
import dataclasses
import faulthandler
import mmap
import os
import platform
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import wasmtime

from sandboxd.doctor.observe import observe, worker_pid
from sandboxd.doctor.probe import Prison
from sandboxd.jail import vdso
from sandboxd.jail.enter import enter, writable_and_executable
from sandboxd.jail.facts import read_facts
from sandboxd.jail.filter_files import load_filters
from sandboxd.jail.full_plan import JailPlan, Phase, Step
from sandboxd.jail.layers import Layer
from sandboxd.jail.syscalls import syscall
from tests.jail import honest_worker
from tests.support.jailed import Child, Ended, become_nobody, in_child

FILTERS = load_filters()
NOTHING: frozenset[Layer] = frozenset()
ROADS = pytest.mark.parametrize(
    "as_nobody",
    [pytest.param(False, id="own uid"), pytest.param(True, id="user namespace")]
    if os.getuid() == 0
    else [pytest.param(False, id="user namespace")],
)
"""Both roads as root; otherwise the one that there is."""


def whole_plan(control: socket.socket, extra: frozenset[Layer] = NOTHING) -> JailPlan:
    return Prison(read_facts(), FILTERS).plan(control.fileno(), os.getpid(), NOTHING, extra)


def jailed(action: Any, *, as_nobody: bool, extra: frozenset[Layer] = NOTHING) -> Ended:
    """Run ``action(jail, control)`` inside."""

    def child(control: socket.socket) -> Any:
        return action(enter(whole_plan(control, extra)), control)

    return in_child(child, as_nobody=as_nobody)


@ROADS
def test_an_honest_worker_lives_in_the_whole_jail(as_nobody: bool) -> None:
    serialized = honest_worker.artefact()

    def live(control: socket.socket) -> str:
        if as_nobody:
            become_nobody()
        jail = enter(whole_plan(control))
        return honest_worker.live(control, serialized, jail.lock)

    child = Child(live)
    honest_worker.send_channel(child.socket)
    assert child.receive() == b"half way"
    assert child.end() == Ended("well", 0)


@ROADS
@pytest.mark.skipif(platform.machine() != "x86_64", reason="only x86 has PR_SET_TSC")
def test_an_honest_worker_lives_without_the_cycle_counter(as_nobody: bool) -> None:
    serialized = honest_worker.artefact()

    def live(control: socket.socket) -> str:
        if as_nobody:
            become_nobody()
        jail = enter(whole_plan(control, frozenset({Layer.TSC})))
        before = time.monotonic()
        time.sleep(0.01)
        assert 0.01 <= time.monotonic() - before < 5
        assert abs(time.time() - time.clock_gettime(time.CLOCK_REALTIME)) < 5
        return honest_worker.live(control, serialized, jail.lock)

    child = Child(live)
    honest_worker.send_channel(child.socket)
    assert child.receive() == b"half way"
    assert child.end() == Ended("well", 0)


@ROADS
def test_the_kernel_says_so_too(as_nobody: bool) -> None:
    def look(_control: socket.socket) -> Any:
        return [[item.layer, item.live, item.evidence] for item in observe(Prison(read_facts(), FILTERS))]

    ended = in_child(look, as_nobody=as_nobody)
    seen = {layer: (live, evidence) for layer, live, evidence in ended.report}
    assert {"no_new_privs", "seccomp", "capabilities", "pid_namespace", "non_dumpable"} <= set(seen)
    assert [entry for entry in seen.items() if not entry[1][0]] == []


@ROADS
def test_what_it_sees_of_the_world(as_nobody: bool) -> None:
    def look(_jail: Any, control: socket.socket) -> Any:
        listing = []
        for fd in range(64):
            try:
                os.fstat(fd)
            except OSError:
                continue
            listing.append(fd)
        return [os.getpid(), dict(os.environ), sorted(set(listing) - {0, 1, 2, control.fileno()})]

    def child(control: socket.socket) -> Any:
        for fd in (control.fileno() + 1, 60):  # leaked below and above whatever is kept
            os.dup2(0, fd, inheritable=True)
        if as_nobody:
            become_nobody()
        return look(enter(whole_plan(control)), control)

    pid, environment, fds = in_child(child).report
    assert pid == 1
    assert environment == {}
    assert len(fds) == 1  # its own memory map, until the lock


@ROADS
def test_memory_that_was_writable_and_executable_is_sealed(as_nobody: bool) -> None:
    """As libffi leaves it behind on many systems: code for callbacks, made before the jail."""

    def child(control: socket.socket) -> Any:
        if as_nobody:
            become_nobody()
        page = syscall("mmap", 0, 4096, 7, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
        jail = enter(whole_plan(control))
        before = [start <= page < end for start, end in writable_and_executable(jail.maps_fd)]
        jail.lock()
        return [any(before), jail.maps_fd]

    assert in_child(child).report == [True, -1]


@ROADS
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGSYS])
def test_the_waiter_ends_as_the_worker_did(as_nobody: bool, number: signal.Signals) -> None:
    def die(_jail: Any, _control: socket.socket) -> None:
        if number is signal.SIGSYS:
            os.getppid()
        elif number is signal.SIGSEGV:
            faulthandler.disable()  # the test runner's; it would raise the signal again by a call
            ctypes.string_at(0)
        else:
            time.sleep(60)

    def child(control: socket.socket) -> None:
        if as_nobody:
            become_nobody()
        jail = enter(whole_plan(control))
        control.sendall(b"in")
        die(jail, control)

    started = Child(child)
    assert started.receive() == b"in"
    if number is signal.SIGKILL:
        os.kill(worker_pid(started.pid), signal.SIGKILL)
    assert started.end() == Ended(None, -number)


@ROADS
def test_the_exit_code_comes_through(as_nobody: bool) -> None:
    def leave(_jail: Any, _control: socket.socket) -> None:
        os._exit(17)

    assert jailed(leave, as_nobody=as_nobody) == Ended(None, 17)


@ROADS
def test_closing_the_control_socket_is_seen(as_nobody: bool) -> None:
    """The waiter must not keep it open: the worker would never learn that its supervisor is gone."""

    def listen(control: socket.socket) -> None:
        if as_nobody:
            become_nobody()
        jail = enter(whole_plan(control))
        control.sendall(b"in")
        assert jail.maps_fd >= 0
        os._exit(5 if control.recvmsg(10)[0] == b"" else 6)

    child = Child(listen)
    assert child.receive() == b"in"
    child.socket.shutdown(socket.SHUT_RDWR)
    child.socket.close()
    _pid, status = os.waitpid(child.pid, 0)
    assert os.waitstatus_to_exitcode(status) == 5


@ROADS
def test_a_compiler_lives_in_the_same_jail(as_nobody: bool) -> None:
    """The first filter lets code be made executable, never writable at once; a compiler is not locked."""
    module = b"\0asm\x01\0\0\0"

    def compile_module(_jail: Any, _control: socket.socket) -> bool:
        return len(wasmtime.Module(wasmtime.Engine(), module).serialize()) > 0

    assert jailed(compile_module, as_nobody=as_nobody).report is True


def test_a_second_thread_is_refused() -> None:
    def with_thread(control: socket.socket) -> str:
        release = threading.Event()
        threading.Thread(target=release.wait, daemon=True).start()
        try:
            enter(whole_plan(control))
        except RuntimeError as error:
            return str(error)
        finally:
            release.set()
        return "entered"

    assert "with 2 threads cannot be jailed" in in_child(with_thread).report


def test_a_step_that_fails_stops_the_start_and_is_named() -> None:
    """A filter of nonsense: the error names the step; a worker that is half jailed says nothing else."""

    def broken(control: socket.socket) -> str:
        good = whole_plan(control)
        nonsense = Step(Phase.INSIDE, "seccomp", Layer.SECCOMP, (("program", "ff" * 8),))
        steps = tuple(step for step in good.steps if step.name != "seccomp")
        try:
            enter(dataclasses.replace(good, steps=(*steps, nonsense)))
        except Exception as error:
            return str(error)
        return "entered"

    report = in_child(broken, as_nobody=os.getuid() == 0).report
    assert "jail step seccomp: Invalid argument" in report


def test_a_waiter_that_cannot_be_jailed_takes_its_worker_along() -> None:
    def broken(control: socket.socket) -> str:
        good = whole_plan(control)
        nonsense = Step(Phase.WAITER, "rlimits", Layer.RLIMITS, (("limits", (("NO_SUCH", 1),)),))
        enter(dataclasses.replace(good, steps=(nonsense, *good.steps)))
        time.sleep(60)
        return "lived"

    assert in_child(broken, as_nobody=os.getuid() == 0).exit_code == 70


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the stubs are x86-64 code")
def test_the_vdso_has_the_clocks() -> None:
    line = next(text for text in Path("/proc/self/maps").read_text().splitlines() if text.endswith("[vdso]"))
    start, end = (int(word, 16) for word in line.split()[0].split("-"))
    table = vdso.symbols(ctypes.string_at(start, end - start))
    assert {b"__vdso_clock_gettime", b"__vdso_gettimeofday", b"__vdso_time"} <= set(table)
    assert vdso.stub(228) == bytes.fromhex("b8e40000000f05c3")


def test_facts_of_this_machine() -> None:
    def look(_control: socket.socket) -> Any:
        facts = read_facts()
        return [facts.privileged, facts.namespaces, facts.seccomp, facts.architecture]

    privileged, namespaces, seccomp, architecture = in_child(look, as_nobody=os.getuid() == 0).report
    assert privileged is False
    assert set(namespaces) == {"user", "pid", "network", "mount", "ipc", "uts", "cgroup", "time"}
    assert seccomp is True
    assert architecture == platform.machine()
    assert sys.platform == "linux"
