"""Where a plugin's folder really is. Links have to be followed for that, on a disk that may hang."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from pathlib import Path

from sandboxd.errors import FolderError

_lock = threading.Lock()
_lookups: dict[Path, Future[Path]] = {}
"""Those under way. One for each path, however many ask: a disk that hangs costs one thread."""
_late: set[Path] = set()
"""Those of them that somebody has waited for in vain."""


def lookup(path: Path, timeout_s: float) -> Path:
    """
    Return a folder's path without links in it; one that is not there is for others to complain about. Blocking.

    Raises:
        FolderError: its disk does not say within ``timeout_s``; if it still owes an answer of before, at once.
    """
    with _lock:
        if path in _late:
            raise FolderError(f"folder {path} cannot be read: its disk hangs, as it did before")
        found = _lookups.get(path)
        if found is None:
            found = _lookups[path] = Future()
            try:
                threading.Thread(target=_look, args=(path, found), name="folder-lookup", daemon=True).start()
            except RuntimeError as error:
                del _lookups[path]
                raise FolderError(f"folder {path} gets no thread: {error}") from None
    try:
        return found.result(timeout_s)
    except TimeoutError:
        with _lock:
            if _lookups.get(path) is found:
                _late.add(path)
        raise FolderError(f"folder {path} was not read within {timeout_s:.3g} s: its disk hangs") from None
    except (OSError, RuntimeError) as error:  # the latter: links in a circle
        raise FolderError(f"folder {path} cannot be read: {error}") from None


def _look(path: Path, found: Future[Path]) -> None:
    result: Path | Exception
    try:
        result = path.resolve()
    except Exception as error:  # whatever it is, somebody waits
        result = error
    with _lock:
        del _lookups[path]
        _late.discard(path)
    if isinstance(result, Path):
        found.set_result(result)
    else:
        found.set_exception(result)
