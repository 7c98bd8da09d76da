"""The native programs, built once per test run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz import build_native


@pytest.fixture(scope="session")
def fuzz_binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fuzzers."""
    binary, built_with = build_native.build(tmp_path_factory.mktemp("fuzz"), build_native.FUZZ_SOURCES, "fuzz")
    print(f"fuzzers built by {built_with}")
    return binary
