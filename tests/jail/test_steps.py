"""
What a worker gives up: the order of the steps, and that each does what it says, in a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

from sandboxd.jail import command
from sandboxd.jail.plan import (
    BecomeUser,
    CloseOtherFds,
    DieWithParent,
    LimitResource,
    NoNewPrivileges,
    NotDumpable,
    compiler_plan,
    worker_plan,
)


def limits(steps: tuple[object, ...]) -> dict[str, int]:
    """Return the resource limits of a plan."""
    return {step.resource: step.value for step in steps if isinstance(step, LimitResource)}


def test_worker_plan() -> None:
    """Descriptors first; what a change of user resets comes after it."""
    steps = worker_plan(
        parent_pid=7,
        keep_fds=frozenset({9}),
        uid=5,
        gid=6,
        max_processes=3,
        max_open_files=64,
        address_space_bytes=1,
    )

    assert steps[0] == CloseOtherFds(frozenset({0, 1, 2, 9}))
    assert steps[-4:] == (BecomeUser(5, 6), NotDumpable(), DieWithParent(7), NoNewPrivileges())
    assert limits(steps) == {
        "RLIMIT_CORE": 0,
        "RLIMIT_FSIZE": 0,
        "RLIMIT_MSGQUEUE": 0,
        "RLIMIT_MEMLOCK": 0,
        "RLIMIT_NPROC": 3,
        "RLIMIT_NOFILE": 64,
        "RLIMIT_AS": 1,
    }


def test_zero_keeps_what_there_is() -> None:
    """No user to become, no limits but those that cost nothing."""
    steps = worker_plan(parent_pid=7, keep_fds=frozenset())

    assert not any(isinstance(step, BecomeUser) for step in steps)
    assert set(limits(steps)) == {"RLIMIT_CORE", "RLIMIT_FSIZE", "RLIMIT_MSGQUEUE", "RLIMIT_MEMLOCK"}


def test_compiler_cannot_open_files() -> None:
    """One descriptor above the highest that it was given."""
    steps = compiler_plan(
        parent_pid=1, keep_fds=frozenset({5, 8}), cpu_seconds=3, address_space_bytes=4, output_bytes=5
    )

    assert limits(steps)["RLIMIT_NOFILE"] == 9
    assert limits(steps)["RLIMIT_CPU"] == 3


def jailed(program: str, **plan: object) -> str:
    """Run the program in a process that has applied `worker_plan(**plan)`; returns what it printed."""
    script = f"""
    import os, resource, signal, sys
    from sandboxd.errors import JailError
    from sandboxd.jail.plan import *
    from sandboxd.jail.steps import apply
    arguments = dict(parent_pid=os.getppid(), keep_fds=frozenset()) | {plan!r}
    layers = apply(worker_plan(**arguments))
    """
    code = textwrap.dedent(script) + textwrap.dedent(program)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False, close_fds=False
    )
    return done.stdout + done.stderr


def test_descriptors_are_closed() -> None:
    """All but the standard ones and those to keep, however high."""
    read, write = os.pipe()
    os.set_inheritable(read, True)
    os.dup2(read, 900)
    try:
        out = jailed(
            """
            def live(fd):
                try: os.fstat(fd)
                except OSError: return False
                return True
            print([fd for fd in range(1024) if live(fd)])
            """,
            keep_fds=frozenset({900}),
        )
    finally:
        for fd in (read, write, 900):
            os.close(fd)

    assert out.strip() == "[0, 1, 2, 900]"


def test_lowest_descriptor_survives() -> None:
    """An empty range in front of descriptor 0 must not close everything."""
    assert jailed("print('here')").strip() == "here"


def test_limits_hold() -> None:
    """Soft and hard; nothing can be raised again by the unprivileged."""
    out = jailed(
        "print(resource.getrlimit(resource.RLIMIT_NOFILE), resource.getrlimit(resource.RLIMIT_CORE))",
        max_open_files=32,
    )

    assert out.strip() == "(32, 32) (0, 0)"


def test_process_state() -> None:
    """As the kernel tells it."""
    out = jailed(
        """
        import ctypes
        libc = ctypes.CDLL(None)
        signal_number = ctypes.c_int()
        libc.prctl(2, ctypes.byref(signal_number), 0, 0, 0)
        print(libc.prctl(3, 0, 0, 0, 0), signal_number.value, libc.prctl(39, 0, 0, 0, 0))
        print(*layers)
        """
    )

    assert out.splitlines() == ["0 9 1", "fds rlimits non_dumpable parent_death_signal no_new_privs"]


def test_parent_that_is_gone_is_noticed() -> None:
    """Between the process's beginning and the request for the signal."""
    assert "JailError: jail step parent_death_signal" in jailed("", parent_pid=1 << 21)


@pytest.mark.skipif(os.geteuid() != 0, reason="changing the user needs root")
def test_user_is_changed_for_good() -> None:
    """No way back to root."""
    out = jailed(
        """
        print(os.getresuid(), os.getresgid(), os.getgroups())
        try: os.setuid(0)
        except PermissionError: print("refused")
        """,
        uid=64321,
        gid=64322,
    )

    assert out.splitlines() == ["(64321, 64321, 64321) (64322, 64322, 64322) []", "refused"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to begin as root")
def test_user_that_cannot_be_changed_is_an_error() -> None:
    """Never a warning: the second plan runs without privilege."""
    out = jailed(
        """
        try: apply(worker_plan(parent_pid=os.getppid(), keep_fds=frozenset(), uid=1, gid=1))
        except JailError as error: print(error.step, error.errno)
        """,
        uid=64321,
        gid=64322,
    )

    assert out.splitlines()[0].startswith("uid 1")


def test_child_inherits_no_environment() -> None:
    """Neither secrets nor what would change the interpreter."""
    argv, environment = command.python_module("sandboxd.worker", "3")

    assert argv[0] == sys.executable
    assert argv[-3:] == ["-m", "sandboxd.worker", "3"]
    assert set(environment) == {"PYTHONPATH", "PYTHONUTF8"}
