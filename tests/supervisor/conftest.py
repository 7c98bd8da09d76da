"""What the tests of the supervisor share."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def artefact_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a cache of compiled modules that all tests of a session share."""
    return tmp_path_factory.mktemp("artefacts")


@pytest.fixture
def short_path() -> Iterator[Path]:
    """Return a directory whose path is short enough for Unix sockets."""
    with tempfile.TemporaryDirectory(prefix="sbx") as directory:
        yield Path(directory)


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Two that wait, as children of the zygote's that do not hear that their sockets have ended."""
    found = [subprocess.Popen(["sleep", "60"]) for _ in range(2)]
    yield found
    for process in found:
        process.kill()
        process.wait()
