"""Real Rust and Go filters with their languages' own file functions, in jailed workers of a whole daemon."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon_client import GUESTS, FakeDaemon, fake_daemon, policy_text, wait_for

pytestmark = pytest.mark.long

RUST, GO = GUESTS / "rust/files.wasm", GUESTS / "go/go_files.wasm"


@pytest.fixture(params=[RUST, GO], ids=["rust", "go"])
def module(request: pytest.FixtureRequest) -> Path:
    """The guest."""
    return Path(request.param)


def granted(directory: Path) -> str:
    """A folder to read and one to write, small."""
    return (
        "limits: {cpu_per_call: 1s, time_per_event: 5s}\n"
        "failure: {restart: {backoff: 1ms}}\n"
        f"wasi:\n"
        f"  folders:\n"
        f"    /rules: {{path: {directory}/rules}}\n"
        f"    /data: {{path: {directory}/data, access: write, bytes: 20KiB, files: 5}}\n"
    )


@pytest.fixture
def daemon(short_path: Path, artefact_cache: Path, module: Path) -> Iterator[FakeDaemon]:
    """One tenant with the folders; another without."""
    for name in ("rules", "data"):
        (short_path / name).mkdir()
    (short_path / "rules/list").write_text("one two")
    (short_path / "secret").write_text("secret")
    (short_path / "rules/link").symlink_to(short_path / "secret")
    policies = {
        "a": policy_text("alpha", module, more=granted(short_path)),
        "b": policy_text("beta", module, more="limits: {cpu_per_call: 1s, time_per_event: 5s}\n"),
    }
    with fake_daemon(short_path, artefact_cache, policies, fronts=1) as running:
        yield running


def run(daemon: FakeDaemon, commands: str, tenant: str = "alpha") -> list[str]:
    """Have the guest do it."""
    answer = daemon.ask(f"{tenant} main /{commands}")
    assert answer.get("code") == 0, answer
    return str(dict(answer["headers"])["x-done"]).split("|")


def is_error(text: str) -> bool:
    return text.startswith("error: ")


def test_a_plugin_reads_and_writes_its_folders(daemon: FakeDaemon, module: Path) -> None:
    """What it reads lies on disk; what it writes soon does. Nothing else can be reached."""
    data = daemon.directory / "data"
    assert run(daemon, "read /rules/list;list /rules;size /rules/list") == ["one two", "list", "7"]
    done = run(
        daemon,
        "write /data/a hello world;append /data/a !;read /data/a;mkdir /data/d/e;rename /data/a /data/d/e/b;"
        "list /data/d/e;list /data;fill /data/big 20000;size /data/big;write /data/gone x;remove /data/gone",
    )
    assert done == [
        "written",
        "appended",
        "hello world!",
        "made",
        "renamed",
        "b",
        "d/",
        "filled",
        "20000",
        "written",
        "removed",
    ]
    wait_for(lambda: (data / "big").exists() and (data / "big").stat().st_size == 20000, 5, "it is on disk")
    assert (data / "d/e/b").read_text() == "hello world!"
    wait_for(lambda: not (data / "gone").exists(), 5, "it is removed")
    refused = run(
        daemon,
        "read /rules/link;read /rules/../secret;read /etc/passwd;read /rules/list/../../secret;write /rules/list x;"
        "remove /rules/list;rename /rules/list /data/list;fill /data/more 2000;mkdir /data/5/6;list /",
    )
    assert all(map(is_error, refused)), refused
    assert (daemon.directory / "rules/list").read_text() == "one two"


def test_without_folders_there_are_no_files(daemon: FakeDaemon) -> None:
    """The same module under a policy that says nothing of them."""
    refused = run(daemon, "read /rules/list;write /data/a x;list /data;list /;mkdir /x;remove /data/a", "beta")

    assert all(map(is_error, refused)), refused
    assert list((daemon.directory / "data").iterdir()) == []


def test_a_vm_that_starts_again_has_what_was_written(daemon: FakeDaemon, module: Path) -> None:
    """By the VM before it, whose worker lives on; and after a reload also what somebody else has put there."""
    run(daemon, "write /data/state 42")
    wait_for((daemon.directory / "data/state").exists, 5, "it is on disk")
    if module is RUST:
        daemon.ask("alpha main /trap")
        wait_for(lambda: daemon.serves("alpha main /size /data/state"), 10, "it runs again")
        assert run(daemon, "read /data/state") == ["42"]
    (daemon.directory / "rules/late").write_text("news")
    policy = daemon.policies / "a.yaml"
    policy.write_text(policy.read_text() + "# changed\n")
    daemon.reload()
    wait_for(lambda: run(daemon, "read /rules/late") == ["news"], 10, "the new version serves")
    assert run(daemon, "read /data/state") == ["42"]


def test_what_a_disk_does_not_take_is_counted(daemon: FakeDaemon) -> None:
    """Its folder is taken away; the plugin, which writes into a copy, hears nothing of it."""
    (plugin,) = daemon.tenant("alpha")["plugins"]
    assert sorted(folder["name"] for folder in plugin["folders"]) == ["/data", "/rules"]
    assert not any(folder["refused"] or folder["failed"] for folder in plugin["folders"])
    (daemon.directory / "data").rename(daemon.directory / "elsewhere")
    assert run(daemon, "write /data/a hello") == ["written"]

    def failed() -> list[int]:
        return [folder["failed"] for folder in daemon.tenant("alpha")["plugins"][0]["folders"]]

    wait_for(lambda: sum(failed()) > 0, 5, "it is counted")


def test_a_folder_that_is_not_there_is_a_clear_error(short_path: Path, artefact_cache: Path) -> None:
    """The plugin does not run, and the status says why."""
    policies = {"a": policy_text("alpha", RUST, more=f"wasi: {{folders: {{/x: {{path: {short_path}/none}}}}}}")}
    with fake_daemon(short_path, artefact_cache, policies, fronts=1) as daemon:
        assert "cannot be read: No such file" in daemon.tenant("alpha")["last_error"]
