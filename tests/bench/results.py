"""The file of figures, ``build/bench.json``: figures with their conditions, and sections that other runs wrote."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any, Final

OUTPUT: Final = Path("build/bench.json")
SECTIONS: Final = ("matrix",)
"""What is kept when the rest is measured anew; each has conditions of its own."""


def machine() -> dict[str, Any]:
    """Describe the machine, and that nothing is pinned to a part of it."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "pinning": "none: generator, Envoy and servers share all cores",
        "machine": platform.machine(),
        "python": platform.python_version(),
        "kernel": platform.release(),
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(path: Path, figures: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(figures, indent=1) + "\n")


def write(path: Path, figures: dict[str, Any]) -> None:
    """Write figures; sections that the file has stay."""
    before = _read(path)
    _write(path, {**figures, **{name: before[name] for name in SECTIONS if name in before}})


def write_section(path: Path, name: str, figures: dict[str, Any]) -> None:
    """Write one section; all else that the file has stays."""
    _write(path, {**_read(path), name: figures})
