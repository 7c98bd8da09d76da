"""
A hostile worker against libsandboxd: a bounded run of the fuzzer each time, and proof that it would find something.

``SANDBOXD_FUZZ_RUNS`` sets how many executions (default 150,000), ``SANDBOXD_FUZZ_SEED`` where the numbers begin.
Sanitizers: AddressSanitizer and UndefinedBehaviorSanitizer of the machine's gcc or clang, else ziglang's UBSan.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import c_client

pytestmark = pytest.mark.long

HERE = Path(__file__).parent
RUNS = int(os.environ.get("SANDBOXD_FUZZ_RUNS", "150000"))
SEED = os.environ.get("SANDBOXD_FUZZ_SEED", "1")
CORPUS = HERE / "corpus"
NUMBERS = HERE.parent / "fuzz"


def compile_one(source: Path, directory: Path, flags: Sequence[str]) -> Path:
    """One object file; ``internal.h`` is found beside the library's own sources."""
    made = directory / f"{source.stem}.o"
    _, command = c_client.compiler()
    included = ("-I", str(c_client.SOURCES), "-I", str(NUMBERS))
    done = subprocess.run(
        [*command, *c_client.FLAGS, *flags, *included, "-c", str(source), "-o", str(made)],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return made


def link(objects: Iterable[Path], directory: Path, flags: Sequence[str]) -> Path:
    _, command = c_client.compiler()
    binary = directory / "fuzz"
    done = subprocess.run(
        [*command, *flags, "-o", str(binary), *map(str, objects)],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return binary


@dataclass(frozen=True)
class Built:
    """The fuzzer with its object files by stem, so that a test can replace one."""

    binary: Path
    objects: dict[str, Path]
    flags: tuple[str, ...]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    directory = tmp_path_factory.mktemp("fuzz")
    flags = (
        "-O1",
        "-g",
        "-fno-omit-frame-pointer",
        "-include",
        str(NUMBERS / "copied.h"),
        *c_client.sanitizers(directory),
    )
    sources = [*map(Path, c_client.client_sources()), *sorted(HERE.glob("fuzz_worker*.c")), NUMBERS / "numbers.c"]
    with ThreadPoolExecutor(max_workers=2) as pool:
        made = list(pool.map(lambda source: compile_one(source, directory, flags), sources))
    objects = {path.stem: path for path in made}
    return Built(link(objects.values(), directory, flags), objects, flags)


def run(binary: Path, *arguments: str, timeout_s: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(binary), *arguments], capture_output=True, text=True, timeout=timeout_s, check=False)


@pytest.mark.timeout(max(180, RUNS // 5000))
def test_a_hostile_worker_finds_nothing(built: Built) -> None:
    print(f"built by {c_client.compiler()[0]} with {' '.join(built.flags)}")
    done = run(built.binary, "--runs", str(RUNS), "--seed", SEED, timeout_s=max(150, RUNS // 6000))
    assert done.returncode == 0, done.stderr[-4000:]
    executions, verdicts, breaks, late, taken = map(int, re.findall(r"\d+", done.stdout))
    assert executions == RUNS
    assert verdicts > RUNS // 2  # it is not stuck at the first check
    assert late > RUNS // 20
    assert breaks > RUNS // 100
    assert taken > RUNS // 100


def test_the_corpus_finds_nothing(built: Built) -> None:
    files = sorted(map(str, CORPUS.iterdir()))
    assert files
    done = run(built.binary, *files, timeout_s=60)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.parametrize(
    ("file", "check", "instead"),
    [
        ("pairs.c", "len >= data.len - at || ", ""),
        ("legal.c", "return SBX_DENIED_BY_POLICY;\n    return SBX_ALLOWED;", "return SBX_ALLOWED;\n    return 0;"),
        ("rules.c", "rules->hides |= pattern.mode != MODE_SHOW;", ""),
        ("bodies.c", "take_kept(turn, side, &effect->data)", "take_kept(turn, side, &claimed)"),
        ("tcp.c", "{flow->readable ? write_bytes", "{len ? write_bytes"),
        ("tcp_flow.c", "if (flow->keeps || as_submitted) {", "if (as_submitted) {"),
        ("ring.c", "size > left || ", ""),
        ("ring.c", ".payload_len = payload_len,", ".payload_len = get_u32(ring->cq + position + 20),"),
    ],
    ids=[
        "string_past_the_end", "denied_header", "hidden_header", "body_not_its_own", "withheld_bytes",
        "bytes_not_its_own", "record_past_the_end", "read_twice",
    ],
)  # fmt: skip
def test_a_missing_check_is_found(built: Built, tmp_path: Path, file: str, check: str, instead: str) -> None:
    """Without any one of these checks the fuzzer, or a sanitizer, says so."""
    text = (c_client.SOURCES / file).read_text()
    assert text.count(check) == 1
    damaged = tmp_path / file
    damaged.write_text(text.replace(check, instead))
    objects = {**built.objects, damaged.stem: compile_one(damaged, tmp_path, built.flags)}
    done = run(link(objects.values(), tmp_path, built.flags), "--runs", "100000", "--seed", SEED, timeout_s=100)
    assert done.returncode != 0
