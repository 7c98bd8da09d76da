"""libFuzzer: both fuzzers link it and go through their corpora, and a machine without it is told what to do."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.fuzz import libfuzzer

pytestmark = pytest.mark.long


@pytest.mark.skipif(not any(map(shutil.which, libfuzzer.NAMES)), reason="clang is not installed")
@pytest.mark.parametrize("name", ["worker", "client"])
@pytest.mark.timeout(240)
def test_the_corpus_finds_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each input of the kept corpus, and a few that libFuzzer makes of them."""
    monkeypatch.setattr(libfuzzer, "BUILD", tmp_path)
    if (clang := libfuzzer.find_clang()) is None:
        pytest.skip("this clang has no libFuzzer")
    fuzzer = libfuzzer.fuzzers()[name]
    kept = len(list(fuzzer.corpus.iterdir()))
    libfuzzer.build(fuzzer, clang, tmp_path / "fuzz")

    assert libfuzzer.run(fuzzer, tmp_path / "fuzz", kept + 2000, 60) == 0
    assert f"seed corpus: files: {kept} " in capfd.readouterr().err


def test_a_corpus_is_chosen_greedily() -> None:
    """What reaches most comes first, then what adds most to it; what adds nothing is left out."""
    control = "4\n0\na\nb\nc\nd\nSTARTED 0 5\nFT 0 1 2\nCOV 0 7\nFT 1 1 2 3 4\nFT 2 3 5\nFT 3 5\n"

    assert libfuzzer.cover(control, 9) == [Path("b"), Path("c")]
    assert libfuzzer.cover(control, 1) == [Path("b")]


def test_without_clang_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody but root gets it installed."""
    monkeypatch.setattr(libfuzzer, "BUILD", tmp_path)
    monkeypatch.setattr(libfuzzer, "find_clang", lambda: None)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)

    assert libfuzzer.main(["--runs", "1"]) == 2
    assert "apt install clang libclang-rt-14-dev" in capsys.readouterr().err
