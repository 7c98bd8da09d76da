"""Builds hostcore for this machine: the fuzzers or the golden-vector tool around it, sanitizers within."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sandboxd.hostcore import build as hostcore_build

HERE: Final = Path(__file__).resolve().parent
FLAGS: Final = (
    "-std=c11", "-O1", "-g", "-D_GNU_SOURCE", "-DSANDBOXD_NATIVE", "-Wall", "-Wextra", "-Werror",
    "-fno-omit-frame-pointer",
)  # fmt: skip
FUZZ_SOURCES: Final = (
    "fuzz.c", "fuzz_codec.c", "fuzz_channel.c", "fuzz_folders.c", "fuzz_zlib.c", "native.c", "numbers.c",
)  # fmt: skip
GOLDEN_SOURCES: Final = ("golden.c", "native.c", "numbers.c")


@dataclass(frozen=True)
class Toolchain:
    """A compiler and the sanitizers it can link."""

    name: str
    command: tuple[str, ...]
    sanitizers: tuple[str, ...]


def _candidates() -> list[Toolchain]:
    found = [
        Toolchain(
            f"{name} with address and undefined",
            (path,),
            ("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
        )
        for name in ("cc", "gcc", "clang")
        if (path := shutil.which(name))
    ]
    zig = (sys.executable, "-m", "ziglang", "cc")
    # Without the runtime of AddressSanitizer: undefined behaviour traps, and blocks are the C library's own.
    found.append(Toolchain("ziglang with undefined", zig, ("-fsanitize=undefined", "-fsanitize-trap=all")))
    return found


def _works(toolchain: Toolchain, directory: Path) -> bool:
    source = directory / "probe.c"
    source.write_text("int main(void) { return 0; }\n")
    binary = directory / "probe"
    command = [*toolchain.command, *toolchain.sanitizers, "-o", str(binary), str(source)]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=120, env=_environment(directory))
        subprocess.run([str(binary)], check=True, capture_output=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return False
    return True


def _environment(directory: Path) -> dict[str, str]:
    return hostcore_build.compiler_environment(directory) if directory else dict(os.environ)


def toolchain(directory: Path) -> Toolchain:
    """Return the best toolchain of this machine; the last candidate needs nothing but pip."""
    for candidate in _candidates():
        if _works(candidate, directory):
            return candidate
    raise RuntimeError("no C compiler with sanitizers, not even ziglang's")


def build(directory: Path, sources: tuple[str, ...], name: str) -> tuple[Path, str]:
    """
    Compile hostcore and the given sources of this folder.

    Returns:
        The binary, and what it was built with.
    """
    chosen = toolchain(directory)
    binary = directory / name
    command = [
        *chosen.command, *FLAGS, *chosen.sanitizers,
        "-I", str(hostcore_build.SOURCE_DIR), "-I", str(HERE), "-o", str(binary),
        *(str(HERE / source) for source in sources),
        *(str(source) for source in hostcore_build.sources()),
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=300, env=_environment(directory)
    )
    assert done.returncode == 0, f"{chosen.name}:\n{done.stderr}"
    return binary, chosen.name
