"""What users get: both libraries, the pkg-config file, a header that C and C++ read, and a benchmark that runs."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.support import c_client

HEADER = c_client.SOURCES / "sandboxd.h"


def load_build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("libsandboxd_build", c_client.SOURCES / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("prefix")
    load_build().build(made)
    return made


def declared() -> set[str]:
    return set(re.findall(r"^SBX_API [^;(]*?(sbx_\w+)\(", HEADER.read_text(), re.MULTILINE))


def defined(library: Path, *flags: str) -> set[str]:
    """Global functions and data that a library defines."""
    tool = shutil.which("nm")
    assert tool is not None, "nm is missing: install binutils, without which no C compiler works either"
    listed = subprocess.run([tool, *flags, str(library)], capture_output=True, text=True, check=True, timeout=60)
    return {line.split()[-1] for line in listed.stdout.splitlines() if re.search(r" [TDBR] ", line)}


def test_the_shared_library_shows_what_the_header_declares(prefix: Path) -> None:
    found = {name for name in defined(prefix / "lib" / "libsandboxd.so", "-D") if not name.startswith("_")}
    assert found == declared()


def test_no_writable_global_state(prefix: Path) -> None:
    tool = shutil.which("nm")
    assert tool is not None, "nm is missing: install binutils, without which no C compiler works either"
    listed = subprocess.run(
        [tool, str(prefix / "lib" / "libsandboxd.a")], capture_output=True, text=True, check=True, timeout=60
    )
    writable = {line for line in listed.stdout.splitlines() if re.search(r" [dDbBC] ", line)}
    # Constant tables that hold addresses are written by the loader, once.
    assert {line.split()[-1].split(".")[0] for line in writable} <= {"names", "details", "aliases", "maps", "word",
                                                                     "mask", "present"}  # fmt: skip


@pytest.mark.parametrize("kind", ["static", "shared"])
def test_a_program_links(prefix: Path, tmp_path: Path, kind: str) -> None:
    source = tmp_path / "program.c"
    source.write_text("#include <sandboxd.h>\nint main(void) { return sbx_status_name(0)[0] != 'o'; }\n")
    lib = prefix / "lib"
    link = [str(lib / "libsandboxd.a")] if kind == "static" else [f"-L{lib}", "-lsandboxd", f"-Wl,-rpath,{lib}"]
    _, command = c_client.compiler()
    binary = tmp_path / "program"
    made = subprocess.run(
        [*command, "-std=c11", "-Wall", "-Wextra", "-Werror", "-I", str(prefix / "include"), str(source), *link,
         "-o", str(binary)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert subprocess.run([str(binary)], check=False, timeout=10).returncode == 0


def test_the_header_is_cxx_too(tmp_path: Path) -> None:
    source = tmp_path / "program.cc"
    source.write_text('#include "sandboxd.h"\nint main() { sbx_error e{}; return e.status; }\n')
    made = subprocess.run(
        [sys.executable, "-m", "ziglang", "c++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-c",
         "-o", str(tmp_path / "program.o"),
         "-I", str(c_client.SOURCES), str(source)],
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr


def test_pkg_config_names_the_version(prefix: Path) -> None:
    text = (prefix / "lib" / "pkgconfig" / "sandboxd.pc").read_text()
    assert f"Version: {load_build().version()}" in text
    assert f"prefix={prefix}" in text


def test_the_benchmark_measures(prefix: Path, tmp_path: Path) -> None:
    binary = tmp_path / "bench"
    _, command = c_client.compiler()
    made = subprocess.run(
        [*command, "-std=c11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread",
         "-I", str(prefix / "include"), str(c_client.SOURCES / "bench_rtt.c"), str(prefix / "lib" / "libsandboxd.a"),
         "-o", str(binary)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    done = subprocess.run([str(binary), "--loop", "2000"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for name in ("spin_ns", "sleep_ns"):  # which is the faster one a busy machine cannot say
        assert 0 < found[name]["p50"] <= found[name]["p90"] <= found[name]["p99"] <= found[name]["p999"]
