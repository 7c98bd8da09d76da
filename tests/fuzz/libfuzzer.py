"""
Both fuzzers of hostile rings under libFuzzer, guided by coverage, with AddressSanitizer and UBSan.

    python -m tests.fuzz.libfuzzer [worker|client ...] [--runs N] [--seconds S] [--keep]

``worker`` plays the worker against libsandboxd (``tests/clients/fuzz_worker.c``), ``client`` the client and a guest
against hostcore (``tests/fuzz``). Each begins with its kept corpus; what it finds out goes to ``build/fuzz/NAME``, and
``--keep`` chooses the corpus anew from both. A finding is a file there, and exit code 1.

clang with libFuzzer is needed. On Debian and Ubuntu root gets it by itself.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sandboxd.hostcore import build as hostcore_build
from tests.fuzz.build_native import FUZZ_SOURCES

ROOT: Final = Path(__file__).resolve().parents[2]
CLIENTS: Final = ROOT / "clients" / "c"
BUILD: Final = ROOT / "build" / "fuzz"
PACKAGES: Final = ("clang", "libclang-rt-14-dev")
NAMES: Final = ("clang", *(f"clang-{version}" for version in range(21, 13, -1)))
FLAGS: Final = (
    "-std=c11", "-O1", "-g", "-D_GNU_SOURCE", "-DLIBFUZZER", "-fno-omit-frame-pointer",
    "-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all",
)  # fmt: skip
NULL_PLUS_ZERO: Final = "-fno-sanitize=pointer-overflow"
"""In hostcore an empty text may be anywhere, at NULL too; clang's check of pointers calls NULL + 0 a fault."""
NO_COMPARISONS: Final = "-fno-sanitize-coverage=trace-cmp"
"""An input of the worker's is a row of choices, and no comparison in the code tells what to put there."""
MAX_INPUT_BYTES: Final = 1024
"""Longer inputs are more of the same, and fewer of them."""
MAX_KEPT_BYTES: Final = 1024
MOST_KEPT: Final = 80
"""Inputs of a kept corpus."""


class NoCompilerError(Exception):
    """No clang with libFuzzer, and no way to get one."""


@dataclass(frozen=True)
class Fuzzer:
    """One program and its corpus."""

    name: str
    sources: tuple[Path, ...]
    flags: tuple[str, ...]
    corpus: Path


def fuzzers() -> dict[str, Fuzzer]:
    """Return the fuzzers by name."""
    here = ROOT / "tests" / "fuzz"
    library = sorted(path for path in CLIENTS.glob("*.c") if path.name != "bench_rtt.c")
    hostcore = tuple(here / name for name in FUZZ_SOURCES)
    return {
        "worker": Fuzzer(
            "worker",
            (*library, *sorted((ROOT / "tests" / "clients").glob("fuzz_worker*.c")), here / "numbers.c"),
            ("-I", str(CLIENTS), "-I", str(here), "-include", str(here / "copied.h"), NO_COMPARISONS),
            ROOT / "tests" / "clients" / "corpus",
        ),
        "client": Fuzzer(
            "client",
            (*hostcore, *hostcore_build.sources()),
            ("-I", str(hostcore_build.SOURCE_DIR), "-I", str(here), "-DSANDBOXD_NATIVE", NULL_PLUS_ZERO),
            here / "corpus",
        ),
    }


def _links(clang: str) -> bool:
    probe = BUILD / "probe"
    command = [clang, "-fsanitize=fuzzer,address", "-x", "c", "-", "-o", str(probe)]
    text = "int LLVMFuzzerTestOneInput(const char *at, unsigned long len) { return at && len == 0; }\n"
    return subprocess.run(command, input=text, text=True, capture_output=True, check=False).returncode == 0


def find_clang() -> str | None:
    """Return a clang that can link libFuzzer; None: there is none."""
    found = (path for name in NAMES if (path := shutil.which(name)))
    return next((path for path in found if _links(path)), None)


def compiler() -> str:
    """
    Return a clang with libFuzzer, installed now if root can.

    Raises:
        NoCompilerError: there is none; the text says what to do.
    """
    BUILD.mkdir(parents=True, exist_ok=True)
    if found := find_clang():
        return found
    if os.geteuid() == 0 and shutil.which("apt-get"):
        print(f"installing {' and '.join(PACKAGES)} ...", file=sys.stderr)
        command = ["apt-get", "install", "--yes", "--no-install-recommends", *PACKAGES]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if found := find_clang():
            return found
        raise NoCompilerError(f"apt-get brought no clang with libFuzzer:\n{done.stderr[-2000:]}")
    wanted = " ".join(PACKAGES)
    raise NoCompilerError(
        f"no clang with libFuzzer (tried {', '.join(NAMES)}); as root on Debian 12: apt install {wanted}; "
        "elsewhere: clang and its compiler-rt"
    )


def build(fuzzer: Fuzzer, clang: str, target: Path) -> None:
    """
    Compile a fuzzer.

    Raises:
        RuntimeError: the compiler failed; the text is its own.
    """
    command = [clang, *FLAGS, *fuzzer.flags, "-o", str(target), *map(str, fuzzer.sources)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{fuzzer.name}:\n{done.stderr}")


def run(fuzzer: Fuzzer, binary: Path, runs: int, seconds: int) -> int:
    """Run a fuzzer from its corpus on and return its exit code; 0: no finding."""
    found = BUILD / fuzzer.name
    found.mkdir(parents=True, exist_ok=True)
    options = [f"-runs={runs}", f"-max_total_time={seconds}", f"-max_len={MAX_INPUT_BYTES}", "-print_final_stats=1"]
    options += [f"-artifact_prefix={found}/finding-", "-detect_leaks=0", "-verbosity=1", "-timeout=30", "-reload=0"]
    corpus = [str(fuzzer.corpus)] if fuzzer.corpus.is_dir() else []
    environment = {**os.environ, "ASAN_OPTIONS": "malloc_context_size=3"}  # a longer trace at each malloc costs time
    return subprocess.run([str(binary), *options, str(found), *corpus], env=environment, check=False).returncode


def keep(fuzzer: Fuzzer, binary: Path, most: int = MOST_KEPT) -> None:
    """Replace the corpus by those few of its inputs and the new ones that together reach most."""
    with tempfile.TemporaryDirectory(prefix="sandboxd-corpus-") as name:
        control, merged = Path(name) / "control", Path(name) / "merged"
        merged.mkdir()
        folders = [str(path) for path in (fuzzer.corpus, BUILD / fuzzer.name) if path.is_dir()]
        options = ["-merge=1", "-detect_leaks=0", f"-merge_control_file={control}", f"-max_len={MAX_KEPT_BYTES}"]
        subprocess.run([str(binary), *options, str(merged), *folders], check=True, capture_output=True)
        chosen = [path.read_bytes() for path in cover(control.read_text(), most)]
    shutil.rmtree(fuzzer.corpus, ignore_errors=True)
    fuzzer.corpus.mkdir()
    for number, data in enumerate(chosen):
        (fuzzer.corpus / f"input-{number:02}").write_bytes(data)


def cover(control: str, most: int) -> list[Path]:
    """
    Choose inputs greedily, each the one that adds most to those before it.

    Args:
        control: text of libFuzzer's merge control file: two counts, a line for each file, then ``FT INDEX FEATURES``.
        most: how many at most.
    """
    lines = control.splitlines()
    files = [Path(line) for line in lines[2 : 2 + int(lines[0])]]
    left = {
        int(index): set(features) for kind, index, *features in map(str.split, lines[2 + len(files) :]) if kind == "FT"
    }
    chosen: list[Path] = []
    while left and len(chosen) < most:
        best = max(left, key=lambda index: (len(left[index]), -index))
        reached = left.pop(best)
        if not reached:
            break
        chosen.append(files[best])
        for features in left.values():
            features.difference_update(reached)
    return chosen


def main(arguments: Sequence[str] | None = None) -> int:
    """Build and run from the command line."""
    known = fuzzers()
    parser = argparse.ArgumentParser(description="Fuzz hostile rings with libFuzzer.")
    parser.add_argument("names", nargs="*", metavar="worker|client", help="which; both if none is named")
    parser.add_argument("--runs", type=int, default=10_000_000, help="executions of each (default 10000000)")
    parser.add_argument("--seconds", type=int, default=0, help="stop each after so many; 0: never")
    parser.add_argument("--keep", action="store_true", help="choose the kept corpus anew")
    given = parser.parse_args(arguments)
    if unknown := set(given.names) - set(known):
        parser.error(f"no such fuzzer: {', '.join(sorted(unknown))} (allowed: {', '.join(known)})")
    try:
        clang = compiler()
    except NoCompilerError as error:
        print(error, file=sys.stderr)
        return 2
    status = 0
    for name in given.names or known:
        binary = BUILD / f"fuzz_{name}"
        build(known[name], clang, binary)
        print(f"{name}: {given.runs} runs, from {known[name].corpus.relative_to(ROOT)}", flush=True)
        if run(known[name], binary, given.runs, given.seconds) != 0:
            status = 1
        elif given.keep:
            keep(known[name], binary)
    return status


if __name__ == "__main__":
    sys.exit(main())
