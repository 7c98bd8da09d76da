"""A machine that cannot run the proof: said loudly, and a failure only where the proof was asked for."""

from __future__ import annotations

import subprocess
import sys
from typing import NoReturn

import pytest

from tests.machine import __main__ as machine
from tests.machine import image, needs


def missing() -> NoReturn:
    raise needs.Missing("has to run as root")


def test_not_run_is_the_last_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(needs, "ensure", missing)
    monkeypatch.setattr(sys, "argv", ["tests.machine", "--if-possible"])

    assert machine.main() == 0
    assert capsys.readouterr().out.splitlines()[-1] == "NOT RUN: the proofs in a virtual machine: has to run as root"


def test_it_fails_when_it_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(needs, "ensure", missing)
    monkeypatch.setattr(sys, "argv", ["tests.machine"])

    assert machine.main() == 2


@pytest.mark.parametrize("problem", [subprocess.CalledProcessError(1, "pip"), OSError("disk full")])
def test_an_image_that_cannot_be_built_is_a_failure(monkeypatch: pytest.MonkeyPatch, problem: Exception) -> None:
    def build() -> NoReturn:
        raise problem

    monkeypatch.setattr(needs, "ensure", lambda: None)
    monkeypatch.setattr(image, "build", build)
    monkeypatch.setattr(sys, "argv", ["tests.machine", "--if-possible"])

    assert machine.main() == 1
