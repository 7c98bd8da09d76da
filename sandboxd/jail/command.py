"""
How a hostile process of ours is started: command line and environment with nothing inherited.

Pure. For the supervisor (worker) and the compiler's client.
"""

from __future__ import annotations

import sys
from pathlib import Path

import sandboxd


def python_module(module: str, *arguments: str) -> tuple[list[str], dict[str, str]]:
    """
    Return argv and environment that run ``python -m module arguments`` with this interpreter and this
    package.

    The environment holds nothing but the package's place, so no secret of the parent's reaches the child.
    ``-P`` keeps the working directory out of the search path, ``-s`` the user's own packages; ``-B``: the
    child writes no files.
    """
    package_parent = Path(sandboxd.__file__).resolve().parent.parent
    argv = [sys.executable, "-P", "-s", "-B", "-m", module, *arguments]
    return argv, {"PYTHONPATH": str(package_parent), "PYTHONUTF8": "1"}
