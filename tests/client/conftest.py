"""A daemon with the attach socket, and plugins of all manners."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.client.plugins import MORE, POLICIES, policy
from tests.support import guests
from tests.support.daemon_client import FakeDaemon, fake_daemon


@pytest.fixture(scope="session")
def artefact_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of compiled modules that all tests of a session share."""
    return tmp_path_factory.mktemp("artefacts")


@pytest.fixture(scope="module")
def daemon(artefact_cache: Path) -> Iterator[FakeDaemon]:
    """One daemon for tests that leave it as it was."""
    with tempfile.TemporaryDirectory(prefix="sbx") as directory:
        Path(directory).chmod(0o755)
        with fake_daemon(Path(directory), artefact_cache, POLICIES, fronts=1, more=MORE) as running:
            yield running


@pytest.fixture(scope="module")
def attach_socket(daemon: FakeDaemon) -> Path:
    """The daemon's attach socket."""
    return daemon.runtime / "attach.sock"


@pytest.fixture
def own_daemon(artefact_cache: Path) -> Iterator[FakeDaemon]:
    """A daemon with one plugin, for a test that does it harm."""
    with tempfile.TemporaryDirectory(prefix="sbx") as directory:
        Path(directory).chmod(0o755)
        policies = {"acme": policy("acme", guests.C_ADD_HEADER.plugin())}
        with fake_daemon(Path(directory), artefact_cache, policies, fronts=1, more=MORE) as running:
            yield running
