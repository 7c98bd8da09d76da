"""Children: ready, failed, stopped, and never left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sandboxd.demo.process import Child, ChildFailedError


def python(code: str) -> list[str]:
    """Return the command line of a small program."""
    return [sys.executable, "-c", code]


def test_a_child_is_stopped_by_its_pid(tmp_path: Path) -> None:
    """SIGTERM first."""
    child = Child("sleeper", python("import time; print('up', flush=True); time.sleep(60)"), tmp_path / "log")
    child.wait_until(lambda: "up" in child.said(), 10)

    assert child.stop() == -signal.SIGTERM


def test_a_deaf_child_is_killed(tmp_path: Path) -> None:
    """In bounded time."""
    deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    child = Child("deaf", python(deaf), tmp_path / "log")
    child.wait_until(lambda: "up" in child.said(), 10)

    assert child.stop(timeout_s=0.2) == -signal.SIGKILL


def test_a_child_that_ends_early_says_why(tmp_path: Path) -> None:
    """The error holds exit code and output."""
    child = Child("broken", python("import sys; print('no such thing'); sys.exit(3)"), tmp_path / "log")

    with pytest.raises(ChildFailedError, match=r"broken ended with exit code 3:\nno such thing"):
        child.wait_until(lambda: False, 10)


def test_waiting_is_bounded(tmp_path: Path) -> None:
    """A child that is never ready is an error."""
    child = Child("slow", python("import time; time.sleep(60)"), tmp_path / "log")
    try:
        with pytest.raises(ChildFailedError, match=r"slow was not ready within 0\.1 s"):
            child.wait_until(lambda: False, 0.1)
    finally:
        child.stop()


def test_children_end_with_us(tmp_path: Path) -> None:
    """Even when we are killed and can do nothing about it."""
    code = (
        "import sys, time; from pathlib import Path; from sandboxd.demo.process import Child\n"
        f"sleep = [sys.executable, '-c', 'import time; time.sleep(60)']\n"
        f"child = Child('c', sleep, Path({str(tmp_path / 'log')!r}))\n"
        "time.sleep(0.3); print(child.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen(python(code), stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        grandchild = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{grandchild}").exists() and "Z" not in _state(grandchild):
        assert time.monotonic() < deadline, f"process {grandchild} outlived its parent"
        time.sleep(0.02)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "Z"


def test_the_environment_can_be_given(tmp_path: Path) -> None:
    """The child sees that and nothing of ours."""
    os.environ["SANDBOXD_TEST_SECRET"] = "1"
    try:
        code = "import os; print(sorted(k for k in os.environ if k.startswith('SANDBOXD')))"
        child = Child("env", python(code), tmp_path / "log", {"SANDBOXD_ONLY": "1"})
        with pytest.raises(ChildFailedError, match=r"\['SANDBOXD_ONLY'\]"):
            child.wait_until(lambda: False, 10)
    finally:
        del os.environ["SANDBOXD_TEST_SECRET"]
