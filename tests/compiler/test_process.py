"""One compiler's process: its jail, its limits, and every way in which it ends."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from sandboxd.compiler import client, process
from sandboxd.compiler.client import compile_module
from sandboxd.compiler.process import CompilerOverwhelmed
from sandboxd.compiler.running import Running
from sandboxd.errors import InternalError, JailError, ModuleRejected, WorkerError
from sandboxd.jail.facts import machine_facts
from sandboxd.jail.filter_files import load_filters
from sandboxd.jail.jailer import Jailer
from tests.support.compilers import MODULE, SETTINGS, compiler_as, fresh_module, no_compiler
from tests.support.modules import host


def test_wall_clock_is_bounded() -> None:
    """The process is killed, and the module is at fault."""
    started = time.monotonic()
    with pytest.raises(ModuleRejected, match=r"took more than 0\.01 s"):
        compile_module(MODULE, SETTINGS, timeout_s=0.01, host=host())

    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("code", "error", "text"),
    [
        (20, ModuleRejected, "the result"),
        (21, InternalError, "the result"),
        (1, InternalError, "exit code 1: the error"),
        (-signal.SIGXCPU, ModuleRejected, "more than 5 s of CPU"),
        (-signal.SIGABRT, ModuleRejected, r"crashed the compiler.*SIGABRT"),
        (-signal.SIGSEGV, ModuleRejected, r"crashed the compiler.*SIGSEGV"),
    ],
)
def test_every_end_of_the_compiler_has_its_error(code: int, error: type[Exception], text: str) -> None:
    """By exit code; control characters do not come through."""
    with process._memfd("result") as result, process._memfd("error") as errors:
        os.write(result, b"\x1b[0mthe result")
        os.write(errors, b"the error")
        with pytest.raises(error, match=text) as caught:
            process._result(code, result, errors, 5)
    assert "\x1b" not in str(caught.value)


def told(monkeypatch: pytest.MonkeyPatch, body: str) -> str:
    """Return what a compiler found that can only find out and say so."""
    compiler_as(monkeypatch, body)
    with pytest.raises(ModuleRejected) as caught:
        compile_module(MODULE, SETTINGS, host=host(), timeout_s=9)
    return str(caught.value)


def test_compiler_runs_in_a_jail(monkeypatch: pytest.MonkeyPatch) -> None:
    """It opens no file, has no capability and no second process around it, and limits on all that it uses."""
    found = told(
        monkeypatch,
        """
        words = []
        for path in ('/etc/hostname', '/proc/self/status', '.'):
            try: open(path); words.append('opened')
            except FileNotFoundError: words.append('none')
        words.append(f'pid {os.getpid()}')
        words.append(f'environment {dict(os.environ)}')
        try: threading.Thread(target=int).start(); words.append('thread')
        except RuntimeError: words.append('alone')
        raise ModuleRejected(' '.join(words))
        """,
    )

    assert found == "none none none pid 1 environment {} alone"


@pytest.mark.parametrize(
    "deed",
    ["socket.socket()", "os.fork()", "os.execv('/bin/sh', ['sh'])", "os.kill(2, 9)", "os.mkdir('/x')"],
)
def test_compiler_that_was_taken_over_dies(monkeypatch: pytest.MonkeyPatch, deed: str) -> None:
    """At the first system call that no compiler makes; its module is at fault and remembered."""
    compiler_as(monkeypatch, deed)
    with pytest.raises(CompilerOverwhelmed, match=r"crashed the compiler.*\(SIGSYS\)"):
        compile_module(fresh_module(), SETTINGS, host=host())


def test_compilers_end_with_the_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    """At once; that says nothing of their modules, and no other one is waited for."""
    module = fresh_module()
    running = Running()
    monkeypatch.setattr(process, "_running", running)
    compiler_as(monkeypatch, "while True: pass")
    with ThreadPoolExecutor(1) as thread:
        compiling = thread.submit(compile_module, module, SETTINGS, host=host(), timeout_s=60)
        start_s = time.monotonic()
        while not running.count:
            assert time.monotonic() - start_s < 30
            time.sleep(0.01)
        process.stop()
        with pytest.raises(WorkerError, match="the daemon ends"):
            compiling.result(10)
    with pytest.raises(WorkerError, match="the daemon ends"):
        compile_module(fresh_module(), SETTINGS, host=host(), timeout_s=60)
    assert running.count == 0

    monkeypatch.setattr(process, "_running", Running())
    monkeypatch.setattr(client, "run_compiler", no_compiler)
    with pytest.raises(AssertionError, match="the compiler was asked"):
        compile_module(module, SETTINGS, host=host(), timeout_s=60)


def test_machine_without_a_layer_compiles_nothing() -> None:
    """A compiler is never run with less than its jail."""
    facts = replace(machine_facts(), seccomp=False)

    with pytest.raises(JailError, match="seccomp"):
        compile_module(fresh_module(), SETTINGS, host=host(), jailer=Jailer(facts, load_filters()))


class Leaf:
    """Stands in for a compiler's cgroup."""

    def __init__(self, *, starved: bool = False) -> None:
        self.done: list[object] = []
        self._starved = starved

    def enter(self, pid: int) -> None:
        """The process must be there and have read nothing: it waits for its plan."""
        os.kill(pid, 0)
        self.done.append("enter")

    def memory_death(self) -> bool:
        return self._starved

    def remove(self) -> None:
        self.done.append("remove")


def test_compiler_is_put_into_its_cgroup() -> None:
    """And the cgroup is removed when it has ended, whatever came of it."""
    leaf = Leaf()
    jailer = Jailer(machine_facts(), load_filters(), compiler_cgroup=lambda: leaf)
    compile_module(fresh_module(), SETTINGS, host=host(), jailer=jailer)
    assert leaf.done == ["enter", "remove"]

    leaf.done.clear()
    with pytest.raises(CompilerOverwhelmed):
        compile_module(fresh_module(), SETTINGS, timeout_s=0.01, host=host(), jailer=jailer)
    assert leaf.done == ["enter", "remove"]


def test_compiler_that_its_cgroup_killed_wanted_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's SIGKILL is told from that of the time limit."""
    jailer = Jailer(machine_facts(), load_filters(), compiler_cgroup=lambda: Leaf(starved=True))
    compiler_as(monkeypatch, "os.abort()")
    with pytest.raises(CompilerOverwhelmed, match=r"took too much memory$"):
        compile_module(fresh_module(), SETTINGS, host=host(), jailer=jailer)


def test_compiler_without_the_cgroup_that_it_should_have_is_not_started() -> None:
    """What the kernel refuses ends the compilation, and leaves no process."""

    def refused() -> Leaf:
        raise JailError("cgroup", 16, "no")

    jailer = Jailer(machine_facts(), load_filters(), compiler_cgroup=refused)
    with pytest.raises(JailError, match="cgroup"):
        compile_module(fresh_module(), SETTINGS, host=host(), jailer=jailer)
