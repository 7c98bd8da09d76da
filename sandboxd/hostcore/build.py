"""
Compiles hostcore to WebAssembly with the compiler that ``ziglang`` brings: no other tool is needed.

``python -m sandboxd.hostcore.build`` or, from code, `build`. Package builds call it, so installed packages
hold the module. Nothing here runs in the daemon.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

SOURCE_DIR: Final = Path(__file__).resolve().parent
MODULE_NAME: Final = "hostcore.wasm"
MEMORY_BYTES: Final = 192 * 1024 * 1024
STACK_BYTES: Final = 1024 * 1024
BUILD_TIMEOUT_S: Final = 300

TARGET_FLAGS: Final = (
    "-target", "wasm32-freestanding",
    "-nostdlib",
    "-mbulk-memory",
    "-matomics",
    "-mno-reference-types",
)  # fmt: skip
CODE_FLAGS: Final = ("-std=c11", "-O2", "-flto", "-Wall", "-Wextra", "-Werror", "-g0", "-fno-sanitize=all")
LINK_FLAGS: Final = (
    "-Wl,--no-entry",
    "-Wl,--import-memory",
    "-Wl,-z,stack-size=" + str(STACK_BYTES),
    "-Wl,--initial-memory=" + str(MEMORY_BYTES),
    "-Wl,--max-memory=" + str(MEMORY_BYTES),
    "-Wl,--strip-all",
)


def sources(source_dir: Path = SOURCE_DIR) -> list[Path]:
    """Return the C files, in a fixed order."""
    return sorted(source_dir.glob("*.c"))


def is_fresh(module: Path, source_dir: Path = SOURCE_DIR) -> bool:
    """Return whether the module is at least as new as everything it is made from."""
    if not module.exists():
        return False
    made_ns = module.stat().st_mtime_ns
    inputs = [*sources(source_dir), *source_dir.glob("*.h"), Path(__file__)]
    return all(path.stat().st_mtime_ns <= made_ns for path in inputs)


def build(target_dir: Path | None = None, *, force: bool = False) -> Path:
    """
    Compile hostcore if its sources are newer than the module, and return the module's path.

    Args:
        target_dir: where ``hostcore.wasm`` goes; beside the sources if not given.
        force: compile in any case.

    Raises:
        RuntimeError: the compiler is missing or refused; the text holds what it said.
    """
    target_dir = target_dir or SOURCE_DIR
    target_dir.mkdir(parents=True, exist_ok=True)
    module = target_dir / MODULE_NAME
    if not force and is_fresh(module):
        return module
    with tempfile.TemporaryDirectory(prefix="hostcore-", dir=target_dir) as work:
        made = Path(work) / MODULE_NAME
        _compile(made, Path(work))
        made.chmod(0o644)
        made.replace(module)  # whoever reads the old module goes on reading the old module
    return module


def _compile(made: Path, work: Path) -> None:
    command = [
        sys.executable, "-m", "ziglang", "cc",
        *TARGET_FLAGS, *CODE_FLAGS, *LINK_FLAGS,
        "-o", str(made),
        *map(str, sources()),
    ]  # fmt: skip
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=BUILD_TIMEOUT_S,
        env=compiler_environment(work),
    )
    if done.returncode != 0 or not made.exists():
        raise RuntimeError(f"hostcore does not compile (ziglang, exit code {done.returncode}):\n{done.stderr}")


def compiler_environment(work: Path) -> dict[str, str]:
    """Return the environment for ziglang: where the home directory cannot hold its cache, ``work`` does."""
    environment = dict(os.environ)
    home = environment.get("HOME", "")
    if "ZIG_GLOBAL_CACHE_DIR" not in environment and not (home and os.access(home, os.W_OK)):
        environment["ZIG_GLOBAL_CACHE_DIR"] = str(work / "zig-cache")
    environment.setdefault("ZIG_LOCAL_CACHE_DIR", str(work / "zig-local-cache"))
    return environment


if __name__ == "__main__":
    print(build(force="--force" in sys.argv[1:]))
