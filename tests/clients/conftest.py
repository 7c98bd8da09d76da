"""The library, built once per test run: as users get it, and with its insides open."""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import c_client
from tests.support.scripted_channel import Setup

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The library with the shim beside it; undefined behaviour traps."""
    target = tmp_path_factory.mktemp("shim") / "shim.so"
    flags = ("-O1", "-g", "-shared", "-fPIC", "-fsanitize=undefined", "-fsanitize-undefined-trap-on-error")
    if c_client.compiler()[0] in ("ziglang", "clang"):
        flags = (*flags[:-1], "-fsanitize-trap=all")
    return c_client.load(c_client.compile_to(target, [str(HERE / "shim.c")], flags))


@pytest.fixture
def setup(shim: ctypes.CDLL) -> Iterator[Setup]:
    """A channel between the library and a scripted VM."""
    made = Setup(shim)
    yield made
    made.close()


@pytest.fixture(scope="session")
def artefact_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of compiled modules that all tests of a session share."""
    return tmp_path_factory.mktemp("artefacts")


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory whose path is short enough for Unix sockets."""
    with tempfile.TemporaryDirectory(prefix="sbx") as directory:
        yield Path(directory)
