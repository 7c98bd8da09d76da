"""Over a million inputs for hostcore's parsers, heap, state machine and host functions, with sanitizers."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Final

import pytest

pytestmark = pytest.mark.long

COUNTS: Final = {"pairs": 500_000, "heap": 2_000, "zlib": 100_000, "folders": 100_000, "channel": 550_000}
TIMEOUT_S: Final = 100


def _run(binary: Path, name: str, count: int, seed: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(binary), name, str(count), str(seed)],
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
        env={**os.environ, "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1"},
    )


def test_the_counts_add_up_to_a_million() -> None:
    """What the project promises per run."""
    assert sum(COUNTS.values()) >= 1_000_000


@pytest.mark.parametrize("name", sorted(COUNTS))
def test_no_finding(fuzz_binary: Path, name: str) -> None:
    """A finding, a sanitizer's report or a crash fails; the seed makes it come again."""
    done = _run(fuzz_binary, name, COUNTS[name], 1)

    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert f"{name}: {COUNTS[name]} inputs, no finding" in done.stdout


def test_the_channel_fuzzer_reaches_every_verdict(fuzz_binary: Path) -> None:
    """A fuzzer that never gets anywhere proves nothing."""
    done = _run(fuzz_binary, "channel", 20_000, 77)

    words = done.stdout.split("records, verdicts ", 1)[1].replace(",", "").split()
    reached = dict(zip(words[0:10:2], map(int, words[1:10:2]), strict=True))
    assert set(reached) == {"ok", "unknown", "out-of-order", "limit", "over"}
    assert min(reached.values()) > 1000
