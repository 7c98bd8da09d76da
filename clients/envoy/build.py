"""
Builds Envoy's dynamic module with the compiler that ``ziglang`` brings: one file, with libsandboxd in it.

``python clients/envoy/build.py [--prefix DIRECTORY]`` puts ``lib/libsandboxd_envoy.so`` under ``build/clients``. Envoy
finds it by ``ENVOY_DYNAMIC_MODULES_SEARCH_PATH``, the directory, under the name ``sandboxd_envoy``.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent
ROOT: Final = HERE.parents[1]
LIBRARY: Final = HERE.parent / "c"
PROGRAMS: Final = frozenset({"bench_rtt.c"})
MODULE: Final = "libsandboxd_envoy.so"
FLAGS: Final = (
    "-std=c11", "-D_GNU_SOURCE", "-fvisibility=hidden", "-fPIC", "-Wall", "-Wextra", "-Wshadow", "-Werror",
)  # fmt: skip
RELEASE: Final = ("-O2", "-g", "-fno-sanitize=all", "-fstack-protector-strong", "-D_FORTIFY_SOURCE=2")
BUILD_TIMEOUT_S: Final = 300


def sources() -> list[Path]:
    """Return the module's C files and the library's."""
    library = (path for path in LIBRARY.glob("*.c") if path.name not in PROGRAMS)
    return [*sorted(HERE.glob("*.c")), *sorted(library)]


def compiler() -> tuple[str, ...]:
    """Return the compiler's command: ``SANDBOXD_CC``, or ziglang's."""
    named = os.environ.get("SANDBOXD_CC", "")
    return tuple(named.split()) or (sys.executable, "-m", "ziglang", "cc")


def environment(work: Path) -> dict[str, str]:
    """Return the environment for ziglang: its caches go where they can be written."""
    found = dict(os.environ)
    home = found.get("HOME", "")
    if "ZIG_GLOBAL_CACHE_DIR" not in found and not (home and os.access(home, os.W_OK)):
        found["ZIG_GLOBAL_CACHE_DIR"] = str(work / "zig-cache")
    found.setdefault("ZIG_LOCAL_CACHE_DIR", str(work / "zig-local-cache"))
    return found


def build(prefix: Path, flags: tuple[str, ...] = RELEASE) -> Path:
    """
    Build the module under ``prefix`` and return its path.

    Raises:
        RuntimeError: the compiler failed; the text says how.
    """
    target = prefix / "lib" / MODULE
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="sandboxd-envoy-") as name:
        work = Path(name)
        made = work / MODULE
        # Envoy brings the functions that are called; nothing of libsandboxd is exported.
        link = ["-shared", f"-Wl,-soname,{MODULE}", "-Wl,-z,now", "-pthread"]
        command = [*compiler(), *FLAGS, *flags, *link, "-o", str(made), *map(str, sources())]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=BUILD_TIMEOUT_S, env=environment(work)
        )
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command[:5])} ... failed with {done.returncode}:\n{done.stderr}")
        # At once: a running Envoy has the older file mapped.
        staged = target.with_suffix(f".{os.getpid()}")
        staged.write_bytes(made.read_bytes())
        staged.replace(target)
    return target


def main() -> None:
    """Build from the command line."""
    parser = argparse.ArgumentParser(description="Build Envoy's dynamic module.")
    parser.add_argument("--prefix", type=Path, default=ROOT / "build" / "clients")
    print(build(parser.parse_args().prefix.absolute()))


if __name__ == "__main__":
    main()
