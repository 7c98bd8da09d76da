"""What changes of folders cost the supervisor, and who waits for a disk."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from pathlib import Path

import pytest

from sandboxd.errors import FolderError
from sandboxd.policy.load import parse_policy
from sandboxd.protos import control_pb2 as control
from sandboxd.supervisor import folder_disk, folders
from sandboxd.supervisor.folder_disk import Change
from sandboxd.supervisor.folders import Mount, apply_changes, read_changes
from sandboxd.supervisor.prepare import PreparedTenant, prepare_tenant
from sandboxd.vm.folder_blob import ChangeKind
from tests.support.daemon_client import ADD_HEADER, policy_text
from tests.support.folders import do, mounted, paths

pytestmark = pytest.mark.long

K = ChangeKind


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with a file, a folder and a file in it."""
    place = tmp_path / "folder"
    (place / "sub").mkdir(parents=True)
    (place / "list").write_bytes(b"one")
    (place / "sub/x").write_bytes(b"deep")
    return place


def full(tmp_path: Path, files: int) -> Mount:
    """A folder ``d`` with so many files, in memory alone, and an empty one beside it."""
    (tmp_path / "full").mkdir()
    mount = mounted(tmp_path / "full", max_files=files + 10, max_bytes=1 << 20)
    names = [b"d", b"e", *(b"d/%d" % number for number in range(files))]
    for name in names:
        kind = K.CREATE if b"/" in name else K.FOLDER
        assert mount.folder.apply(Change(kind, name), mount.policy) == ""
    return mount


def test_a_change_costs_the_same_however_many_files_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as one frame can bring, of the kinds that look below a path."""
    monkeypatch.setattr(folder_disk, "perform", lambda *_: None)
    mount = full(tmp_path, 9_000)
    began_s = time.process_time()
    for number in range(folders.MAX_CHANGES // 2):
        a, b = (b"d/0", b"e/0") if number % 2 == 0 else (b"e/0", b"d/0")
        assert mount.folder.apply(Change(K.RENAME, a, b), mount.policy) == ""
        assert "not empty" in mount.folder.apply(Change(K.REMOVE, b"d"), mount.policy)
    assert time.process_time() - began_s < 0.5
    mount.folder.flush()


def test_moving_folders_is_bounded_by_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with all files that there may be can be moved there and back, not all the time; the next frame again."""
    monkeypatch.setattr(folder_disk, "perform", lambda *_: None)
    mount = full(tmp_path, 9_000)
    there = control.FileChange(kind=K.RENAME, path=b"d", other=b"e/d")
    back = control.FileChange(kind=K.RENAME, path=b"e/d", other=b"d")
    frame = control.FileChanges(vm_id=1, changes=[there, back] * (folders.MAX_CHANGES // 2))
    for _ in range(2):
        before, began_s = mount.folder.refused, time.process_time()
        apply_changes((mount,), read_changes(frame, 1))
        assert mount.folder.refused - before == folders.MAX_CHANGES - 2
        assert time.process_time() - began_s < 0.5
    assert len(paths(mount)) == 9_002
    mount.folder.flush()


def test_lengthening_files_is_bounded_by_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the quota and back, twice; what is written does not count."""
    monkeypatch.setattr(folder_disk, "perform", lambda *_: None)
    mount = mounted(tmp_path, max_bytes=(16 << 20) + len(b"f"))
    do(mount, K.CREATE, b"f")
    sizes = [control.FileChange(kind=K.RESIZE, path=b"f", size=size) for size in (16 << 20, 0)] * 5
    writes = [control.FileChange(kind=K.WRITE, path=b"f", other=bytes(32768), size=n << 15) for n in range(512)]
    for _ in range(2):
        before = mount.folder.refused
        apply_changes((mount,), read_changes(control.FileChanges(vm_id=1, changes=sizes + writes), 1))
        assert mount.folder.refused - before == 3
        assert len(paths(mount)[b"f"] or b"") == 16 << 20
        do(mount, K.RESIZE, b"f")


def test_what_was_moved_is_found_in_its_new_place_alone(root: Path) -> None:
    """Also by what asks for a folder's being empty."""
    mount = mounted(root, max_files=9)
    assert do(mount, K.FOLDER, b"e") == ""
    assert do(mount, K.RENAME, b"sub", b"e") == ""  # onto an empty one
    assert "not empty" in do(mount, K.REMOVE, b"e")
    assert do(mount, K.RENAME, b"list", b"e/x") == ""  # onto a file
    assert do(mount, K.FOLDER, b"f") == ""
    assert do(mount, K.RENAME, b"e", b"f/e") == ""
    assert "cannot be replaced" in [do(mount, K.FOLDER, b"g"), do(mount, K.RENAME, b"g", b"f")][1]
    assert [do(mount, K.UNLINK, b"f/e/x"), do(mount, K.REMOVE, b"f/e"), do(mount, K.REMOVE, b"f")] == [""] * 3
    assert sorted(path.name for path in root.iterdir()) == ["g"]
    assert mount.folder.failed == 0


def test_a_disk_that_hangs_holds_up_its_own_folder_alone(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And even a reload of that one ends, with an error that names it."""
    gate = threading.Event()
    perform = folder_disk.perform
    monkeypatch.setattr(folder_disk, "perform", lambda path, c: gate.wait(10) if path == root else perform(path, c))
    (tmp_path / "other").mkdir()
    hung, other = mounted(root), mounted(tmp_path / "other")
    try:
        assert hung.folder.apply(Change(K.WRITE, b"list", b"x"), hung.policy) == ""
        assert do(other, K.CREATE, b"x") == ""
        assert (tmp_path / "other/x").exists()
        monkeypatch.setattr(folders, "DISK_TIMEOUT_S", 0.1)
        with pytest.raises(FolderError, match=f"{root} has not taken the changes"):
            mounted(root)
    finally:
        gate.set()
    monkeypatch.setattr(folders, "DISK_TIMEOUT_S", 10)
    hung.folder.flush()
    assert paths(mounted(root))[b"list"] == b"one"


def threads() -> int:
    return sum(thread.name.startswith("folder") for thread in threading.enumerate())


@pytest.mark.parametrize("where", ["scan", "resolve"])
async def test_a_mount_that_hangs_refuses_its_own_plugin_alone(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, artefact_cache: Path, where: str
) -> None:
    """
    With an error that names file, plugin and folder. The others are ready meanwhile; asking again costs neither time
    nor a thread; and it is read when the disk has come back.
    """
    asked, gate = threading.Event(), threading.Event()
    (tmp_path / "other").mkdir()

    place, name = (folder_disk, "scan") if where == "scan" else (Path, "resolve")
    original = getattr(place, name)

    def hanging(path: Path, *more: object) -> object:
        """As for a network file system whose server is gone: whoever asks for anything there waits."""
        if path == root:
            asked.set()
            gate.wait(60)
        return original(path, *more)

    monkeypatch.setattr(place, name, hanging)
    monkeypatch.setattr(folders, "DISK_TIMEOUT_S", 4)
    compilers = asyncio.Semaphore(1)

    async def prepare(name: str, place: Path) -> PreparedTenant:
        source = tmp_path / f"{name}.yaml"
        more = f"wasi: {{folders: {{/d: {{path: {place}}}}}}}\n"
        source.write_text(policy_text(name, ADD_HEADER, more=more))
        policy = parse_policy(source.read_text(), str(source), module_root=None)
        return await prepare_tenant(policy, compilers, artefact_cache)

    await prepare("warm", tmp_path / "other")
    try:
        hung = asyncio.create_task(prepare("hung", root))
        while not asked.is_set():
            await asyncio.sleep(0.01)
        well = await asyncio.wait_for(prepare("well", tmp_path / "other"), 10)
        assert not hung.done()
        assert well.plugins["main"].folders
        refused = await hung
        assert not refused.plugins
        text = refused.problems["main"].text
        assert text.startswith(f"{tmp_path}/hung.yaml: wasi.folders: folder {root} was not read within 4 s")
        assert not refused.problems["main"].permanent
        hanging = threads()
        monkeypatch.setattr(folders, "DISK_TIMEOUT_S", 60)
        for _ in range(5):
            again = await asyncio.wait_for(prepare("hung", root), 10)
            assert "hangs, as it did before" in again.problems["main"].text
        async with asyncio.timeout(10):
            while threads() > hanging:  # the last one that looked may be ending
                await asyncio.sleep(0.01)
    finally:
        gate.set()
    while (found := await prepare("hung", root)).problems:
        await asyncio.sleep(0.05)
    assert paths(found.plugins["main"].folders[0])[b"list"] == b"one"


def test_a_file_that_goes_while_the_folder_is_read_is_left_out(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever it goes."""
    stat_of = os.stat

    def gone(name: bytes, **more: object) -> os.stat_result:
        if name == b"list":
            raise FileNotFoundError(2, "gone")
        return stat_of(name, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(folder_disk.os, "stat", gone)
    entries, skipped = folder_disk.scan(root, 100, 5)
    assert [entry.path for entry in entries] == [b"sub", b"sub/x"]
    assert skipped == []
