"""
Logging of the trusted processes: one line per record on stderr, with nothing in it that could forge a line.

Uses the standard `logging` package; every module asks for ``logging.getLogger(__name__)``. Anybody on the
trusted side may import this module; a worker never logs through it.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from typing import Final, TextIO

GUEST_LEVELS: Final = ("trace", "debug", "info", "warn", "error", "critical")
"""Proxy-Wasm's log levels, by number."""

MAX_LINE_CHARACTERS: Final = 16 * 1024
"""One log line: a traceback fits, a guest's longest message (8 KiB) too."""

_PRIORITY: Final = {
    logging.CRITICAL: 2,
    logging.ERROR: 3,
    logging.WARNING: 4,
    logging.INFO: 6,
    logging.DEBUG: 7,
}
"""syslog priorities, which journald reads from the ``<n>`` in front of a line."""


def one_line(text: str, limit: int) -> str:
    """
    Return text that came from outside as one printable line.

    Control characters, line and paragraph separators, surrogates and bidirectional controls become escapes,
    so that nobody's text can forge a second log line or paint a terminal. ``limit`` counts characters after
    that.
    """
    shown = "".join(c if c == " " or c.isprintable() else _escaped(c) for c in text[: limit + 1])
    return shown if len(shown) <= limit else shown[: max(0, limit - 3)] + "..."


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii") if char != "\n" else "\\n"


class LineFormatter(logging.Formatter):
    """``time level process: text``; with journald a priority instead of time and level."""

    def __init__(self, *, journal: bool) -> None:
        super().__init__(datefmt="%Y-%m-%dT%H:%M:%S")
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line; a traceback's lines are joined by ``\\n`` escapes."""
        text = record.getMessage()
        text = one_line(_with_traceback(self, record, text), MAX_LINE_CHARACTERS)
        if self._journal:
            return f"<{_PRIORITY.get(record.levelno, 6)}>{record.processName}: {text}"
        moment = f"{self.formatTime(record, self.datefmt)}.{int(record.msecs):03d}"
        return f"{moment} {record.levelname.lower():<8} {record.processName}: {text}"


class JsonFormatter(logging.Formatter):
    """One JSON object per line: ``time`` (RFC 3339, UTC), ``level``, ``process``, ``logger``, ``message``."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line; JSON's own escapes keep it one."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        return json.dumps(
            {
                "time": f"{moment}.{int(record.msecs):03d}Z",
                "level": record.levelname.lower(),
                "process": record.processName,
                "logger": record.name,
                "message": _with_traceback(self, record, record.getMessage())[:MAX_LINE_CHARACTERS],
            }
        )


def _with_traceback(formatter: logging.Formatter, record: logging.LogRecord, text: str) -> str:
    if record.exc_info:
        record.exc_text = record.exc_text or formatter.formatException(record.exc_info)
    return f"{text}: {record.exc_text}" if record.exc_text else text


def configure(level: str = "info", form: str = "text", stream: TextIO | None = None) -> None:
    """
    Set up the root logger, once per process tree and before anything is forked.

    Args:
        level: ``debug``, ``info``, ``warning`` or ``error``.
        form: ``text`` or ``json``.
        stream: where the lines go; stderr if None.
    """
    stream = stream or sys.stderr
    handler = logging.StreamHandler(stream)
    journal = stream is sys.stderr and _is_journal()
    handler.setFormatter(JsonFormatter() if form == "json" else LineFormatter(journal=journal))
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())


def _is_journal() -> bool:
    """Return whether stderr is journald's socket (``JOURNAL_STREAM`` holds its device and inode)."""
    try:
        status = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
