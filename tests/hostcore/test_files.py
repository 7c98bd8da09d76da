"""Preopened folders: what a guest sees, what it changes, what goes out, and every refusal."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any

import pytest

from sandboxd.vm.folder_blob import ChangeKind, Entry, Snapshot, encode
from sandboxd.vm.messages import RequestKind
from sandboxd.vm.traps import GuestFailure
from tests.hostcore.driver import Driver
from tests.hostcore.guest_wat import OUT_WORD, guest

READ, WRITE = 2, 64
CREATE, DIRECTORY, EXCLUSIVE, TRUNCATE = 1, 2, 4, 8
BADF, DQUOT, EXIST, FAULT, FBIG, INVAL, ISDIR, MFILE, LONG, NOENT = 8, 19, 20, 21, 22, 28, 31, 33, 37, 44
NOSPC, NOTDIR, NOTEMPTY, NOTSUP, ROFS, XDEV, NOTCAPABLE = 51, 54, 55, 58, 69, 75, 76
WILD = 0xFFFF0000 - (1 << 32)
BUFFER = 0x40000
"""Room in the guest's memory that nothing else uses."""

RULES = Snapshot(
    "/rules", False, 100, 10, (Entry(b"list", b"one\ntwo\n", 7), Entry(b"sub", None), Entry(b"sub/x", b"deep"))
)
DATA = Snapshot("/data", True, 100, 4, (Entry(b"old", b"0123456789", 5),))
R, W = 3, 4
"""The descriptors of the two, by their order; the first that is opened is 5."""
F = 5


def opened(fd: int, path: str | bytes, flags: int = 0, rights: int = READ, fd_flags: int = 0) -> tuple[Any, ...]:
    """``path_open``."""
    return ("path_open", fd, 0, path, flags, rights, 0, fd_flags, OUT_WORD)


class Ran:
    """What came of some calls in a request callback."""

    def __init__(
        self, calls: Iterable[tuple[Any, ...]], folders: tuple[Snapshot, ...] = (RULES, DATA), **more: Any
    ) -> None:
        config = {"folders": encode(folders), "open_files": 4, **more}
        with Driver(guest({"request_headers": calls}), **config) as vm:
            self.reports = vm.request()[1].reports
            requests = vm.requests()
        assert all(request.kind is RequestKind.FILE_CHANGE for request in requests)
        self.changes = [
            (r.call_id, ChangeKind(r.argument), r.parts[0], r.parts[1], int.from_bytes(r.parts[2], "little"))
            for r in requests
        ]

    @property
    def errors(self) -> list[int]:
        """Of each call."""
        return [report[0] for report in self.reports]

    def word(self, index: int) -> int:
        """What a call gave, as 32 bits."""
        assert self.reports[index][0] == 0, self.errors
        return int.from_bytes(self.reports[index][1:5], "little")


def errors(*calls: tuple[Any, ...], **more: Any) -> list[int]:
    """Of each call."""
    return Ran(calls, **more).errors


def io(at: int, size: int) -> bytes:
    """One vector."""
    return struct.pack("<II", at, size)


class Script:
    """Calls that need addresses of texts: they are laid out in the order of their use, from 0x10000."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self._at = 0x10000
        self._places: dict[bytes, int] = {}

    def text(self, text: bytes) -> int:
        """Put a text where the guest has it; returns its address."""
        if text not in self._places:
            self.calls.append(("proxy_log", 1, text))
            self._places[text] = self._at
            self._at += len(text)
        return self._places[text]

    def read(self, fd: int, size: int) -> None:
        """``fd_read`` of so many bytes, and a log line with what was read."""
        vector = self.text(io(BUFFER, size))
        self.calls += [("fd_read", fd, vector, 1, OUT_WORD), ("proxy_log", 2, BUFFER, size)]

    def write(self, fd: int, data: bytes) -> None:
        """``fd_write``."""
        place = self.text(data)
        self.calls.append(("fd_write", fd, self.text(io(place, len(data))), 1, OUT_WORD))


def path_script(*calls: Any) -> Script:
    """A script whose opens come first; their paths are texts as well."""
    script = Script()
    for call in calls:
        path = call[3].encode() if isinstance(call[3], str) else call[3]
        script.text(path)
        script.calls.append(call)
    return script


def said(script: Script, **more: Any) -> tuple[Ran, list[bytes]]:
    """Run it; also return the log lines."""
    config = {"folders": encode((RULES, DATA)), "open_files": 4, **more}
    with Driver(guest({"request_headers": script.calls}), **config) as vm:
        outcome = vm.request()[1]
        requests = vm.requests()
    ran = Ran.__new__(Ran)
    reports = [log.payload for log in outcome.logs if log.arg == 0]
    calls = [call for call in script.calls if call[0] != "loop"]
    ran.reports = [report for report, call in zip(reports, calls, strict=True) if call[0] != "proxy_log"]
    ran.changes = [
        (r.call_id, ChangeKind(r.argument), r.parts[0], r.parts[1], int.from_bytes(r.parts[2], "little"))
        for r in requests
    ]
    return ran, [log.payload for log in outcome.logs if log.arg == 2]


def test_folders_are_announced() -> None:
    """In the policy's order, from 3 on; then there are no more."""
    ran = Ran([("fd_prestat_get", fd, OUT_WORD) for fd in (3, 4, 5)])

    assert [struct.unpack("<II", report[1:]) for report in ran.reports[:2]] == [(0, 6), (0, 5)]
    assert ran.errors == [0, 0, BADF]
    script = Script()
    script.calls += [("fd_prestat_dir_name", R, BUFFER, 6), ("proxy_log", 2, BUFFER, 6)]
    script.calls += [("fd_prestat_dir_name", R, BUFFER, 5), ("fd_prestat_dir_name", 9, BUFFER, 6)]
    script.calls += [("fd_prestat_dir_name", R, WILD, 6), ("fd_prestat_get", R, WILD)]
    ran, lines = said(script)
    assert lines == [b"/rules"]
    assert ran.errors == [0, LONG, 52, FAULT, FAULT]


def test_reading() -> None:
    """In pieces, to the end, from places; also below a folder."""
    script = path_script(opened(R, "list"), opened(R, "./sub//../sub/x"))
    script.read(F, 4)
    script.read(F, 4)
    script.read(F, 0)
    script.read(F + 1, 4)
    script.calls.append(("fd_seek", F, -3, 2, OUT_WORD))
    script.read(F, 2)
    script.calls += [("fd_tell", F, OUT_WORD), ("fd_close", F), ("fd_tell", F, OUT_WORD)]
    ran, lines = said(script)

    assert lines == [b"one\n", b"two\n", b"", b"deep", b"wo"]
    assert ran.errors[-3:] == [0, 0, BADF]
    assert int.from_bytes(ran.reports[-3][1:], "little") == 7
    assert ran.changes == []


def test_writing_is_seen_and_goes_out() -> None:
    """New files, places in old ones, gaps, the end; each change in its order."""
    script = path_script(opened(W, "new", CREATE | EXCLUSIVE, READ | WRITE), opened(W, "old", 0, WRITE, 1))
    script.write(F, b"hello")
    script.calls.append(("fd_seek", F, 8, 0, OUT_WORD))
    script.write(F, b"!")
    script.calls.append(("fd_seek", F, 0, 0, OUT_WORD))
    script.read(F, 9)
    script.write(F + 1, b"more")
    script.calls.append(("fd_filestat_set_size", F, 2))
    ran, lines = said(script)

    assert lines == [b"hello\0\0\0!"]
    assert set(ran.errors) == {0}
    assert ran.changes == [
        (1, ChangeKind.CREATE, b"new", b"", 0),
        (1, ChangeKind.WRITE, b"new", b"hello", 0),
        (1, ChangeKind.WRITE, b"new", b"!", 8),
        (1, ChangeKind.WRITE, b"old", b"more", 10),
        (1, ChangeKind.RESIZE, b"new", b"", 2),
    ]


def test_folders_files_and_names_change() -> None:
    """Make, rename, replace, remove: what the guest sees, and what goes out."""
    ran = Ran(
        [
            ("path_create_directory", W, "d"),
            ("path_create_directory", W, "d"),
            ("path_rename", W, "old", W, "d/new"),
            ("path_filestat_get", W, 0, "old", BUFFER),
            ("path_filestat_get", W, 0, "d/new", BUFFER),
            ("path_remove_directory", W, "d"),
            ("path_rename", W, "d", W, "d/e"),
            ("path_unlink_file", W, "d"),
            ("path_remove_directory", W, "d/new"),
            ("path_rename", W, "d", W, "e"),
            ("path_unlink_file", W, "e/new"),
            ("path_remove_directory", W, "e"),
            ("path_unlink_file", W, "e"),
        ]
    )

    assert ran.errors == [0, EXIST, 0, NOENT, 0, NOTEMPTY, INVAL, ISDIR, NOTDIR, 0, 0, 0, NOENT]
    assert [(kind, path, other) for _, kind, path, other, _ in ran.changes] == [
        (ChangeKind.FOLDER, b"d", b""),
        (ChangeKind.RENAME, b"old", b"d/new"),
        (ChangeKind.RENAME, b"d", b"e"),
        (ChangeKind.UNLINK, b"e/new", b""),
        (ChangeKind.REMOVE, b"e", b""),
    ]


def test_a_rename_replaces() -> None:
    """A file by a file, an empty folder by a folder; not one by the other. What is open stays what it was."""
    script = path_script(opened(W, "old"), opened(W, "fresh", CREATE, WRITE))
    script.write(F + 1, b"fresh text")
    script.calls += [("path_rename", W, "fresh", W, "old"), ("fd_seek", F, 0, 0, OUT_WORD)]
    script.read(F, 3)
    script.text(b"d")
    script.calls += [
        ("path_create_directory", W, "d"),
        ("path_rename", W, "old", W, "d"),
        ("path_rename", W, "d", W, "old"),
    ]
    ran, lines = said(script)
    assert lines == [b"012"]
    assert ran.errors[-3:] == [0, ISDIR, NOTDIR]

    twice = Ran(
        [opened(W, "a", CREATE, WRITE), ("path_rename", W, "a", W, "old"), ("path_filestat_get", W, 0, "a", BUFFER)]
    )
    assert twice.errors == [0, 0, NOENT]
    assert [kind for _, kind, *_ in twice.changes] == [ChangeKind.CREATE, ChangeKind.RENAME]


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("../etc/passwd", NOTCAPABLE),
        ("..", NOTCAPABLE),
        ("sub/../../list", NOTCAPABLE),
        ("/etc/passwd", NOTCAPABLE),
        ("/list", NOTCAPABLE),
        ("sub/..", 0),
        ("./list", 0),
        ("list/", NOTDIR),
        ("list/..", NOTDIR),
        ("list/x", NOTDIR),
        ("nothing", NOENT),
        ("nothing/list", NOENT),
        ("nothing/../list", NOENT),
        ("", NOENT),
        (b"li\0st", INVAL),
        ("n" * 256, LONG),
        ("a/" * 20, NOENT),
        ("sub/" * 2, NOENT),
        ("./" * 600, LONG),
        ("list\n", NOENT),
        (b"\xff\xfe", NOENT),
    ],
)
def test_paths_lead_nowhere_else(path: str | bytes, error: int) -> None:
    """Tricks of paths, and what is just not there."""
    assert errors(opened(R, path)) == [error]


def test_a_folder_that_is_open_is_a_wall_as_well() -> None:
    """Below a descriptor there is no way up, not even to what the guest may see."""
    assert errors(
        opened(R, "sub", DIRECTORY), opened(F, ".."), opened(F, "../list"), opened(F, "x"), opened(F, ".")
    ) == [
        0,
        NOTCAPABLE,
        NOTCAPABLE,
        0,
        0,
    ]


def test_read_only_is_read_only() -> None:
    """Every way to change something; nothing goes out."""
    vector = io(0x10000, 4)
    ran = Ran(
        [
            ("proxy_log", 1, vector),
            opened(R, "list", 0, WRITE),
            opened(R, "list", TRUNCATE),
            opened(R, "new", CREATE),
            ("path_create_directory", R, "d"),
            ("path_unlink_file", R, "list"),
            ("path_remove_directory", R, "sub"),
            ("path_rename", R, "list", R, "other"),
            ("path_rename", R, "list", W, "other"),
            ("path_rename", W, "old", R, "other"),
            opened(R, "list"),
            ("fd_write", F, 0x10000, 1, OUT_WORD),
            ("fd_pwrite", F, 0x10000, 1, 0, OUT_WORD),
            ("fd_filestat_set_size", F, 0),
            ("fd_allocate", F, 0, 50),
        ]
    )

    assert ran.errors[1:] == [ROFS] * 8 + [XDEV, 0] + [NOTCAPABLE] * 4
    assert ran.changes == []


def test_links_and_times_are_not_offered() -> None:
    """Neither made nor followed."""
    assert errors(
        ("path_symlink", "old", W, "link"),
        ("path_link", W, 0, "old", W, "link"),
        ("path_readlink", W, "old", BUFFER, 10, OUT_WORD),
        ("path_readlink", W, "none", BUFFER, 10, OUT_WORD),
        ("path_filestat_set_times", W, 0, "old", 0, 0, 0),
    ) == [NOTSUP, NOTSUP, INVAL, NOENT, NOTSUP]


def test_quotas() -> None:
    """Bytes, files, and descriptors; what was freed may be used again."""
    small = Snapshot("/data", True, 12, 2, ())
    script = path_script(opened(3, "a", CREATE, WRITE), opened(3, "b", CREATE, WRITE), opened(3, "c", CREATE, WRITE))
    script.write(4, b"12345678")
    script.write(5, b"abc")
    script.calls += [
        ("fd_filestat_set_size", 4, 13),
        ("fd_filestat_set_size", 4, 10),
        ("fd_allocate", 5, 0, 1),
        ("fd_seek", 4, 1 << 40, 0, OUT_WORD),
        ("fd_filestat_set_size", 4, 1 << 32),
        ("path_unlink_file", 3, "b"),
        ("path_create_directory", 3, "c"),
    ]
    ran, _ = said(script, folders=encode([small]))
    assert ran.errors == [0, 0, DQUOT, 0, DQUOT, FBIG, 0, DQUOT, 0, FBIG, 0, 0]

    assert errors(*[opened(R, "list")] * 5, ("fd_close", F), opened(R, "list")) == [0, 0, 0, 0, MFILE, 0, 0]


def test_paths_count_as_bytes() -> None:
    """Of files and folders alike; a move pays for all that it makes longer, and what it replaces makes room."""
    small = Snapshot("/data", True, 20, 10, (Entry(b"d", None), Entry(b"d/x", b"12"), Entry(b"y", b"1")))  # 8 bytes
    moves = [
        ("path_create_directory", 3, "n" * 13),
        ("path_create_directory", 3, "n" * 12),
        ("path_rename", 3, "d", 3, "dd"),
        ("path_remove_directory", 3, "n" * 12),
        ("path_rename", 3, "d", 3, "d" * 8),
        ("path_rename", 3, "d", 3, "d" * 7),
        ("path_create_directory", 3, "z"),
        ("path_rename", 3, "y", 3, "d" * 7 + "/x"),
        ("path_create_directory", 3, "zzzz"),
        ("path_create_directory", 3, "zzz"),
    ]
    script = Script()
    script.calls += moves
    ran, _ = said(script, folders=encode([small]))
    assert ran.errors == [DQUOT, 0, DQUOT, 0, DQUOT, 0, DQUOT, 0, DQUOT, 0]


def test_a_file_that_is_removed_while_open_goes_nowhere() -> None:
    """It can be read; it has no name for a change to go out under, and does not grow."""
    script = path_script(opened(W, "old", 0, READ | WRITE))
    script.calls.append(("path_unlink_file", W, "old"))
    script.read(F, 3)
    script.write(F, b"xyz")
    script.calls += [("fd_filestat_set_size", F, 50), ("fd_close", F)]
    ran, lines = said(script)

    assert lines == [b"012"]
    assert [kind for _, kind, *_ in ran.changes] == [ChangeKind.UNLINK]
    assert ran.errors[-2:] == [DQUOT, 0]


def entries(data: bytes) -> list[tuple[bytes, int, int]]:
    """Name, type and cookie of each entry of a listing."""
    found = []
    while len(data) >= 24:
        cookie, _, size, kind = struct.unpack_from("<QQIB", data)
        if len(data) < 24 + size:
            break
        found.append((data[24 : 24 + size], kind, cookie))
        data = data[24 + size :]
    return found


def test_listing() -> None:
    """Whole, cut off, and going on from a cookie."""
    script = Script()
    script.calls += [("fd_readdir", R, BUFFER, 400, 0, OUT_WORD), ("proxy_log", 2, BUFFER, 400)]
    ran, lines = said(script)
    used = ran.word(0)
    listed = entries(lines[0][:used])
    assert [(name, kind) for name, kind, _ in listed] == [(b".", 3), (b"..", 3), (b"sub", 3), (b"list", 4)]

    script = Script()
    script.calls += [("fd_readdir", R, BUFFER, 60, listed[1][2], OUT_WORD), ("proxy_log", 2, BUFFER, 60)]
    script.calls += [("fd_readdir", R, BUFFER, 60, listed[2][2], OUT_WORD), ("proxy_log", 2, BUFFER, 60)]
    script.calls += [("fd_readdir", R, BUFFER, 60, listed[3][2], OUT_WORD), ("fd_readdir", 99, BUFFER, 60, 0, OUT_WORD)]
    ran, lines = said(script)
    assert (ran.word(0), entries(lines[0])[0][0]) == (24 + 3 + 24 + 4, b"sub")
    assert (ran.word(1), entries(lines[1][:28])) == (28, [listed[3]])
    assert ran.word(2) == 0
    assert ran.errors[3] == NOTDIR


def test_facts() -> None:
    """Types, sizes and times, of paths and descriptors."""
    script = path_script(opened(R, "list"))
    script.text(b"sub")
    script.calls += [("fd_filestat_get", F, BUFFER), ("proxy_log", 2, BUFFER, 64)]
    script.calls += [("fd_fdstat_get", F, BUFFER), ("proxy_log", 2, BUFFER, 24)]
    script.calls += [("fd_fdstat_get", W, BUFFER), ("proxy_log", 2, BUFFER, 24)]
    script.calls += [("path_filestat_get", R, 0, "sub", BUFFER), ("proxy_log", 2, BUFFER, 64)]
    _, lines = said(script)

    kind, links, size, accessed, changed = struct.unpack_from("<16xB7xQQQQ", lines[0])
    assert (kind, links, size, accessed, changed) == (4, 1, 8, 7, 7)
    assert lines[1][0] == 4
    assert not int.from_bytes(lines[1][8:16], "little") & WRITE
    assert lines[2][0] == 3
    assert lines[3][16] == 3


def test_wild_addresses() -> None:
    """Of paths, vectors and results: errors, and nothing is changed."""
    ran = Ran(
        [
            opened(W, "old", 0, READ | WRITE),
            ("path_open", W, 0, WILD, 5, 0, READ, 0, 0, OUT_WORD),
            ("path_open", W, 0, "old", 0, READ, 0, 0, WILD),
            ("path_open", W, 0, "new", CREATE, READ, 0, 0, WILD),
            ("fd_read", F, WILD, 1, OUT_WORD),
            ("fd_write", F, WILD, 1, OUT_WORD),
            ("fd_write", F, 0, 1025, OUT_WORD),
            ("fd_read", F, 0, 0, WILD),
            ("fd_write", F, 0, 0, WILD),
            ("fd_readdir", W, WILD, 100, 0, OUT_WORD),
            ("fd_readdir", W, BUFFER, 100, 0, WILD),
            ("fd_seek", F, 0, 0, WILD),
            ("fd_seek", F, -1, 0, OUT_WORD),
            ("fd_seek", F, 0, 3, OUT_WORD),
            ("fd_filestat_get", F, WILD),
            ("path_filestat_get", W, 0, "old", WILD),
            ("path_rename", W, "old", W, WILD, 5),
            ("path_create_directory", W, WILD, 5),
        ]
    )

    assert ran.errors == [0, *[FAULT] * 5, INVAL, *[FAULT] * 5, INVAL, INVAL, *[FAULT] * 4]
    assert ran.changes == []


def test_what_is_no_descriptor() -> None:
    """Standard streams, numbers far away, and files where folders are needed."""
    calls = [("fd_tell", fd, OUT_WORD) for fd in (0, 6, 255, -0x7FFFFFFF, -1)]
    assert errors(*calls) == [BADF] * 5
    assert errors(opened(R, "list"), opened(F, "x"), ("path_unlink_file", F, "x")) == [0, NOTDIR, NOTDIR]
    assert errors(
        ("fd_close", R), opened(R, "list"), opened(W, "old"), ("fd_renumber", R, W), ("fd_renumber", W, R)
    ) == [
        0,
        NOENT,
        0,
        0,
        BADF,
    ]


def test_one_event_changes_only_so_much() -> None:
    """What waits for the worker is bounded: then there is no space, and the VM lives."""
    big = Snapshot("/data", True, 64 << 20, 10, (Entry(b"f", b""),))
    script = path_script(opened(3, "f", 0, WRITE))
    place = script.text(b"x" * 32768)
    vector = script.text(io(place, 32768))
    script.calls.append(("loop", 700, ("fd_pwrite", 4, vector, 1, 0, 64)))
    script.calls.append(("fd_pwrite", 4, vector, 1, 0, OUT_WORD))
    ran, _ = said(script, folders=encode([big]))

    assert ran.errors[-1] == NOSPC
    assert 500 <= len(ran.changes) <= 512


@pytest.mark.parametrize("cut", [1, 10, 30, 50])
def test_a_malformed_snapshot_is_no_start(cut: int) -> None:
    """It is ours, so this is a bug; it must not be half a folder."""
    with pytest.raises(Exception, match="refused configuration entry 18"):
        Driver(guest({"request_headers": []}), folders=encode((RULES, DATA))[:-cut], open_files=4).close()


def test_files_during_initialisation_and_never_inside_the_allocator() -> None:
    """Go and Rust open files early; an allocator may only write to what is open."""
    calls = [opened(W, "new", CREATE, WRITE)]
    with Driver(guest({"_initialize": calls}), folders=encode((RULES, DATA)), open_files=4) as vm:
        assert [request.parts[0] for request in vm.requests()] == [b"new"]
    module = guest({"memory_allocate": calls, "request_headers": [("proxy_get_property", "plugin_name", 64, 68)]})
    with Driver(module, folders=encode((RULES, DATA)), open_files=4) as vm, pytest.raises(GuestFailure):
        vm.request()


def test_a_long_file_that_is_cut_stays_within_its_room() -> None:
    """What the configuration brought is copied when it is changed first, and is longer than what is left of it."""
    folder = Snapshot("/data", True, 1 << 16, 10, (Entry(b"old", b"X" * 4000),))
    script = path_script(opened(R, "a", CREATE, READ | WRITE))
    script.write(4, b"a" * 200)
    script.text(b"b")
    script.calls.append(opened(R, "b", CREATE, READ | WRITE))
    script.write(5, b"b" * 200)
    script.text(b"old")
    # The room of the first file is free for what is left of the old one; the second one lies behind it.
    script.calls += [("fd_close", 4), ("path_unlink_file", R, b"a"), opened(R, b"old", TRUNCATE, WRITE)]
    script.calls.append(("fd_seek", 5, 0, 0, OUT_WORD))
    script.read(5, 200)

    ran, lines = said(script, folders=encode((folder,)))

    assert not any(ran.errors), ran.errors
    assert lines[-1] == b"b" * 200


def test_what_is_read_over_the_vectors_ends_with_them() -> None:
    """The file's bytes make the second vector an empty one; there is no third."""
    folder = Snapshot("/data", False, 1 << 16, 10, (Entry(b"old", bytes(4000)),))
    script = path_script(opened(R, "old"))
    place = script.text(b"k" * 100)
    second = script.text(b"") + 8
    # The first vector points to the second one. What lies behind them looks like a third one.
    vectors = script.text(io(second, 8) + io(BUFFER, 100) + io(place, 100))
    assert vectors == second - 8
    script.calls += [("fd_read", 4, vectors, 2, OUT_WORD), ("proxy_log", 2, place, 100)]

    ran, lines = said(script, folders=encode((folder,)))

    assert not any(ran.errors), ran.errors
    assert lines == [b"k" * 100]
