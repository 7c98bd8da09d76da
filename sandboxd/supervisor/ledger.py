"""
The crash ledger: which plugin's module crashed when and why, when it may start again, and who is in quarantine.

One rule for all that ends a plugin's VM, whether the VM failed or its worker died:

* the first crash in the policy's window is followed by a start at once, each further one by an ever longer pause with
  jitter (``failure.restart.backoff``);
* more than ``max_crashes`` within the ``window``: the plugin is in quarantine, and its failure policy answers without
  anything being started, until the operator lifts it or another module (by digest) takes the plugin's place.

A worker that dies counts against every plugin that ran in it: nobody can tell whose doing it was.

Pure but for the clock and chance that the caller may replace; `sandboxd.supervisor.ledger_file` keeps it on disk.
Texts that come from a worker are made printable and are bounded before they get here.
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from sandboxd import limits
from sandboxd.policy.model import RestartPolicy
from sandboxd.supervisor.backoff import delay_s

KEPT_CRASHES: Final = 20
"""The last crashes kept of one subject."""
MAX_SUBJECTS: Final = 2000
"""Kept in all; the least recently changed without quarantine goes first."""
MAX_CAUSES: Final = 64
"""Different causes of one subject. They are names of ours; a guard against a mistake."""


@dataclass(frozen=True, slots=True, order=True)
class Subject:
    """Whose crashes are counted together: one module in one plugin."""

    tenant: str
    plugin: str
    module_sha256: str

    @property
    def name(self) -> str:
        """As operators write it."""
        return f"{self.tenant}/{self.plugin}"


@dataclass(frozen=True, slots=True)
class Crash:
    """One end of a VM or worker. All texts are printable and bounded."""

    time_s: float
    """Wall clock."""
    cause: str
    """A VM's ``FailureCause`` or a worker's `sandboxd.supervisor.exits.ExitCause`, in lower case."""
    message: str
    worker: bool = False
    """The whole worker died."""
    while_starting: bool = False
    callback: str = ""
    generation: int = 0
    backtrace: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Quarantine:
    """Why a plugin is not started any more."""

    since_s: float
    """Wall clock."""
    reason: str


@dataclass(frozen=True, slots=True)
class Ruling:
    """What follows from a crash."""

    delay_s: float
    """Before the next start."""
    quarantine: Quarantine | None = None
    """If not None, there is no next start."""


@dataclass(slots=True)
class Entry:
    """What is known of one subject."""

    subject: Subject
    crashes: deque[Crash] = field(default_factory=lambda: deque(maxlen=KEPT_CRASHES))
    """The last ones, oldest first."""
    counts: dict[str, int] = field(default_factory=dict)
    """All crashes ever, by cause."""
    window: deque[float] = field(default_factory=lambda: deque(maxlen=limits.MAX_RESTART_MAX_CRASHES + 1))
    """Times of the crashes that the rule still counts, oldest first."""
    quarantine: Quarantine | None = None
    changed_s: float = 0.0

    @property
    def total(self) -> int:
        """All crashes ever."""
        return sum(self.counts.values())


@dataclass(frozen=True, slots=True)
class Sheet:
    """What `Ledger.lift` takes from a subject."""

    subject: Subject
    quarantine: Quarantine | None
    window: tuple[float, ...]


class Ledger:
    """
    Args:
        clock: wall clock in seconds: windows and quarantines outlive the daemon.
        chance: 0 to 1.
        on_change: called after each change.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.time,
        chance: Callable[[], float] = random.random,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._clock = clock
        self._chance = chance
        self.on_change = on_change
        self._entries: dict[Subject, Entry] = {}

    # --- what happens ---

    def now_s(self) -> float:
        """Return the time that crashes carry."""
        return self._clock()

    def crashed(self, subject: Subject, policy: RestartPolicy, crash: Crash) -> Ruling:
        """Take note of a crash and return what follows from it."""
        entry = self._entry(subject)
        entry.crashes.append(crash)
        cause = crash.cause if crash.cause in entry.counts or len(entry.counts) < MAX_CAUSES else "other"
        entry.counts[cause] = entry.counts.get(cause, 0) + 1
        ruling = self._rule(entry, policy, crash)
        entry.quarantine = ruling.quarantine
        self._changed(entry)
        return ruling

    def _rule(self, entry: Entry, policy: RestartPolicy, crash: Crash) -> Ruling:
        if entry.quarantine is not None:
            return Ruling(0.0, entry.quarantine)
        window_s = policy.window_ms / 1000
        # Times after this one are those of a clock that was set back since.
        recent = [time_s for time_s in entry.window if crash.time_s - window_s <= time_s <= crash.time_s]
        window = entry.window
        window.clear()
        window.extend((*recent, crash.time_s))
        if len(window) > policy.max_crashes:
            return Ruling(0.0, Quarantine(crash.time_s, _reason(len(window), policy, crash)))
        return Ruling(delay_s(len(window), policy.backoff_ms / 1000, window_s, self._chance()))

    def lift(self, tenant: str, plugin: str = "") -> list[Subject]:
        """
        Give a plugin, or with an empty name all of a tenant, a clean sheet: end the quarantine and begin to count anew.

        What was seen stays. Returns those that were in quarantine.
        """
        lifted = []
        for entry in self.find(tenant, plugin):
            if entry.quarantine is not None:
                lifted.append(entry.subject)
            if entry.quarantine is not None or entry.window:
                entry.quarantine = None
                entry.window.clear()
                self._changed(entry)
        return lifted

    def sheets(self, tenant: str, plugin: str) -> list[Sheet]:
        """Return what `lift` would take from the subjects of a plugin."""
        return [Sheet(found.subject, found.quarantine, tuple(found.window)) for found in self.find(tenant, plugin)]

    def put_back(self, sheets: Iterable[Sheet]) -> None:
        """Undo `lift`; what has happened since counts as well."""
        for sheet in sheets:
            entry = self._entries.get(sheet.subject)
            if entry is None:  # forgotten for want of room
                continue
            entry.quarantine = entry.quarantine or sheet.quarantine
            since = tuple(entry.window)
            entry.window.clear()
            entry.window.extend((*sheet.window, *since))
            self._changed(entry)

    # --- what is known ---

    def quarantine(self, subject: Subject) -> Quarantine | None:
        """Return the quarantine that a subject is in."""
        entry = self._entries.get(subject)
        return entry.quarantine if entry is not None else None

    def get(self, subject: Subject) -> Entry | None:
        """Return what is known of a subject; None if it never crashed."""
        return self._entries.get(subject)

    def find(self, tenant: str = "", plugin: str = "") -> Iterator[Entry]:
        """Yield all entries of a tenant and plugin, whatever the module; empty names mean all."""
        for entry in list(self._entries.values()):
            if tenant in ("", entry.subject.tenant) and plugin in ("", entry.subject.plugin):
                yield entry

    def restore(self, entry: Entry) -> None:
        """Take an entry over from an earlier daemon."""
        self._entries[entry.subject] = entry

    # --- bounds ---

    def _entry(self, subject: Subject) -> Entry:
        entry = self._entries.get(subject)
        if entry is None:
            if len(self._entries) >= MAX_SUBJECTS:
                self._forget_one()
            entry = self._entries[subject] = Entry(subject)
        return entry

    def _forget_one(self) -> None:
        free = [entry for entry in self._entries.values() if entry.quarantine is None] or list(self._entries.values())
        del self._entries[min(free, key=lambda entry: entry.changed_s).subject]

    def _changed(self, entry: Entry) -> None:
        entry.changed_s = self._clock()
        self.on_change()


def _reason(crashes: int, policy: RestartPolicy, crash: Crash) -> str:
    seconds = policy.window_ms / 1000
    cause = crash.cause.replace("_", " ")
    return (
        f"{crashes} crashes within {seconds:g} s (failure.restart.max_crashes is {policy.max_crashes}),"
        f" the last: {cause}: {crash.message}"
    )[:1024]


def quarantine_text(subject: Subject, quarantine: Quarantine) -> str:
    """Return a quarantine in words, with the way out of it."""
    since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(quarantine.since_s))
    return f"in quarantine since {since}: {quarantine.reason}; `sandboxd restart {subject.name}` lifts it"
