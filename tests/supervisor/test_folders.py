"""Folders of plugins: on disk, in memory, and against everything that a worker or a neighbour may try."""

from __future__ import annotations

import os
import random
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sandboxd import limits
from sandboxd.errors import FolderError, WorkerError
from sandboxd.policy.folders import Access
from sandboxd.protos import control_pb2 as control
from sandboxd.supervisor import folder_disk, folders
from sandboxd.supervisor.folder_disk import Change
from sandboxd.supervisor.folders import Folder, apply_changes, open_folders, read_changes
from sandboxd.supervisor.worker_protocol import VmView, WorkerView
from sandboxd.vm.config_blob import MAX_BLOB_BYTES
from sandboxd.vm.folder_blob import ChangeKind, Entry
from tests.support.folders import do, mounted, paths, policy

K = ChangeKind


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with a file, a folder and a file in it."""
    place = tmp_path / "folder"
    (place / "sub").mkdir(parents=True)
    (place / "list").write_bytes(b"one")
    (place / "sub/x").write_bytes(b"deep")
    return place


def test_a_vm_gets_what_lies_there(root: Path) -> None:
    """Folders before what they hold."""
    mount = mounted(root)
    snapshot = mount.folder.snapshot(mount.policy)

    assert [entry.path for entry in snapshot.entries] == [b"list", b"sub", b"sub/x"]
    assert paths(mount) == {b"list": b"one", b"sub": None, b"sub/x": b"deep"}
    assert snapshot.entries[0].changed_ns == (root / "list").stat().st_mtime_ns
    assert (snapshot.name, snapshot.writable, snapshot.max_bytes, snapshot.max_files) == ("/d", True, 100, 5)


def test_changes_reach_the_disk_and_the_next_vm(root: Path) -> None:
    """Every kind, in order."""
    mount = mounted(root)
    done = [
        do(mount, K.CREATE, b"new"),
        do(mount, K.WRITE, b"new", b"hello", 2),
        do(mount, K.RESIZE, b"list", size=1),
        do(mount, K.FOLDER, b"sub/deeper"),
        do(mount, K.RENAME, b"new", b"sub/deeper/renamed"),
        do(mount, K.RENAME, b"sub/deeper", b"sub/d"),
        do(mount, K.UNLINK, b"sub/x"),
    ]

    assert done == [""] * 7
    found = {b"list": b"o", b"sub": None, b"sub/d": None, b"sub/d/renamed": b"\0\0hello"}
    assert paths(mount) == found
    assert (root / "sub/d/renamed").read_bytes() == b"\0\0hello"
    assert (root / "list").read_bytes() == b"o"
    assert not (root / "sub/x").exists()
    assert stat.S_IMODE((root / "sub/d/renamed").stat().st_mode) & 0o137 == 0
    assert [do(mount, K.UNLINK, b"sub/d/renamed"), do(mount, K.REMOVE, b"sub/d"), do(mount, K.REMOVE, b"sub")] == [
        ""
    ] * 3
    assert sorted(path.name for path in root.iterdir()) == ["list"]


def test_what_is_made_can_be_read_by_the_folders_group(root: Path) -> None:
    """Whatever the daemon's umask; in a setgid folder the group is the folder's."""
    group = 54321 if os.geteuid() == 0 else os.getegid()
    os.chown(root, -1, group)
    root.chmod(0o2770)
    old = os.umask(0o077)
    try:
        mount = mounted(root, max_files=9)
        do(mount, K.CREATE, b"new")
        do(mount, K.FOLDER, b"d")
        do(mount, K.CREATE, b"d/new")
    finally:
        os.umask(old)
    facts = {name: (root / name).stat() for name in ("new", "d", "d/new")}

    assert {one.st_gid for one in facts.values()} == {group}
    assert [stat.S_IMODE(one.st_mode) for one in facts.values()] == [0o640, 0o2750, 0o640]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (Change(K.CREATE, b"none/x"), "folder is not there"),
        (Change(K.CREATE, b"list/x"), "folder is not there"),
        (Change(K.WRITE, b"none", b"x"), "no such file"),
        (Change(K.WRITE, b"sub", b"x"), "no such file"),
        (Change(K.WRITE, b"list", b"x" * 97), "as many bytes"),
        (Change(K.WRITE, b"list", b"x", 1 << 39), "as many bytes"),
        (Change(K.RESIZE, b"list", size=1 << 39), "as many bytes"),
        (Change(K.FOLDER, b"sub"), "already"),
        (Change(K.UNLINK, b"sub"), "not there"),
        (Change(K.REMOVE, b"list"), "not there"),
        (Change(K.REMOVE, b"sub"), "not empty"),
        (Change(K.RENAME, b"none", b"x"), "not there"),
        (Change(K.RENAME, b"sub", b"sub/y"), "into itself"),
        (Change(K.RENAME, b"list", b"sub"), "cannot be replaced"),
        (Change(K.RENAME, b"list", b"list/x"), "new folder is not"),
        (Change(K.RENAME, b"sub", b"list"), "cannot be replaced"),
    ],
)
def test_what_does_not_fit_is_refused(root: Path, change: Change, reason: str) -> None:
    """Whatever a worker claims: nothing changes, in memory or on disk, and it is counted."""
    mount = mounted(root)
    before = paths(mount)

    assert reason in mount.folder.apply(change, mount.policy)
    mount.folder.flush()
    assert paths(mount) == before
    assert (root / "list").read_bytes() == b"one"
    assert (mount.folder.refused, mount.folder.failed) == (1, 0)


def test_paths_count_as_bytes(root: Path) -> None:
    """Of files and folders alike; a move pays for all that it makes longer, and what it replaces makes room."""
    mount = mounted(root, max_bytes=31, max_files=10)  # it has 19 of them
    full = "the folder has as many bytes as it may"

    assert do(mount, K.FOLDER, b"n" * 13) == full
    assert do(mount, K.FOLDER, b"n" * 12) == ""
    assert do(mount, K.RENAME, b"sub", b"subs") == full
    assert do(mount, K.RENAME, b"sub", b"s") == ""
    assert do(mount, K.WRITE, b"list", b"1234567") == ""
    assert do(mount, K.WRITE, b"list", b"12345678") == full
    assert do(mount, K.REMOVE, b"n" * 12) == ""
    assert do(mount, K.RENAME, b"s", b"seven77") == ""
    assert do(mount, K.CREATE, b"z") == full
    assert do(mount, K.RENAME, b"list", b"seven77/x") == ""
    assert do(mount, K.CREATE, b"z" * 9) == full
    assert do(mount, K.CREATE, b"z" * 8) == ""
    mount.folder.reload(mount.policy, 10)
    assert set(paths(mount)) == {b"seven77", b"seven77/x", b"z" * 8}


def test_the_most_that_a_plugin_may_have_fits_its_configuration(tmp_path: Path) -> None:
    """Folders full of empty files with long names: what is on disk, and what a guest makes, is refused before that."""
    names = [b"%05d" % number + b"x" * 250 for number in range(200)]
    for name in names:
        (tmp_path / name.decode()).touch()
    with pytest.raises(FolderError, match="holds more than it may"):
        mounted(tmp_path, max_bytes=200 * 255 - 1, max_files=200)
    mount = mounted(tmp_path, max_bytes=200 * 255, max_files=200)
    overhead = len(folders.encoded([mount])) - 200 * 255
    assert overhead < 200 * 24 + 100
    most_files = limits.MAX_FOLDERS * limits.MAX_FOLDER_FILES
    rest = 2 * limits.MAX_CONFIGURATION_BYTES + limits.MAX_ENVIRONMENT_BYTES + limits.MIB
    assert limits.MAX_FOLDERS_BYTES + most_files * (overhead / 200) + rest < MAX_BLOB_BYTES


def test_files_are_counted(root: Path) -> None:
    """Folders too; a removed one makes room."""
    mount = mounted(root)
    assert [do(mount, K.CREATE, b"4"), do(mount, K.FOLDER, b"5")] == ["", ""]
    assert "as many files" in do(mount, K.CREATE, b"6")
    assert do(mount, K.UNLINK, b"4") == ""
    assert do(mount, K.CREATE, b"6") == ""


def test_a_file_that_another_vm_has_made_meanwhile_is_empty_to_this_one(root: Path) -> None:
    """The last one wins, whole."""
    mount = mounted(root)
    do(mount, K.CREATE, b"new")
    do(mount, K.WRITE, b"new", b"long text of the first")
    assert do(mount, K.CREATE, b"new") == ""
    assert do(mount, K.WRITE, b"new", b"short") == ""

    assert (root / "new").read_bytes() == b"short"
    assert mount.folder.refused == 0


# ---- what lies on disk is anybody's ------------------------------------------------------------------------------

Trick = Callable[[Path, Path], None]


def _symlink(root: Path, outside: Path) -> None:
    (root / "trick").symlink_to(outside)


def _symlinked_folder(root: Path, outside: Path) -> None:
    (root / "trick").symlink_to(outside.parent)


def _hard_link(root: Path, outside: Path) -> None:
    os.link(outside, root / "trick")


def _fifo(root: Path, _outside: Path) -> None:
    os.mkfifo(root / "trick")


TRICKS = [_symlink, _symlinked_folder, _hard_link, _fifo]


def _plain(root: Path, outside: Path) -> None:
    (root / "trick").write_bytes(outside.read_bytes())


@pytest.mark.parametrize("trick", [*TRICKS, _plain])
def test_nothing_outside_is_read(root: Path, tmp_path: Path, trick: Trick) -> None:
    """Links, names of other files, pipes: left out. The harmless twin, a plain file, is there."""
    outside = tmp_path / "secret"
    outside.write_bytes(b"secret")
    trick(root, outside)
    found = paths(mounted(root))

    assert (b"secret" in found.values()) == (trick is _plain)
    assert not any(path.startswith(b"trick/") for path in found)


@pytest.mark.parametrize("trick", [*TRICKS, _plain])
def test_nothing_outside_is_changed(root: Path, tmp_path: Path, trick: Trick) -> None:
    """The same, put there after the plugin has made its own file of that name: writing, cutting, moving, removing."""
    outside = tmp_path / "secret"
    outside.write_bytes(b"secret")
    mount = mounted(root)
    assert do(mount, K.CREATE, b"trick") == ""
    (root / "trick").unlink()
    trick(root, outside)
    do(mount, K.WRITE, b"trick", b"own")
    do(mount, K.RESIZE, b"trick", size=1)

    assert outside.read_bytes() == b"secret"
    assert mount.folder.failed == (0 if trick is _plain else 2)
    do(mount, K.RENAME, b"trick", b"moved")
    do(mount, K.UNLINK, b"moved")
    assert outside.read_bytes() == b"secret"
    assert not (root / "moved").is_symlink()


@pytest.mark.parametrize("is_link", [True, False])
def test_a_folder_that_becomes_a_link_leads_nowhere(root: Path, tmp_path: Path, is_link: bool) -> None:
    """Also in the middle of a path; the twin is another folder in its place."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "x").write_bytes(b"deep")
    mount = mounted(root)
    (root / "sub/x").unlink()
    (root / "sub").rmdir()
    if is_link:
        (root / "sub").symlink_to(elsewhere)
    else:
        elsewhere.rename(root / "sub")
        elsewhere = root / "sub"
    do(mount, K.WRITE, b"sub/x", b"OWN!")
    do(mount, K.CREATE, b"sub/new")

    assert (elsewhere / "x").read_bytes() == (b"deep" if is_link else b"OWN!")
    assert (elsewhere / "new").exists() == (not is_link)


def test_a_race_with_links_is_never_won(root: Path, tmp_path: Path) -> None:
    """Somebody swaps a folder for a link and back all the time; what is outside stays as it is."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "x").write_bytes(b"secret")
    mount = mounted(root)
    stop = threading.Event()
    choose = random.Random(3)

    def swap() -> None:
        while not stop.is_set():
            (root / "sub").rename(root / "aside")
            (root / "sub").symlink_to(outside)
            (root / "sub").unlink()
            (root / "aside").rename(root / "sub")
            time.sleep(choose.random() / 1000)

    swapper = threading.Thread(target=swap)
    swapper.start()
    try:
        for number in range(300):
            mount.folder.apply(Change(K.WRITE, b"sub/x", b"own%d" % (number % 10)), mount.policy)
        mount.folder.flush()
    finally:
        stop.set()
        swapper.join()

    assert (outside / "x").read_bytes() == b"secret"
    assert mount.folder.failed < 300, "no write met its folder: the race proves nothing"


@pytest.mark.parametrize("more", [{"max_bytes": 18}, {"max_files": 2}])
def test_a_folder_that_holds_too_much_is_an_error(root: Path, more: dict[str, int]) -> None:
    """It says which, and what the policy allows; with a little more it is none."""
    with pytest.raises(FolderError, match=f"{root} holds more"):
        mounted(root, **more)
    assert len(paths(mounted(root, max_bytes=19, max_files=3))) == 3


def test_no_folder_is_an_error(tmp_path: Path) -> None:
    """Neither is a file one."""
    (tmp_path / "file").touch()
    for path in (tmp_path / "none", tmp_path / "file"):
        with pytest.raises(FolderError, match="cannot be read"):
            mounted(path)


def test_too_deep_is_left_out(tmp_path: Path) -> None:
    """As deep as a guest may go."""
    parts = ["d"] * 16
    (tmp_path / "/".join(parts)).mkdir(parents=True)
    (tmp_path / "/".join(parts) / "file").write_bytes(b"x")
    entries, skipped = folder_disk.scan(tmp_path, 300, 100)

    assert len(entries) == 16
    assert skipped == ["/".join([*parts, "file"])]


# ---- versions ----------------------------------------------------------------------------------------------------


def test_versions_share_a_folder_and_a_reload_reads_it_anew(root: Path) -> None:
    """What the older has written is there, and what somebody has put there."""
    old = mounted(root)
    old.folder.apply(Change(K.WRITE, b"list", b"TWO"), old.policy)
    (root / "other").write_bytes(b"from outside")
    new = mounted(root)

    assert new.folder is old.folder
    assert paths(new)[b"list"] == b"TWO"
    assert paths(new)[b"other"] == b"from outside"


def test_a_slow_disk_is_not_waited_for(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until too much waits: then changes are refused."""
    gate = threading.Event()
    monkeypatch.setattr(folder_disk, "perform", lambda *_: gate.wait(10))
    monkeypatch.setattr(folders, "MAX_WAITING_BYTES", 1000)
    mount = mounted(root)
    outcomes = [mount.folder.apply(Change(K.WRITE, b"list", b"x"), mount.policy) for _ in range(6)]
    gate.set()
    mount.folder.flush()

    assert outcomes[:4] == [""] * 4
    assert "disk" in outcomes[-1]
    assert mount.folder.apply(Change(K.WRITE, b"list", b"x"), mount.policy) == ""
    mount.folder.flush()


# ---- what a worker says ------------------------------------------------------------------------------------------


def feed(*changes: control.FileChange, vm_id: int = 1) -> object:
    """Give a frame to the protocol's reader."""
    view = WorkerView(ready=True, vms={1: VmView(plugin_id=7)})
    frame = control.FromWorker(file_changes=control.FileChanges(vm_id=vm_id, changes=changes))
    return view.feed(frame.SerializeToString())


@pytest.mark.parametrize(
    "change",
    [
        {"kind": 0},
        {"kind": 8},
        {"path": b""},
        {"path": b"/etc/passwd"},
        {"path": b".."},
        {"path": b"a/../../b"},
        {"path": b"a//b"},
        {"path": b"a/"},
        {"path": b"./a"},
        {"path": b"a\0b"},
        {"path": b"n" * 256},
        {"path": b"a/" * 16 + b"a"},
        {"path": b"a" * 200 + (b"/" + b"a" * 200) * 5},
        {"other": b"x" * 32769},
        {"size": 1 << 40},
        {"kind": 7, "other": b"../x"},
        {"kind": 7, "other": b""},
    ],
)
def test_a_worker_that_speaks_of_other_places_is_a_liar(change: dict[str, object]) -> None:
    """hostcore never says so; the honest twin passes."""
    honest = {"folder": 0, "kind": 2, "path": b"a", "other": b"x", "size": 0}
    assert feed(control.FileChange(**honest))  # type: ignore[arg-type]
    with pytest.raises(WorkerError):
        feed(control.FileChange(**{**honest, **change}))  # type: ignore[arg-type]


def test_a_worker_speaks_of_its_own_vms_alone() -> None:
    """Of one that it was not given it knows nothing."""
    with pytest.raises(WorkerError, match="VM 2"):
        feed(vm_id=2)


def test_a_worker_writes_where_its_plugin_may_alone(root: Path, tmp_path: Path) -> None:
    """Not in a folder to read, and not in one that is not there."""
    (tmp_path / "read").mkdir()
    mounts = (*open_folders([policy(tmp_path / "read", access=Access.READ)]), mounted(root))
    for folder, fits in ((0, False), (2, False), (1, True)):
        frame = control.FileChanges(vm_id=1, changes=[control.FileChange(folder=folder, kind=1, path=b"x")])
        if fits:
            apply_changes(mounts, read_changes(frame, 1))
        else:
            with pytest.raises(WorkerError, match=f"folder {folder}"):
                apply_changes(mounts, read_changes(frame, 1))
    mounts[1].folder.flush()
    assert (root / "x").exists()
    assert not (tmp_path / "read/x").exists()


def test_entries_are_frozen() -> None:
    """A snapshot does not change with what comes later."""
    assert isinstance(Folder(Path("/nonexistent")).snapshot(policy(Path("/"))).entries, tuple)
    assert Entry(b"a", b"") == Entry(b"a", b"")


def test_changes_of_one_frame_are_bounded() -> None:
    change = control.FileChange(kind=ChangeKind.UNLINK, path=b"a")
    most = folders.MAX_CHANGES
    assert len(read_changes(control.FileChanges(vm_id=1, changes=[change] * most), 1).changes) == most
    with pytest.raises(WorkerError, match="at once"):
        read_changes(control.FileChanges(vm_id=1, changes=[change] * (most + 1)), 1)
