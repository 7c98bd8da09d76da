"""The crash ledger: pauses, quarantine, what is kept, and what survives the daemon."""

from __future__ import annotations

import asyncio
import json
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.policy.model import ModuleRef, PluginLimits, PluginPolicy, RestartPolicy, VmPolicy
from sandboxd.supervisor import budgets, exits, ledger_file
from sandboxd.supervisor.backoff import JITTER, delay_s
from sandboxd.supervisor.exits import ExitCause
from sandboxd.supervisor.ledger import KEPT_CRASHES, MAX_SUBJECTS, Crash, Ledger, Subject, quarantine_text

POLICY = RestartPolicy(backoff_ms=1000, max_crashes=3, window_ms=60_000)
ONE = Subject("acme", "gate", "1" * 64)
OTHER_MODULE = Subject("acme", "gate", "2" * 64)
NEIGHBOUR = Subject("acme", "door", "1" * 64)


class Clock:
    """Wall clock of a test."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class Book:
    """A ledger with a clock of its own and no jitter."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.ledger = Ledger(self.clock, chance=lambda: 0.5)

    def crash(self, subject: Subject = ONE, cause: str = "trap", policy: RestartPolicy = POLICY) -> float | None:
        """Note a crash; return the pause, None for quarantine."""
        ruling = self.ledger.crashed(subject, policy, Crash(self.clock.now, cause, "boom"))
        return None if ruling.quarantine else ruling.delay_s


@pytest.fixture
def book() -> Book:
    """Return an empty ledger."""
    return Book()


def test_at_once_then_ever_later_then_never(book: Book) -> None:
    """The rule, crash by crash."""
    assert [book.crash() for _ in range(6)] == [0.0, 1.0, 2.0, None, None, None]

    found = book.ledger.quarantine(ONE)
    assert found is not None
    assert found.since_s == book.clock.now
    assert found.reason == "4 crashes within 60 s (failure.restart.max_crashes is 3), the last: trap: boom"
    text = quarantine_text(ONE, found)
    assert text.startswith("in quarantine since 1970-01-12T13:46:40Z: 4 crashes")
    assert text.endswith("`sandboxd restart acme/gate` lifts it")


def test_the_window_slides(book: Book) -> None:
    """Crashes that are older than the window count no more."""
    for _ in range(20):
        assert book.crash() == 0.0
        book.clock.now += 61
    book.crash()
    book.clock.now += 30
    assert book.crash() == 1.0
    book.clock.now += 31
    assert book.crash() == 1.0  # the first one has left the window


def test_a_clock_that_is_set_back_does_not_condemn(book: Book) -> None:
    """Crashes of the future do not count."""
    book.crash()
    book.crash()
    book.clock.now -= 3600
    assert book.crash() == 0.0


def test_no_crash_allowed(book: Book) -> None:
    """max_crashes 0: the first one is the last."""
    assert book.crash(policy=RestartPolicy(1000, 0, 60_000)) is None


def test_others_are_not_touched(book: Book) -> None:
    """Another plugin, and another module in the same plugin, have sheets of their own."""
    for _ in range(4):
        book.crash()

    assert book.ledger.quarantine(ONE)
    assert book.ledger.quarantine(OTHER_MODULE) is None
    assert book.crash(OTHER_MODULE) == 0.0
    assert book.crash(NEIGHBOUR) == 0.0


@pytest.mark.parametrize(("plugin", "lifted"), [("gate", [ONE]), ("", [ONE]), ("door", [])])
def test_lifting_begins_anew_and_forgets_nothing(book: Book, plugin: str, lifted: list[Subject]) -> None:
    """The counters stay, the window does not."""
    for _ in range(4):
        book.crash()
    book.crash(NEIGHBOUR)

    assert book.ledger.lift("acme", plugin) == lifted

    entry = book.ledger.get(ONE)
    assert entry is not None
    assert (entry.total, len(entry.crashes)) == (4, 4)
    assert (book.ledger.quarantine(ONE) is None) == bool(lifted)
    if lifted:
        assert book.crash() == 0.0


def test_each_cause_is_counted(book: Book) -> None:
    """And so many crashes are kept, the last ones."""
    lenient = RestartPolicy(0, 1000, 60_000)
    for number in range(50):
        book.ledger.crashed(ONE, lenient, Crash(book.clock.now, "cpu_limit" if number % 5 else "trap", str(number)))
    entry = book.ledger.get(ONE)

    assert entry is not None
    assert entry.counts == {"trap": 10, "cpu_limit": 40}
    assert [crash.message for crash in entry.crashes] == [str(number) for number in range(50 - KEPT_CRASHES, 50)]


def test_the_number_of_subjects_is_bounded(book: Book) -> None:
    """Quarantines are forgotten last."""
    for _ in range(4):
        book.crash()
    for number in range(MAX_SUBJECTS + 50):
        book.clock.now += 1
        book.crash(Subject("t", "p", f"{number:064}"))

    assert len(list(book.ledger.find())) == MAX_SUBJECTS
    assert book.ledger.quarantine(ONE)
    assert book.ledger.get(Subject("t", "p", f"{0:064}")) is None


@given(st.integers(1, 2000), st.floats(0, 3600), st.floats(0.001, 86400), st.floats(0, 1))
def test_pauses_are_bounded(failures: int, first_s: float, longest_s: float, chance: float) -> None:
    """Never negative, never longer than the window or the first pause, but for the jitter."""
    pause = delay_s(failures, first_s, longest_s, chance)

    assert 0 <= pause <= max(first_s, longest_s) * (1 + JITTER / 2) + 1e-9
    assert failures > 1 or pause == 0


def test_jitter_spreads() -> None:
    """Half of a pause is chance."""
    assert [delay_s(2, 1.0, 60.0, chance) for chance in (0.0, 0.5, 1.0)] == [0.75, 1.0, 1.25]


# --- on disk --------------------------------------------------------------------------------------


def filled() -> Ledger:
    """Return a ledger with a quarantine and all kinds of crashes."""
    book = Book()
    for _ in range(4):
        book.crash()
    crash = Crash(5.0, "worker_signal", "died\\n", worker=True, while_starting=True, callback="proxy_on_log")
    book.ledger.crashed(NEIGHBOUR, POLICY, crash)
    book.ledger.crashed(NEIGHBOUR, POLICY, Crash(6.0, "trap", "x", generation=3, backtrace=("f (function 1)", "g")))
    return book.ledger


def test_a_round_trip_keeps_everything() -> None:
    """Crashes, counters, windows, quarantine."""
    ledger = filled()

    assert ledger_file.decode(ledger_file.encode(ledger.find())) == list(ledger.find())


def test_quarantine_outlives_the_daemon(tmp_path: Path) -> None:
    """Read back at start; the file is the daemon's alone."""
    path = tmp_path / ledger_file.FILE_NAME

    async def first() -> None:
        ledger = Ledger()
        keeper = ledger_file.LedgerFile(path, ledger)
        for _ in range(4):
            ledger.crashed(ONE, POLICY, Crash(ledger.now_s(), "trap", "boom"))
        await keeper.close()

    async def second() -> Ledger:
        ledger = Ledger()
        ledger_file.LedgerFile(path, ledger)
        return ledger

    asyncio.run(first())
    found = asyncio.run(second())

    assert found.quarantine(ONE)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


async def test_changes_are_gathered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash loop is no write loop, and the last change is written without any close."""
    monkeypatch.setattr(ledger_file, "SAVE_DELAY_S", 0.05)
    written: list[bytes] = []
    save = ledger_file.save

    def counting(path: Path, data: bytes) -> None:
        written.append(data)
        save(path, data)

    monkeypatch.setattr(ledger_file, "save", counting)
    ledger = Ledger()
    keeper = ledger_file.LedgerFile(tmp_path / "l.json", ledger)
    for _ in range(100):
        ledger.crashed(ONE, POLICY, Crash(ledger.now_s(), "trap", "boom"))
    await asyncio.sleep(0.3)

    assert len(written) == 1
    assert json.loads((tmp_path / "l.json").read_bytes())["entries"][0]["counts"] == {"trap": 100}
    await keeper.close()
    assert len(written) == 1


def test_the_file_is_bounded() -> None:
    """Crashes go first, then entries; a quarantine last."""
    book = Book()
    for number in range(300):
        book.clock.now += 1
        subject = Subject("t", "p", f"{number:064}")
        for _ in range(KEPT_CRASHES):
            crash = Crash(book.clock.now, "trap", "m" * 1000, backtrace=("f" * 200,) * 20)
            book.ledger.crashed(subject, RestartPolicy(0, 1000, 1000), crash)
    for _ in range(4):
        book.crash()

    data = ledger_file.encode(book.ledger.find(), 100_000)

    assert len(data) <= 100_000
    assert ONE in [entry.subject for entry in ledger_file.decode(data) if entry.quarantine]
    assert len(ledger_file.encode(book.ledger.find(), 2000)) <= 2000


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b'{"version": 2, "entries": []}',
        b'{"version": 1}',
        b'{"version": 1, "entries": [1]}',
        b'{"version": 1, "entries": [{"tenant": 1}]}',
        b"[" * 100_000,
        b"\xff",
    ],
)
def test_a_file_that_makes_no_sense_is_set_aside(tmp_path: Path, data: bytes) -> None:
    """The daemon starts all the same; the file can be looked at."""
    path = tmp_path / "crashes.json"
    path.write_bytes(data)
    ledger = Ledger()

    ledger_file.load(path, ledger)

    assert list(ledger.find()) == []
    assert (tmp_path / "crashes.json.bad").read_bytes() == data
    assert not path.exists()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


@given(json_values, st.sampled_from(["tenant", "counts", "quarantine", "window_s", "changed_s", "crashes"]))
def test_a_changed_field_is_an_error_or_understood(value: Any, key: str) -> None:
    """Nothing but ValueError, whatever somebody wrote into the file."""
    body = json.loads(ledger_file.encode(filled().find()))
    body["entries"][0][key] = value
    try:
        entries = ledger_file.decode(json.dumps(body).encode())
    except ValueError:
        return
    ledger_file.encode(entries)


# --- words ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("return_code", "cause"),
    [
        (0, ExitCause.WORKER_EXIT),
        (70, ExitCause.WORKER_EXIT),
        (-9, ExitCause.WORKER_SIGNAL),
        (-31, ExitCause.WORKER_SECCOMP),
    ],
)
def test_an_exit_has_a_cause(return_code: int, cause: ExitCause) -> None:
    """From the status alone, when it was none of our doing."""
    assert exits.cause(return_code) is cause


@pytest.mark.parametrize(
    ("cause", "message", "starting", "text"),
    [
        ("cpu_limit", "", False, "7ms of CPU in one call: limits.cpu_per_call"),
        ("cpu_limit", "", True, "2s of CPU for the whole start: limits.start_time"),
        ("memory_limit", "unreachable", False, "the limit is 32MiB: vm.memory"),
        ("memory_limit", "does not fit in the host's heap", False, "limits.body_buffer and limits.open_streams"),
        ("host_call_limit", "", False, "the limit is 100000: limits.host_calls_per_event"),
        ("internal", "minimum size of 7 elements exceeds table limits", True, "1000000: limits.table_elements"),
        ("trap", "call stack exhausted", False, "512KiB, which no policy changes"),
        ("trap", "unreachable", False, ""),
        ("rubbish", "", False, ""),
    ],
)
def test_a_limit_is_named_with_value_and_key(cause: str, message: str, starting: bool, text: str) -> None:
    """So that an operator knows what to raise."""
    limits = PluginLimits(cpu_per_call_ns=7_000_000, start_time_ns=2_000_000_000)
    policy = PluginPolicy("p", ModuleRef(Path("m"), "0" * 64), vm=VmPolicy(memory_bytes=32 << 20), limits=limits)

    found = budgets.hint(cause, message, policy, while_starting=starting)

    assert text in found
    assert bool(text) == bool(found)
