"""
Builds libsandboxd with the compiler that ``ziglang`` brings: a static and a shared library and a pkg-config file.

``python clients/c/build.py [--prefix DIRECTORY]`` puts them under ``build/clients`` (``lib``, ``include``). With gcc or
clang alone: ``cc -std=c11 -D_GNU_SOURCE -DSBX_BUILD -fvisibility=hidden -fPIC -shared clients/c/*.c``, without the
benchmark.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent
ROOT: Final = HERE.parents[1]
PROGRAMS: Final = frozenset({"bench_rtt.c"})
FLAGS: Final = (
    "-std=c11", "-D_GNU_SOURCE", "-DSBX_BUILD", "-fvisibility=hidden", "-fPIC",
    "-Wall", "-Wextra", "-Wshadow", "-Werror",
)  # fmt: skip
RELEASE: Final = ("-O2", "-g", "-fno-sanitize=all", "-fstack-protector-strong", "-D_FORTIFY_SOURCE=2")
BUILD_TIMEOUT_S: Final = 300
SONAME: Final = "libsandboxd.so.0"


def version() -> str:
    """Return the library's version, from its header."""
    found = re.search(r'#define SBX_VERSION "([^"]+)"', (HERE / "sandboxd.h").read_text())
    assert found is not None
    return found[1]


def sources() -> list[Path]:
    """Return the library's C files."""
    return sorted(path for path in HERE.glob("*.c") if path.name not in PROGRAMS)


def zig() -> tuple[str, ...]:
    """Return the compiler's command."""
    return (sys.executable, "-m", "ziglang", "cc")


def environment(work: Path) -> dict[str, str]:
    """Return the environment for ziglang: its caches go where they can be written."""
    found = dict(os.environ)
    home = found.get("HOME", "")
    if "ZIG_GLOBAL_CACHE_DIR" not in found and not (home and os.access(home, os.W_OK)):
        found["ZIG_GLOBAL_CACHE_DIR"] = str(work / "zig-cache")
    found.setdefault("ZIG_LOCAL_CACHE_DIR", str(work / "zig-local-cache"))
    return found


def run(command: list[str], work: Path) -> None:
    """Run one step; RuntimeError with what the tool said if it fails."""
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=BUILD_TIMEOUT_S, env=environment(work)
    )
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command[:5])} ... failed with {done.returncode}:\n{done.stderr}")


def build(prefix: Path) -> Path:
    """Build and install everything under ``prefix``; returns the shared library."""
    (prefix / "lib" / "pkgconfig").mkdir(parents=True, exist_ok=True)
    (prefix / "include").mkdir(exist_ok=True)
    shared = prefix / "lib" / SONAME
    with tempfile.TemporaryDirectory(prefix="libsandboxd-") as name:
        work = Path(name)
        objects = [_compile(source, work) for source in sources()]
        archive, made = work / "libsandboxd.a", work / SONAME
        run([sys.executable, "-m", "ziglang", "ar", "rcs", str(archive), *objects], work)
        run([*zig(), "-shared", f"-Wl,-soname,{SONAME}", "-Wl,-z,now", "-o", str(made), *objects], work)
        shutil.copy(archive, prefix / "lib" / archive.name)
        shutil.copy(made, shared)
    link = shared.with_name("libsandboxd.so")
    link.unlink(missing_ok=True)
    link.symlink_to(SONAME)
    shutil.copy(HERE / "sandboxd.h", prefix / "include" / "sandboxd.h")
    (prefix / "lib" / "pkgconfig" / "sandboxd.pc").write_text(pkg_config(prefix))
    return shared


def _compile(source: Path, work: Path) -> str:
    made = work / f"{source.stem}.o"
    run([*zig(), *FLAGS, *RELEASE, "-c", str(source), "-o", str(made)], work)
    return str(made)


def pkg_config(prefix: Path) -> str:
    """Return the pkg-config file."""
    return (
        f"prefix={prefix}\n"
        "libdir=${prefix}/lib\n"
        "includedir=${prefix}/include\n\n"
        "Name: libsandboxd\n"
        "Description: Channel client of sandboxd: Proxy-Wasm plugins out of process\n"
        f"Version: {version()}\n"
        "Libs: -L${libdir} -lsandboxd\n"
        "Cflags: -I${includedir}\n"
    )


def main() -> None:
    """Build from the command line."""
    parser = argparse.ArgumentParser(description="Build libsandboxd.")
    parser.add_argument("--prefix", type=Path, default=ROOT / "build" / "clients")
    print(build(parser.parse_args().prefix.absolute()))


if __name__ == "__main__":
    main()
