"""Modules to compile, and what stands in for their compiler."""

from __future__ import annotations

import itertools
import os
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from sandboxd.compiler import process
from sandboxd.compiler.client import CompileSettings
from sandboxd.limits import MIB
from tests.support.modules import EVERYTHING, guest

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = CompileSettings(EVERYTHING, 16 * MIB)
MODULE = guest('(func (export "proxy_on_log") (param i32))')

_numbers = itertools.count()


def fresh_module() -> bytes:
    """Return a module that no test has compiled before."""
    return guest(f'(func (export "number_{next(_numbers)}"))')


def no_compiler(*_: Any) -> bytes:
    """Stand in for the compiler where the cache must answer."""
    raise AssertionError("the compiler was asked")


def compiler_as(monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """Have every compiler do ``body`` in place of its job, inside its real jail; ``job`` is the job's bytes."""
    script = (
        "import os, resource, socket, sys, threading\n"
        "from sandboxd.compiler import __main__ as m\n"
        "from sandboxd.errors import ModuleRejected\n"
        f"def act(job):\n{textwrap.indent(textwrap.dedent(body), '    ')}\n"
        "m.compile_bundle, m.decode = act, lambda data: data\n"
        "status = m.main(sys.argv[1:]); sys.stderr.flush(); os._exit(status)\n"
    )

    def start(_module: str, *arguments: str) -> tuple[list[str], dict[str, str]]:
        environment = {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
        return [sys.executable, "-c", script, *arguments], environment

    monkeypatch.setattr(process, "python_module", start)
