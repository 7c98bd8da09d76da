"""The compiler's process and its client: bundles, refusals, limits, the cache."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sandboxd.compiler import client
from sandboxd.compiler.cache import ArtefactCache
from sandboxd.compiler.client import CompileSettings, check_module, compile_module, compile_module_async
from sandboxd.errors import ConfigError, InternalError, ModuleRejected, WorkerError
from sandboxd.limits import MIB
from sandboxd.vm.artefacts import BLOB_NAMES, read_manifest
from tests.support.modules import EVERYTHING, guest, host, misdeed

SETTINGS = CompileSettings(EVERYTHING, 16 * MIB)
MODULE = guest('(func (export "proxy_on_log") (param i32))')


def no_compiler(*_: Any) -> bytes:
    """Stand in for the compiler where the cache must answer."""
    raise AssertionError("the compiler was asked")


def test_bundle_describes_the_module() -> None:
    """With all compiled modules in it."""
    bundle = compile_module(MODULE, SETTINGS, host=host())

    assert bundle.manifest == read_manifest(bundle.data)
    assert bundle.manifest.callbacks == ("proxy_on_log",)
    assert bundle.manifest.engine == host().engine
    assert all(bundle.manifest.blobs[name][1] > 1000 for name in BLOB_NAMES)


async def test_asynchronous_call_gives_the_same() -> None:
    """On a thread."""
    bundle = await compile_module_async(MODULE, SETTINGS, host=host())

    assert bundle.manifest.callbacks == ("proxy_on_log",)


def test_trusted_side_refuses_before_it_starts_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the parser and the linker see needs no compiler."""
    monkeypatch.setattr(client, "_run", no_compiler)

    with pytest.raises(ModuleRejected, match="no host function of that name"):
        compile_module(misdeed("unknown_import"), SETTINGS, host=host())
    with pytest.raises(ModuleRejected, match="not a core WebAssembly module"):
        compile_module(b"\x7fELF", SETTINGS, host=host())


@pytest.mark.parametrize(
    "body",
    [
        "(func (result i32) (i64.const 0))",  # ill-typed; written below without the assembler's checks
        '(func (export "x") (param i32) (drop (i32.add (local.get 0))))',
    ],
)
def test_engine_refuses_what_the_parser_steps_over(body: str) -> None:
    """Function bodies are validated by the compiler; its text comes back as one clean line."""
    with pytest.raises(ModuleRejected, match="the engine refuses the module") as caught:
        compile_module(guest(body), SETTINGS, host=host())
    assert str(caught.value).isprintable()


def test_features_that_are_off_are_refused() -> None:
    """64-bit memories by the parser, tail calls by the engine."""
    with pytest.raises(ModuleRejected, match="64-bit"):
        compile_module(guest(memory='(memory (export "memory") i64 1)'), SETTINGS, host=host())
    with pytest.raises(ModuleRejected, match="tail call"):
        compile_module(guest("(func $f (return_call $f))"), SETTINGS, host=host())


def test_check_lists_bindings_without_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    """For ``sandboxd check``."""
    monkeypatch.setattr(client, "_run", no_compiler)

    link = check_module(MODULE, replace(SETTINGS, granted=frozenset()), host())

    assert link.callbacks == ("proxy_on_log",)
    assert link.granted_callbacks == ()


def test_wall_clock_is_bounded() -> None:
    """The process is killed, and the module is at fault."""
    started = time.monotonic()
    with pytest.raises(ModuleRejected, match=r"took more than 0\.01 s"):
        compile_module(MODULE, SETTINGS, timeout_s=0.01, host=host())

    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("code", "error", "text"),
    [
        (20, ModuleRejected, "the result"),
        (21, InternalError, "the result"),
        (1, InternalError, "exit code 1: the error"),
        (-signal.SIGXCPU, ModuleRejected, "more than 5 s of CPU"),
        (-signal.SIGABRT, ModuleRejected, r"crashed the compiler.*SIGABRT"),
        (-signal.SIGSEGV, ModuleRejected, r"crashed the compiler.*SIGSEGV"),
    ],
)
def test_every_end_of_the_compiler_has_its_error(code: int, error: type[Exception], text: str) -> None:
    """By exit code; control characters do not come through."""
    with client._memfd("result") as result, client._memfd("error") as errors:
        os.write(result, b"\x1b[0mthe result")
        os.write(errors, b"the error")
        with pytest.raises(error, match=text) as caught:
            client._result(code, result, errors, 5)
    assert "\x1b" not in str(caught.value)


def test_lying_compiler_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler that the module took over cannot pass off another module's bundle, or none at all."""
    other = compile_module(guest(), SETTINGS, host=host())
    monkeypatch.setattr(client, "_run", lambda *_: other.data)
    with pytest.raises(WorkerError, match="its manifest is not the module's"):
        compile_module(MODULE, SETTINGS, host=host())
    monkeypatch.setattr(client, "_run", lambda *_: b"rubbish")
    with pytest.raises(WorkerError, match="artefact bundle"):
        compile_module(MODULE, SETTINGS, host=host())


def test_compiler_process_has_given_up_what_it_can(tmp_path: Path) -> None:
    """It opens no file, gains no privilege, and has a CPU limit."""
    script = (
        "import os, resource\n"
        "from sandboxd.compiler import __main__ as m\n"
        "def probe(job):\n"
        "    try: open('/etc/hostname'); opened = 'yes'\n"
        "    except OSError: opened = 'no'\n"
        "    return f'{opened} {resource.getrlimit(resource.RLIMIT_CPU)[0]}'.encode()\n"
        "m.compile_bundle, m.decode = probe, lambda data: data\n"
        "job, result = os.memfd_create('a'), os.memfd_create('b')\n"
        "pid = os.fork()\n"
        "if not pid: os._exit(m.main([str(job), str(result), '9']))\n"
        "assert os.waitpid(pid, 0)[1] == 0\n"
        "print(os.pread(result, 100, 0).decode())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )

    assert done.stdout.strip() == "no 9", done.stderr


def test_cache_answers_the_second_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same bundle; files are ours alone."""
    directory = tmp_path / "cache"
    first = compile_module(MODULE, SETTINGS, cache_directory=directory, host=host())
    monkeypatch.setattr(client, "_run", no_compiler)

    assert compile_module(MODULE, SETTINGS, cache_directory=directory, host=host()).data == first.data
    (entry,) = directory.iterdir()
    assert entry.stat().st_mode & 0o777 == 0o600
    assert directory.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    "settings",
    [replace(SETTINGS, memory_bytes=2 * MIB), replace(SETTINGS, granted=frozenset({"proxy_log"}))],
)
def test_cache_knows_settings_apart(
    settings: CompileSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another limit or grant is another bundle."""
    compile_module(MODULE, SETTINGS, cache_directory=tmp_path, host=host())
    monkeypatch.setattr(client, "_run", no_compiler)

    with pytest.raises(AssertionError, match="the compiler was asked"):
        compile_module(MODULE, settings, cache_directory=tmp_path, host=host())


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "other"])
def test_damaged_entries_are_made_again(damage: str, tmp_path: Path) -> None:
    """They never reach a worker."""
    bundle = compile_module(MODULE, SETTINGS, cache_directory=tmp_path, host=host())
    (entry,) = tmp_path.iterdir()
    content = bytearray(entry.read_bytes())
    if damage == "cut":
        del content[-10:]
    elif damage == "flip":
        content[5000] ^= 1
    elif damage == "empty":
        content.clear()
    else:
        other = compile_module(guest(), SETTINGS, host=host())
        ArtefactCache(tmp_path).put(entry.stem, other.data)
        content = bytearray(entry.read_bytes())
    entry.write_bytes(content)

    again = compile_module(MODULE, SETTINGS, cache_directory=tmp_path, host=host())

    assert again.manifest == bundle.manifest
    assert ArtefactCache(tmp_path).get(entry.stem) == again.data


def test_cache_directory_that_others_can_write_is_refused(tmp_path: Path) -> None:
    """Machine code from there would be anybody's."""
    tmp_path.chmod(0o777)

    with pytest.raises(ConfigError, match="writable by nobody else"):
        ArtefactCache(tmp_path)


def test_cache_directory_that_cannot_be_made_is_an_operators_error(tmp_path: Path) -> None:
    """With its path."""
    (tmp_path / "file").write_text("")

    with pytest.raises(ConfigError, match=str(tmp_path)):
        ArtefactCache(tmp_path / "file" / "cache")


def test_half_written_entries_are_never_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that fails leaves nothing behind."""
    cache = ArtefactCache(tmp_path)
    monkeypatch.setattr(Path, "replace", no_compiler)

    with pytest.raises(AssertionError):
        cache.put("a" * 64, b"data")
    assert list(tmp_path.iterdir()) == []
