"""Changes in folders on their way to the supervisor: joined, in order, not too fast, none lost."""

from __future__ import annotations

import pytest

from sandboxd.errors import WorkerError
from sandboxd.limits import MS_NS
from sandboxd.protos import control_pb2 as control
from sandboxd.vm.folder_blob import MAX_CHANGE_BYTES, ChangeKind
from sandboxd.vm.messages import Request, RequestKind
from sandboxd.worker.file_journal import DELAY_MS, FRAME_BYTES, FRAMES_PER_SECOND, FileJournal


class Clock:
    """Moves when it is told to, and when somebody sleeps."""

    def __init__(self) -> None:
        self.ns = 0

    def __call__(self) -> int:
        return self.ns

    def sleep(self, seconds: float) -> None:
        self.ns += round(seconds * 1e9)


class Rig:
    """A journal and what it has sent."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.frames: list[list[control.FileChange]] = []
        self.journal = FileJournal(self.frames.append, self.clock, self.clock.sleep)

    def add(self, kind: int, path: bytes, other: bytes = b"", number: int = 0, folder: int = 0) -> None:
        """One change."""
        parts = (path, other, number.to_bytes(8, "little"), b"", b"")
        self.journal.add(Request(RequestKind.FILE_CHANGE, folder, kind, parts))

    @property
    def sent(self) -> list[tuple[int, int, bytes, bytes, int]]:
        """All changes, in order."""
        return [(c.folder, c.kind, c.path, c.other, c.size) for frame in self.frames for c in frame]


def test_writes_that_follow_each_other_are_one() -> None:
    """A log's lines; not those of another file, folder or place, nor across another change."""
    rig = Rig()
    rig.add(ChangeKind.WRITE, b"a", b"one ", 0)
    rig.add(ChangeKind.WRITE, b"a", b"two ", 4)
    rig.add(ChangeKind.WRITE, b"a", b"x", 100)
    rig.add(ChangeKind.WRITE, b"b", b"y", 101)
    rig.add(ChangeKind.WRITE, b"b", b"z", 102, folder=1)
    rig.add(ChangeKind.RENAME, b"b", b"c")
    rig.add(ChangeKind.WRITE, b"c", b"!", 1)
    rig.journal.flush()

    assert rig.sent == [
        (0, 2, b"a", b"one two ", 0),
        (0, 2, b"a", b"x", 100),
        (0, 2, b"b", b"y", 101),
        (1, 2, b"b", b"z", 102),
        (0, 7, b"b", b"c", 0),
        (0, 2, b"c", b"!", 1),
    ]


def test_a_change_waits_a_little_for_others() -> None:
    """And no longer; an empty journal wants nothing."""
    rig = Rig()
    assert rig.journal.wait_ms() is None
    rig.add(ChangeKind.CREATE, b"a")
    rig.clock.ns += 5 * MS_NS
    rig.add(ChangeKind.CREATE, b"b")
    rig.journal.flush_if_due()
    assert rig.frames == []
    assert rig.journal.wait_ms() == DELAY_MS - 5
    rig.clock.ns += 15 * MS_NS
    rig.journal.flush_if_due()
    assert len(rig.sent) == 2
    assert rig.journal.wait_ms() is None


def test_frames_are_small_and_not_too_many() -> None:
    """However much is written; nothing is lost on the way."""
    rig = Rig()
    for number in range(1000):
        rig.add(ChangeKind.WRITE, b"a", b"x" * 10_000, 10_000 * number)
    rig.journal.flush()

    for frame in rig.frames:
        assert control.FromWorker(file_changes=control.FileChanges(changes=frame)).ByteSize() < FRAME_BYTES + 2048
        assert all(len(change.other) <= MAX_CHANGE_BYTES for change in frame)
    at = 0
    for _, _, _, other, offset in rig.sent:
        assert offset == at
        at += len(other)
    assert at == 10_000_000
    assert rig.clock.ns >= (len(rig.frames) - 1) * 1_000_000_000 // FRAMES_PER_SECOND


@pytest.mark.parametrize(
    "parts", [(b"a", b"", b"1234567", b"", b""), (b"a", b"x" * (MAX_CHANGE_BYTES + 1), bytes(8), b"", b"")]
)
def test_what_hostcore_never_says_is_an_error(parts: tuple[bytes, ...]) -> None:
    """It shares its store with hostile code."""
    with pytest.raises(WorkerError):
        Rig().journal.add(Request(RequestKind.FILE_CHANGE, 0, ChangeKind.WRITE, parts))
    with pytest.raises(WorkerError):
        Rig().add(8, b"a")
