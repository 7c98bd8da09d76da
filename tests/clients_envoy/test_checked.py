"""
AddressSanitizer inside Envoy: the end-to-end cases with a build of the module whose every access is checked.

The runtime (``checked/runtime.c``) is the project's own, so it is first shown to see each kind of fault, alone and in
Envoy. The cases run as they are, in a pytest of their own, with Envoy pointed at the checked module.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sandboxd.demo import envoy
from tests.support import checked_module, guests, stage

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(checked_module.compiler() is None, reason="gcc alone can build for the checks; it is missing"),
    pytest.mark.timeout(420),
]

ROOT = Path(__file__).resolve().parents[2]
CASES = (
    "tests/e2e/test_shm.py", "tests/e2e/test_failures.py", "tests/e2e/test_redaction.py",
    "tests/e2e/test_worker_killed.py", "tests/e2e/test_differential.py", "tests/clients_envoy/test_attributes.py",
    "tests/e2e/test_held_together.py", "tests/e2e/test_held_pieces.py", "tests/e2e/test_callouts.py",
    "tests/e2e/test_callouts_end.py",
)  # fmt: skip
CHOSEN = "attributes or (shm and (probe or not differential))"
"""Of the differential test the guest that does everything; the others take a minute more (docs/security.md)."""
LEAST_CASES = 150

FAULTS = {
    "heap_overflow": "heap-buffer-overflow: read of 1 bytes",
    "heap_underflow": "heap-buffer-underflow: read of 1 bytes",
    "calloc_overflow": "heap-buffer-overflow: write of 1 bytes",
    "realloc_overflow": "heap-buffer-overflow: read of 1 bytes",
    "memcpy_overflow": "heap-buffer-overflow: read of 16 bytes",
    "unterminated": "heap-buffer-overflow: read of 16 bytes",
    "stack_overflow": "stack-buffer-overflow: write of 1 bytes",
    "use_after_scope": "stack-use-after-scope: read of 1 bytes",
    "global_overflow": "global-buffer-overflow: read of 1 bytes",
    "use_after_free": "heap-use-after-free: read of 1 bytes",
    "double_free": "double-free",
    "bad_free": "bad-free",
}

PLANTED = {
    "heap": ("filter.c", "calloc(1, sizeof *filter);", "calloc(1, sizeof *filter - 8);", "heap-buffer-overflow"),
    "freed": ("filter.c", "filter_free(filter);\n}", "filter_free(filter), filter->busy++;\n}", "heap-use-after-free"),
    "stack": ("submission.c", "few_pairs[FEW_HEADERS]", "few_pairs[2]", "stack-buffer-overflow"),
}
"""In the module itself: file, text, what stands in its place, what is said of it."""


@pytest.fixture(scope="module")
def plants(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library with a function that does what it is told wrongly."""
    directory = tmp_path_factory.mktemp("plants")
    visible = (checked_module.SOURCES / "plant.c").read_text()
    visible = visible.replace("int plant(", '__attribute__((visibility("default"))) int plant(', 1)
    source = checked_module.SOURCES / "plant.c"
    return checked_module.link([source], directory / "made" / "libplant.so", directory, {source: visible})


def call(plants: Path, fault: str) -> subprocess.CompletedProcess[str]:
    script = "import ctypes, sys; ctypes.CDLL(sys.argv[1]).plant(sys.argv[2].encode())"
    command = [sys.executable, "-c", script, str(plants), fault]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def test_what_is_right_is_not_reported(plants: Path) -> None:
    done = call(plants, "none")
    assert (done.returncode, done.stdout, done.stderr) == (0, "no fault\n", "")


@pytest.mark.parametrize("fault", FAULTS)
def test_each_kind_of_fault_is_reported(plants: Path, fault: str) -> None:
    done = call(plants, fault)
    assert done.returncode == -6  # SIGABRT
    assert f"CHECKED: {FAULTS[fault]}" in done.stderr


@pytest.mark.envoy
@pytest.mark.parametrize("fault", PLANTED)
def test_a_fault_in_the_module_ends_envoy(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same build with one line changed: a single request is enough."""
    file, text, instead, said = PLANTED[fault]
    source = ROOT / "clients" / "envoy" / file
    before = source.read_text()
    assert before.count(text) == 1
    folder = checked_module.build(tmp_path / "lib", tmp_path, {source: before.replace(text, instead)})
    monkeypatch.setenv(envoy.MODULES_VARIABLE, str(folder))
    (tmp_path / "stage").mkdir()
    tenants = [stage.Tenant("acme", [guests.C_ADD_HEADER.plugin()])]
    with stage.running(tmp_path / "stage", tenants, transport=stage.SHM) as running:
        with contextlib.suppress(OSError, EOFError):  # cut off in the middle
            running.get(f"/acme/{guests.C_ADD_HEADER.name}/", timeout_s=5)
        stage.eventually(lambda: running.proxy.child.exit_code is not None, "Envoy ends")
    assert f"CHECKED: {said}" in (tmp_path / "stage" / "envoy.log").read_text()


@pytest.mark.envoy
def test_the_end_to_end_cases_find_nothing(tmp_path: Path) -> None:
    """The cases over shared memory; a report is the end of that Envoy, and of its cases."""
    folder = checked_module.build(tmp_path / "lib", tmp_path)
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "", "-k", CHOSEN]
    done = subprocess.run(
        [*command, f"--basetemp={tmp_path / 'cases'}", *CASES],
        cwd=ROOT, capture_output=True, text=True, timeout=400, check=False,
        env={**os.environ, envoy.MODULES_VARIABLE: str(folder)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:]
    passed = next(word for line in done.stdout.splitlines()[-1:] for word in line.split())
    assert int(passed) >= LEAST_CASES
    logs = list((tmp_path / "cases").rglob("envoy.log"))
    assert len(logs) >= len(CASES)
    assert not any("CHECKED:" in log.read_text(errors="replace") for log in logs)
