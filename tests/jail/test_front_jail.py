"""What fronts give up, step by step, and every rule of their filter by trying."""

from __future__ import annotations

import errno
import os
import pwd
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sandboxd.errors import ConfigError
from sandboxd.jail import front_jail
from sandboxd.jail.filter_files import filter_directory
from sandboxd.jail.filters import RET_ALLOW, RET_ERRNO, RET_KILL_PROCESS, Rule, load_filter
from sandboxd.jail.syscall_numbers import number

ROOT = Path(__file__).resolve().parents[2]
FILTER = load_filter(filter_directory() / "front.json")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="another user has nothing to give up")


def run(script: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a process of its own."""
    head = (
        "from sandboxd.jail import front_jail as f\nfrom sandboxd.jail.syscalls import syscall\nimport os, threading\n"
    )
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", head + script],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
        check=False,
    )


@as_root
def test_threads_that_are_there_already_lose_their_privileges_too() -> None:
    """gRPC has threads by the time the sockets are bound."""
    done = run(
        "jail = f.front_jail('4243'); f.give_up_most(jail)\n"
        "leave = threading.Event(); told = []\n"
        "thread = threading.Thread(target=lambda: (leave.wait(), told.append(os.geteuid()))); thread.start()\n"
        "assert os.geteuid() == 0\n"
        "f.give_up_rest(jail); leave.set(); thread.join(); print(told, os.getresuid())\n"
    )
    assert done.stdout == "[4243] (4243, 4243, 4243)\n", done.stderr


@as_root
def test_what_is_left_ends_the_front() -> None:
    """The check can fail: here nothing was given up before."""
    done = run("jail = f.FrontJail(0, 0, b''); f.give_up_rest(jail)\n")
    assert "JailError" in done.stderr
    assert "of a front still has CapPrm" in done.stderr


def test_a_daemon_without_privilege_keeps_its_user() -> None:
    """The capabilities and the calls go all the same."""
    done = run(
        "program = f.front_jail().program\n"
        "if os.geteuid() == 0: os.setresuid(4244, 4244, 4244)\n"
        "uid = os.geteuid(); jail = f.front_jail(); f.give_up_most(jail); f.give_up_rest(jail)\n"
        "print(jail.uid, os.geteuid() == uid)\n"
    )
    assert done.stdout == "0 True\n", done.stderr


def test_problems_are_named() -> None:
    good = {"CapPrm": "0" * 16, "CapEff": "0" * 16, "CapAmb": "0" * 16, "NoNewPrivs": "1", "Uid": "7\t7\t7\t7"}
    assert front_jail.problems(good, 7) == []
    assert front_jail.problems(good, 0) == []
    assert front_jail.problems({**good, "Uid": "7\t0\t7\t7"}, 7) == ["uids 7\t0\t7\t7"]
    assert front_jail.problems({**good, "CapEff": "80"}, 7) == ["CapEff 80"]
    assert front_jail.problems({**good, "NoNewPrivs": "0"}, 7) == ["the right to gain privileges"]


@as_root
@pytest.mark.parametrize(
    ("user", "message"), [("0", "must not run as root"), ("nobody-of-that-name", "no user"), ("4294967295", "no uid")]
)
def test_users_that_cannot_be(user: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        front_jail.front_jail(user)


@as_root
def test_the_default_user() -> None:
    """``sandboxd`` where systemd-sysusers made it, else a number that is nobody's."""
    found = front_jail.front_jail()
    try:
        expected = pwd.getpwnam("sandboxd").pw_uid
    except KeyError:
        expected = front_jail.FRONT_UID
    assert found.uid == expected


@pytest.mark.parametrize("rule", FILTER.rules, ids=lambda rule: rule.syscall)
def test_forbidden_calls_are_forbidden(rule: Rule) -> None:
    """Each rule does what it says; without the filter the kernel gives another answer to the same call."""
    if number(rule.syscall) is None:
        pytest.skip("this architecture has no such call")
    # -1 is no address, no pid, no descriptor: the call does nothing where it comes through.
    attempt = (
        f"try: syscall({rule.syscall!r}, *[-1] * 6)\nexcept OSError as e: print(e.errno, flush=True)\nos._exit(0)\n"
    )
    jailed = run("program = f.front_jail().program\nf.no_new_privs(); f.install_seccomp(program.hex())\n" + attempt)
    if rule.syscall != "vfork":  # whose child would go on with the stack of its parent
        plain = run(attempt)
        assert plain.returncode == 0, plain.stderr
        assert plain.stdout != jailed.stdout or jailed.returncode

    action = rule.otherwise if rule.conditions else rule.then
    assert FILTER.default == RET_ALLOW
    if action == RET_KILL_PROCESS:
        assert jailed.returncode == -signal.SIGSYS, jailed
    else:
        assert action == RET_ERRNO | errno.ENOSYS
        assert jailed.stdout == f"{errno.ENOSYS}\n", jailed
