"""The package and all it needs as wheels for the image's Python: the machine itself needs no network."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
IMAGE_PYTHON = "3.11"
"""Of Debian bookworm."""

_PLATFORMS = ("manylinux2014_x86_64", "manylinux_2_17_x86_64", "manylinux_2_28_x86_64", "any")
_SOURCES = ("pyproject.toml", "setup.py", "README.md", "MANIFEST.in")


def dependencies() -> list[str]:
    """Return the package's run-time requirements."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return list(project["dependencies"])


def download(target: Path) -> None:
    """Fetch the requirements' wheels. Raises CalledProcessError."""
    tags = [f"--platform={name}" for name in _PLATFORMS] + [f"--abi={name}" for name in ("cp311", "abi3", "none")]
    _pip("download", "--only-binary=:all:", f"--python-version={IMAGE_PYTHON}", "--implementation=cp", *tags,
         "--dest", str(target), *dependencies())  # fmt: skip


def build_own(target: Path) -> Path:
    """
    Build the package's own wheel from a copy of its sources, so that nothing is left in them.

    Raises:
        CalledProcessError: pip failed; its words are on stderr.
    """
    with tempfile.TemporaryDirectory(prefix="sandboxd-wheel-") as directory:
        copy = Path(directory)
        for name in _SOURCES:
            if (ROOT / name).exists():
                shutil.copy2(ROOT / name, copy / name)
        shutil.copytree(ROOT / "sandboxd", copy / "sandboxd", ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("policies", "proto"):  # a build may take package data from there
            shutil.copytree(ROOT / name, copy / name)
        _pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(target), str(copy))
    (wheel,) = target.glob("sandboxd-*.whl")
    return wheel


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    subprocess.run(command, check=True, timeout=600)
