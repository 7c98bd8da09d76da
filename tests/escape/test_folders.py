"""
Native code in a worker against the folders of its plugin: it says what it likes to the supervisor of a whole daemon.

The twin is the same program that writes where its plugin may, and there the file is.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.escape.test_trusted_side import Target
from tests.support.daemon_client import ADD_HEADER, policy_text, wait_for

KILLED = ("file-above", "file-absolute", "file-moved-out", "file-read-only", "file-no-folder")
REFUSED = ("file-link", "file-quota")
DEEDS = ("file-twin", *KILLED, *REFUSED)
MAX_BYTES, MAX_FILES = 64 * 1024, 10


def more(directory: Path) -> str:
    """A folder to read, one to write."""
    return (
        "limits: {time_per_event: 2s}\n"
        "failure: {restart: {backoff: 0ms, max_crashes: 1000}}\n"
        "wasi:\n"
        "  folders:\n"
        f"    /read: {{path: {directory}/read}}\n"
        f"    /write: {{path: {directory}/write, access: write, bytes: 64KiB, files: {MAX_FILES}}}\n"
    )


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
    """A daemon whose tenants have folders of their own; links lie in one of them."""
    with tempfile.TemporaryDirectory(prefix="sbx", dir="/tmp") as name:
        directory = Path(name)
        policies = {}
        for deed in DEEDS:
            folders = directory / deed
            for part in ("read", "write", "secret"):
                (folders / part).mkdir(parents=True)
            policies[f"evil-{deed}"] = policy_text(f"evil-{deed}", ADD_HEADER, more=more(folders))
        linked = directory / "file-link"
        (linked / "secret/file").write_text("secret")
        (linked / "write/link").symlink_to(linked / "secret/file")
        (linked / "write/folder").symlink_to(linked / "secret")
        running = Target(directory, (), **policies)
        try:
            yield running
        finally:
            running.process.terminate()
            running.process.wait(20)


def everything(target: Target, deed: str) -> dict[str, bytes]:
    """All plain files near the tenant's folders, by their path from there, and two places that were aimed at."""
    root = target.directory / deed
    found = {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file() and not p.is_symlink()}
    aims = (target.directory / "outside", Path("/tmp/outside"))
    return found | {str(path): path.read_bytes() for path in aims if path.exists()}


def test_the_twin_writes_where_it_may(target: Target) -> None:
    """So what the others do could have been done."""
    target.attack("file-twin")
    written = target.directory / "file-twin/write/mine"
    wait_for(lambda: written.exists() and written.read_bytes() == b"escaped", 5, "its file is on disk")
    assert set(everything(target, "file-twin")) == {"write/mine"}


@pytest.mark.parametrize("deed", KILLED)
def test_a_liar_is_killed(target: Target, deed: str) -> None:
    """And nothing of it is on disk outside."""
    target.attack(deed)
    target.killed_for(deed, "changed (what is not a path|folder [02], which its plugin may not)")
    assert set(everything(target, deed)) <= {"write/mine"}


def test_links_in_its_folder_lead_nowhere(target: Target) -> None:
    """They are there for the daemon, and it does not follow them."""
    target.attack("file-link")
    wait_for(lambda: "failed, the plugin was not told" in target.log, 10, "the disk's refusal is logged")
    assert everything(target, "file-link") == {"secret/file": b"secret"}


def test_the_quota_is_kept_again(target: Target) -> None:
    """Here, by who writes: hostcore's own count is in the hostile process."""
    target.attack("file-quota")
    wait_for(
        lambda: "as many bytes as it may" in target.log or "as many files" in target.log, 10, "a refusal is logged"
    )
    files = everything(target, "file-quota")
    assert len(files) <= MAX_FILES
    assert sum(map(len, files.values())) <= MAX_BYTES
    assert len(files) == MAX_FILES
