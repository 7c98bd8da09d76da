"""
The dynamic module built with AddressSanitizer's checks and a runtime that can live inside Envoy.

gcc alone can do it (``-fsanitize=kernel-address`` with ``-fasan-shadow-offset``); how and why is in
``tests/clients_envoy/checked/runtime.c``.
"""

from __future__ import annotations

import functools
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from tests.support import envoy_module

SOURCES: Final = Path(__file__).resolve().parents[1] / "clients_envoy" / "checked"
SHADOW_OFFSET: Final = "0x6dc000000000"
"""The shadow of the addresses from 0x7e0000000000 on then begins at 0x7d8000000000, where nobody puts anything."""
PLAIN: Final = ("-std=c11", "-D_GNU_SOURCE", "-O1", "-g", "-fPIC", "-fvisibility=hidden", "-fno-omit-frame-pointer",
                "-Wall", "-Wextra", "-Werror", f"-DSHADOW_OFFSET={SHADOW_OFFSET}", "-I", str(SOURCES))  # fmt: skip
CHECKS: Final = (
    "-include", str(SOURCES / "checked.h"), "-U_FORTIFY_SOURCE",
    "-fsanitize=kernel-address", f"-fasan-shadow-offset={SHADOW_OFFSET}", "-fsanitize-address-use-after-scope",
    "--param", "asan-stack=1", "--param", "asan-globals=1", "--param", "asan-instrumentation-with-call-threshold=0",
)  # fmt: skip
TIMEOUT_S: Final = 120


@functools.cache
def compiler() -> str | None:
    """Return gcc's path; None: this machine has none."""
    return shutil.which("gcc")


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stderr[-4000:]


def _compile(source: Path, text: str | None, flags: tuple[str, ...], directory: Path) -> Path:
    made = directory / f"{source.parent.name}-{source.stem}.o"
    given = [str(source)]
    if text is not None:
        changed = directory / source.name
        changed.write_text(text)
        given = ["-iquote", str(source.parent), str(changed)]
    found = compiler()
    assert found is not None
    _run([found, *PLAIN, *flags, "-c", *given, "-o", str(made)])
    return made


def link(sources: Iterable[Path], target: Path, directory: Path, changed: Mapping[Path, str] | None = None) -> Path:
    """
    Compile sources with checks, add the runtime, and make a shared library.

    Args:
        sources: C files.
        target: where it goes, at once.
        directory: for object files.
        changed: another text for some of the sources.
    """
    texts = changed or {}
    with ThreadPoolExecutor(max_workers=2) as pool:
        objects = list(pool.map(lambda source: _compile(source, texts.get(source), CHECKS, directory), sources))
    runtime = _compile(SOURCES / "runtime.c", None, ("-fno-builtin",), directory)
    staged = directory / target.name
    found = compiler()
    assert found is not None
    _run([found, "-shared", "-pthread", "-Wl,-z,now", "-o", str(staged), *map(str, objects), str(runtime)])
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(staged, target)
    return target


def build(prefix: Path, directory: Path, changed: Mapping[Path, str] | None = None) -> Path:
    """Build the module as ``PREFIX/libsandboxd_envoy.so`` and return its folder, for Envoy's search path."""
    link(envoy_module.builder().sources(), prefix / "libsandboxd_envoy.so", directory, changed)
    return prefix
