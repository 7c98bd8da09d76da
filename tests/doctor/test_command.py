"""``python -m sandboxd.doctor`` on this machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sandboxd.doctor import run
from sandboxd.doctor.__main__ import main
from sandboxd.errors import JailError

ROOT = Path(__file__).resolve().parents[2]


def doctor(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sandboxd.doctor", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_json() -> None:
    done = doctor("--json")
    found = json.loads(done.stdout)
    assert (done.returncode, found["sound"]) == (0, True), found
    states = {line["layer"]: line["state"] for line in found["layers"]}
    assert {states[name] for name in ("seccomp", "pid_namespace", "network_namespace", "mount_namespace")} == {"live"}
    assert "broken" not in states.values()
    assert all(attack["held"] for attack in found["attacks"])


def test_quick() -> None:
    done = doctor("--quick", "--json")
    assert (done.returncode, json.loads(done.stdout)) == (0, {"sound": True, "through": {}})


def test_bad_filters_are_a_clear_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sandboxd.jail.filter_files._PLACES", (Path("/nowhere"),))
    assert main(["--quick"]) == 1
    assert "no seccomp filters found; looked in /nowhere" in capsys.readouterr().out


def test_self_test_of_a_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run.self_test() == {}
    fake = ([sys.executable, "-c", 'print(\'{"sound": false, "through": {"open": "succeeded"}}\')'], {})
    monkeypatch.setattr(run, "python_module", lambda *_arguments: fake)
    assert run.self_test() == {"open": "succeeded"}


@pytest.mark.parametrize("output", ["", "[]", "{}", '{"error": "no namespaces"}'])
def test_a_doctor_that_fails_is_no_good_news(monkeypatch: pytest.MonkeyPatch, output: str) -> None:
    fake = ([sys.executable, "-c", f"print({output!r})"], {})
    monkeypatch.setattr(run, "python_module", lambda *_arguments: fake)
    with pytest.raises(JailError, match=r"self-test"):
        run.self_test()
