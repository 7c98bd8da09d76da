"""
The crash ledger on disk: ``crashes.json`` in the state directory, so that a quarantine outlives the daemon.

Bounded in size, written beside and renamed, so that a crash of the daemon or the machine leaves the old or the new
one. What does not fit is left out, the oldest crashes first; a quarantine is never left out. The file is ours alone,
and is checked all the same: one that cannot be understood is set aside, never trusted and never fatal.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from sandboxd.log import one_line
from sandboxd.supervisor.ledger import KEPT_CRASHES, MAX_CAUSES, MAX_SUBJECTS, Crash, Entry, Ledger, Quarantine, Subject

_log = logging.getLogger(__name__)

FILE_NAME: Final = "crashes.json"
MAX_BYTES: Final = 4 << 20
VERSION: Final = 1
_MAX_TEXT: Final = 1024
_MAX_FRAMES: Final = 20

SAVE_DELAY_S: Final = 1.0
"""Changes are gathered for so long: a crash loop must not become a write loop."""

Json = dict[str, Any]


def crash_json(crash: Crash) -> Json:
    """Return a crash as plain data."""
    return {
        "time_s": round(crash.time_s, 3),
        "cause": crash.cause,
        "message": crash.message,
        "worker": crash.worker,
        "while_starting": crash.while_starting,
        "callback": crash.callback,
        "generation": crash.generation,
        "backtrace": list(crash.backtrace),
    }


def entry_json(entry: Entry, max_crashes: int = KEPT_CRASHES) -> Json:
    """Return an entry as plain data, with the last so many of its crashes."""
    quarantine = entry.quarantine
    return {
        "tenant": entry.subject.tenant,
        "plugin": entry.subject.plugin,
        "module_sha256": entry.subject.module_sha256,
        "counts": dict(entry.counts),
        "quarantine": {"since_s": round(quarantine.since_s, 3), "reason": quarantine.reason} if quarantine else None,
        "window_s": [round(time_s, 3) for time_s in entry.window],
        "changed_s": round(entry.changed_s, 3),
        "crashes": [crash_json(crash) for crash in list(entry.crashes)[-max_crashes:] if max_crashes],
    }


def encode(entries: Iterable[Entry], max_bytes: int = MAX_BYTES) -> bytes:
    """Return the file's content: as many crashes of each entry as fit."""
    wanted = list(entries)
    kept = KEPT_CRASHES
    while True:
        body = {"version": VERSION, "entries": [entry_json(entry, kept) for entry in wanted]}
        data = json.dumps(body, separators=(",", ":")).encode()
        if len(data) <= max_bytes:
            return data
        if kept:
            kept //= 2
        else:
            wanted = _without_the_oldest(wanted)


def _without_the_oldest(entries: list[Entry]) -> list[Entry]:
    """Return the half of the entries that matters more."""
    ranked = sorted(entries, key=lambda entry: (entry.quarantine is not None, entry.changed_s))
    return ranked[(len(ranked) + 1) // 2 :]


def decode(data: bytes) -> list[Entry]:
    """
    Return the entries of a file.

    Raises:
        ValueError: it is not one of ours.
    """
    if len(data) > MAX_BYTES:
        raise ValueError("is too long")
    try:
        body = json.loads(data)
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    if not isinstance(body, dict) or body.get("version") != VERSION:
        raise ValueError(f"is not a crash ledger of version {VERSION}")
    try:
        return [_entry(item) for item in body["entries"][:MAX_SUBJECTS]]
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"has an entry that makes no sense: {error!r}") from None


def _entry(item: Json) -> Entry:
    entry = Entry(Subject(_text(item["tenant"]), _text(item["plugin"]), _text(item["module_sha256"])))
    entry.counts.update({_text(name): _count(value) for name, value in list(item["counts"].items())[:MAX_CAUSES]})
    entry.window.extend(_time(value) for value in item["window_s"])
    entry.crashes.extend(_crash(crash) for crash in item["crashes"])
    entry.changed_s = _time(item["changed_s"])
    if item["quarantine"] is not None:
        entry.quarantine = Quarantine(_time(item["quarantine"]["since_s"]), _text(item["quarantine"]["reason"]))
    return entry


def _crash(item: Json) -> Crash:
    return Crash(
        time_s=_time(item["time_s"]),
        cause=_text(item["cause"]),
        message=_text(item["message"]),
        worker=bool(item["worker"]),
        while_starting=bool(item["while_starting"]),
        callback=_text(item["callback"]),
        generation=_count(item["generation"]),
        backtrace=tuple(_text(frame) for frame in item["backtrace"][:_MAX_FRAMES]),
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"not a text: {value!r}"[:100])
    return one_line(value, _MAX_TEXT)


def _count(value: object) -> int:
    if not isinstance(value, int) or value < 0:
        raise TypeError(f"not a count: {value!r}"[:100])
    return value


def _time(value: object) -> float:
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError(f"not a time: {value!r}"[:100])
    return float(value)


def load(path: Path, ledger: Ledger) -> None:
    """Fill a ledger from its file; set a file aside that cannot be understood."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        for entry in decode(data):
            ledger.restore(entry)
    except FileNotFoundError:
        return
    except OSError as error:
        _log.error("%s: cannot be read: %s; crashes are counted anew", path, error.strerror)
    except ValueError as error:
        aside = path.with_name(f"{path.name}.bad")
        _log.error("%s: %s; set aside as %s, crashes are counted anew", path, one_line(str(error), 200), aside.name)
        path.replace(aside)


def save(path: Path, data: bytes) -> None:
    """Write the file, whole or not at all. Raises OSError."""
    fresh = path.with_name(f".{path.name}.new")
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


class LedgerFile:
    """
    Keeps a ledger on disk while the daemon runs.

    Args:
        path: of the file; read at once.
        ledger: filled from it, and written whenever it changes.
    """

    def __init__(self, path: Path, ledger: Ledger) -> None:
        self._path = path
        self._ledger = ledger
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._writing: asyncio.Task[None] | None = None
        load(path, ledger)
        ledger.on_change = self._changed

    def _changed(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(SAVE_DELAY_S, self._due)

    def _due(self) -> None:
        self._timer = None
        if self._writing is not None and not self._writing.done():
            self._changed()  # the disk is slow
            return
        self._writing = self._loop.create_task(asyncio.to_thread(self._write, encode(self._ledger.find())))

    def _write(self, data: bytes) -> None:
        try:
            save(self._path, data)
        except OSError as error:
            _log.error("%s: cannot be written: %s; a restart of the daemon forgets crashes", self._path, error.strerror)

    async def close(self) -> None:
        """Write what is not written yet."""
        self._ledger.on_change = lambda: None
        if self._writing is not None:
            await self._writing
        if self._timer is not None:
            self._timer.cancel()
            self._write(encode(self._ledger.find()))
