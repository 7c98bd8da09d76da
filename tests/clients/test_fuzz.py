"""
A hostile worker against libsandboxd: a bounded run of the fuzzer each time, and proof that it would find something.

``SANDBOXD_FUZZ_RUNS`` sets how many executions (default 1,000,000), ``SANDBOXD_FUZZ_SEED`` where the numbers begin.
Sanitizers: AddressSanitizer and UndefinedBehaviorSanitizer of the machine's gcc or clang, else ziglang's UBSan.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support import c_client

HERE = Path(__file__).parent
RUNS = int(os.environ.get("SANDBOXD_FUZZ_RUNS", "1000000"))
SEED = os.environ.get("SANDBOXD_FUZZ_SEED", "1")
CORPUS = HERE / "corpus"


def build(directory: Path, sources: Path = c_client.SOURCES) -> Path:
    flags = ("-O1", "-g", "-fno-omit-frame-pointer", *c_client.sanitizers(directory))
    _, command = c_client.compiler()
    files = [str(path) for path in sorted(sources.glob("*.c")) if path.name != "bench_rtt.c"]
    made = subprocess.run(
        [
            *command, *c_client.FLAGS, *flags, "-I", str(sources), "-o", str(directory / "fuzz"),
            str(HERE / "fuzz_worker.c"), *files,
        ],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    return directory / "fuzz"


def run(binary: Path, *arguments: str, timeout_s: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(binary), *arguments], capture_output=True, text=True, timeout=timeout_s, check=False)


@pytest.mark.timeout(max(180, RUNS // 5000))
def test_a_hostile_worker_finds_nothing(tmp_path: Path) -> None:
    name, _ = c_client.compiler()
    binary = build(tmp_path)
    print(f"built by {name} with {' '.join(c_client.sanitizers(tmp_path))}")
    done = run(binary, "--runs", str(RUNS), "--seed", SEED, timeout_s=max(150, RUNS // 6000))
    assert done.returncode == 0, done.stderr[-4000:]
    executions, _, verdicts, _, breaks, *_ = done.stdout.split()
    assert int(executions) == RUNS
    assert int(verdicts) > RUNS // 2  # it is not stuck at the first check
    assert int(breaks) > RUNS // 100


def test_the_corpus_finds_nothing(tmp_path: Path) -> None:
    done = run(build(tmp_path), *sorted(map(str, CORPUS.iterdir())), timeout_s=60)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.parametrize(
    ("file", "check", "instead"),
    [
        ("pairs.c", "len >= data.len - at || ", ""),
        ("write.c", "return SBX_DENIED_BY_POLICY;\n    return SBX_ALLOWED;", "return SBX_ALLOWED;\n    return 0;"),
        ("rules.c", "rules->hides |= pattern.mode != MODE_SHOW;", ""),
        ("verdict.c", "effect->data = submitted;", ""),
    ],
    ids=["string_past_the_end", "denied_header", "hidden_header", "body_not_its_own"],
)  # fmt: skip
def test_a_missing_check_is_found(tmp_path: Path, file: str, check: str, instead: str) -> None:
    """Without any one of these checks the fuzzer, or a sanitizer, says so."""
    sources = tmp_path / "c"
    shutil.copytree(c_client.SOURCES, sources)
    text = (sources / file).read_text()
    assert text.count(check) == 1
    (sources / file).write_text(text.replace(check, instead))
    done = run(build(tmp_path, sources), "--runs", "100000", "--seed", SEED, timeout_s=100)
    assert done.returncode != 0
