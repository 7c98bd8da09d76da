"""No wake-up is lost: the handshake explored in every order, and the C client under injected delays."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.clients import space_model, wake_model
from tests.support import c_client

HERE = Path(__file__).parent


def test_no_order_of_steps_loses_a_wake_up() -> None:
    states, lost = wake_model.explore(wake_model.Model(rounds=4))
    assert lost == []
    assert states > 1000


def test_no_order_of_steps_loses_a_wake_up_for_a_batch() -> None:
    states, lost = wake_model.explore(wake_model.Model(rounds=4, batches=True))
    assert lost == []
    assert states > 1000


def test_a_batch_has_to_end_with_a_call() -> None:
    """The model can fail here as well."""
    _, lost = wake_model.explore(wake_model.Model(batches=True, forgets=True))
    assert lost


@pytest.mark.parametrize(
    "missing",
    [
        (wake_model.SLEEPER, "want"),
        (wake_model.SLEEPER, "recheck"),
        (wake_model.SLEEPER, "fence"),
        (wake_model.PRODUCER, "fence"),
        (wake_model.PRODUCER, "raise"),
    ],
)
def test_every_step_is_needed(missing: tuple[int, str]) -> None:
    """The model can fail: without any one of these steps it finds a lost wake-up."""
    _, lost = wake_model.explore(wake_model.Model(without=frozenset({missing})))
    assert lost


def test_no_order_of_steps_leaves_both_asleep_with_room_in_the_ring() -> None:
    states, lost = space_model.explore(space_model.VM_PROGRAM, pieces=5)
    assert lost == []
    assert states > 5000


def test_the_order_of_the_vms_steps_matters() -> None:
    """A VM that looks at the client's wish before its own fence is found out."""
    _, lost = space_model.explore(space_model.VM_THAT_LOOKS_FIRST)
    assert lost
    assert {state.at for state in lost} == {("sleep", "sleep")}


@pytest.mark.parametrize("batch", [0, 7])
def test_delays_between_all_steps_lose_nothing(tmp_path: Path, batch: int) -> None:
    """Two threads, the library's own ring code with a random pause before each atomic step; a lost one is a hang."""
    declared = tmp_path / "step.h"
    declared.write_text("void stress_step(void);\n#define SBX_STEP() stress_step()\n")
    flags = ("-O2", "-g", "-pthread", "-include", str(declared))
    binary = c_client.compile_to(tmp_path / "stress", [str(HERE / "stress_wake.c")], flags)
    done = subprocess.run(
        [str(binary), "20000", "1", str(batch)], capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, done.stderr
    slept = int(done.stdout.split()[0])
    assert slept > 1000, done.stdout  # else nothing was tested
