"""The compiler's process and its client: bundles, refusals, limits, the cache."""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import signal
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sandboxd.compiler import client
from sandboxd.compiler.cache import KEY_NAME, ArtefactCache, read_or_make_key
from sandboxd.compiler.client import (
    CompilerOverwhelmed,
    CompileSettings,
    check_module,
    compile_module,
    compile_module_async,
)
from sandboxd.compiler.running import Running
from sandboxd.errors import ConfigError, InternalError, JailError, ModuleRejected, WorkerError
from sandboxd.jail.facts import machine_facts
from sandboxd.jail.filter_files import load_filters
from sandboxd.jail.jailer import Jailer
from sandboxd.limits import MIB
from sandboxd.vm.artefacts import BLOB_NAMES, read_manifest
from tests.support.modules import EVERYTHING, guest, host, misdeed

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = CompileSettings(EVERYTHING, 16 * MIB)
MODULE = guest('(func (export "proxy_on_log") (param i32))')


_numbers = itertools.count()


def fresh_module() -> bytes:
    """Return a module that no test has compiled before."""
    return guest(f'(func (export "number_{next(_numbers)}"))')


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


def compiler_as(monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """Have every compiler do ``body`` in place of its job, inside its real jail; ``job`` is the job's bytes."""
    script = (
        "import os, resource, socket, sys, threading\n"
        "from sandboxd.compiler import __main__ as m\n"
        "from sandboxd.errors import ModuleRejected\n"
        f"def act(job):\n{textwrap.indent(textwrap.dedent(body), '    ')}\n"
        "m.compile_bundle, m.decode = act, lambda data: data\n"
        "status = m.main(sys.argv[1:]); sys.stderr.flush(); os._exit(status)\n"
    )

    def start(_module: str, *arguments: str) -> tuple[list[str], dict[str, str]]:
        environment = {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
        return [sys.executable, "-c", script, *arguments], environment

    monkeypatch.setattr(client, "python_module", start)


def told(monkeypatch: pytest.MonkeyPatch, body: str) -> str:
    """Return what a compiler found that can only find out and say so."""
    compiler_as(monkeypatch, body)
    with pytest.raises(ModuleRejected) as caught:
        compile_module(MODULE, SETTINGS, host=host(), timeout_s=9)
    return str(caught.value)


def test_compiler_runs_in_a_jail(monkeypatch: pytest.MonkeyPatch) -> None:
    """It opens no file, has no capability and no second process around it, and limits on all that it uses."""
    found = told(
        monkeypatch,
        """
        words = []
        for path in ('/etc/hostname', '/proc/self/status', '.'):
            try: open(path); words.append('opened')
            except FileNotFoundError: words.append('none')
        words.append(f'pid {os.getpid()}')
        words.append(f'environment {dict(os.environ)}')
        try: threading.Thread(target=int).start(); words.append('thread')
        except RuntimeError: words.append('alone')
        raise ModuleRejected(' '.join(words))
        """,
    )

    assert found == "none none none pid 1 environment {} alone"


@pytest.mark.parametrize(
    "deed",
    ["socket.socket()", "os.fork()", "os.execv('/bin/sh', ['sh'])", "os.kill(2, 9)", "os.mkdir('/x')"],
)
def test_compiler_that_was_taken_over_dies(monkeypatch: pytest.MonkeyPatch, deed: str) -> None:
    """At the first system call that no compiler makes; its module is at fault and remembered."""
    compiler_as(monkeypatch, deed)
    with pytest.raises(CompilerOverwhelmed, match=r"crashed the compiler.*\(SIGSYS\)"):
        compile_module(fresh_module(), SETTINGS, host=host())


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("while True: pass", r"more than 2 s"),
        ("return bytes(5 << 30)", "too much memory"),
        ("os.abort()", "crashed the compiler"),
        ("return bytes(m.MAX_BUNDLE_BYTES + 1)", "too large a result"),
    ],
    ids=["loop", "memory", "abort", "output"],
)
def test_compiler_that_blows_up_is_stopped_and_its_module_remembered(
    monkeypatch: pytest.MonkeyPatch, body: str, text: str
) -> None:
    """Within its bounds; the second time nothing is started any more, until somebody asks for it."""
    module = fresh_module()
    compiler_as(monkeypatch, body)
    with pytest.raises(CompilerOverwhelmed, match=text):
        compile_module(module, SETTINGS, host=host(), timeout_s=2)
    monkeypatch.setattr(client, "_run", no_compiler)
    with pytest.raises(CompilerOverwhelmed, match=f"{text}.*not tried again"):
        compile_module(module, SETTINGS, host=host(), timeout_s=2)
    client.try_again(hashlib.sha256(module).hexdigest())
    with pytest.raises(AssertionError, match="the compiler was asked"):
        compile_module(module, SETTINGS, host=host(), timeout_s=2)


def test_module_that_only_wanted_more_time_gets_it() -> None:
    """A rejection for want of time says nothing of a longer time."""
    module = fresh_module()
    with pytest.raises(CompilerOverwhelmed):
        compile_module(module, SETTINGS, host=host(), timeout_s=0.01)

    assert compile_module(module, SETTINGS, host=host(), timeout_s=60).manifest


def test_compilers_end_with_the_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    """At once; that says nothing of their modules, and no other one is waited for."""
    module = fresh_module()
    running = Running()
    monkeypatch.setattr(client, "_running", running)
    compiler_as(monkeypatch, "while True: pass")
    with ThreadPoolExecutor(1) as thread:
        compiling = thread.submit(compile_module, module, SETTINGS, host=host(), timeout_s=60)
        start_s = time.monotonic()
        while not running.count:
            assert time.monotonic() - start_s < 30
            time.sleep(0.01)
        client.stop()
        with pytest.raises(WorkerError, match="the daemon ends"):
            compiling.result(10)
    with pytest.raises(WorkerError, match="the daemon ends"):
        compile_module(fresh_module(), SETTINGS, host=host(), timeout_s=60)
    assert running.count == 0

    monkeypatch.setattr(client, "_running", Running())
    monkeypatch.setattr(client, "_run", no_compiler)
    with pytest.raises(AssertionError, match="the compiler was asked"):
        compile_module(module, SETTINGS, host=host(), timeout_s=60)


def test_machine_without_a_layer_compiles_nothing() -> None:
    """A compiler is never run with less than its jail."""
    facts = replace(machine_facts(), seccomp=False)

    with pytest.raises(JailError, match="seccomp"):
        compile_module(fresh_module(), SETTINGS, host=host(), jailer=Jailer(facts, load_filters()))


def test_cache_answers_the_second_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same bundle; files are ours alone."""
    directory = tmp_path / "cache"
    first = compile_module(MODULE, SETTINGS, cache_directory=directory, host=host())
    monkeypatch.setattr(client, "_run", no_compiler)

    assert compile_module(MODULE, SETTINGS, cache_directory=directory, host=host()).data == first.data
    (entry,) = directory.glob("*.sbxb")
    assert entry.stat().st_mode & 0o777 == 0o600
    assert (directory / KEY_NAME).stat().st_mode & 0o777 == 0o600
    assert directory.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    "settings",
    [replace(SETTINGS, memory_bytes=2 * MIB), replace(SETTINGS, granted=frozenset({"proxy_log"}))],
)
def test_cache_knows_settings_apart(settings: CompileSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another limit or grant is another bundle."""
    compile_module(MODULE, SETTINGS, cache_directory=tmp_path, host=host())
    monkeypatch.setattr(client, "_run", no_compiler)

    with pytest.raises(AssertionError, match="the compiler was asked"):
        compile_module(MODULE, settings, cache_directory=tmp_path, host=host())


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "other", "forged", "renamed"])
def test_altered_entries_are_refused_logged_and_made_again(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They never reach a worker."""
    bundle = compile_module(MODULE, SETTINGS, cache_directory=tmp_path, host=host())
    (entry,) = tmp_path.glob("*.sbxb")
    content = bytearray(entry.read_bytes())
    if damage == "cut":
        del content[-10:]
    elif damage == "flip":
        content[5000] ^= 1
    elif damage == "empty":
        content.clear()
    elif damage == "forged":  # by somebody who may write there and does not have the key
        content = bytearray(_forged(entry.stem, bytes(content[32:])))
    elif damage == "renamed":
        compile_module(guest(), SETTINGS, cache_directory=tmp_path, host=host())
        (other_entry,) = set(tmp_path.glob("*.sbxb")) - {entry}
        content = bytearray(other_entry.read_bytes())
    else:  # with a good MAC and the wrong module in it: a bug of ours
        other = compile_module(guest(), SETTINGS, host=host())
        ArtefactCache(tmp_path).put(entry.stem, other.data)
        content = bytearray(entry.read_bytes())
    entry.write_bytes(content)
    caplog.clear()

    again = compile_module(MODULE, SETTINGS, cache_directory=tmp_path, host=host())

    assert again.manifest == bundle.manifest
    assert ("was altered" in caplog.text) == (damage != "other")
    assert ArtefactCache(tmp_path).get(entry.stem) == again.data


def _forged(key: str, data: bytes) -> bytes:
    mac = hashlib.blake2b(key=b"a guess", digest_size=32, person=b"sandboxd bundle")
    mac.update(len(key).to_bytes(8, "little") + key.encode() + data)
    return mac.digest() + data


def test_cache_of_another_installation_is_not_taken_over(tmp_path: Path) -> None:
    """Its key is another one; and with the right key it is."""
    ArtefactCache(tmp_path, bytes(32)).put("a" * 64, b"data")

    assert ArtefactCache(tmp_path, bytes(32)).get("a" * 64) == b"data"
    assert ArtefactCache(tmp_path, b"1" * 32).get("a" * 64) is None
    assert ArtefactCache(tmp_path, bytes(32)).get("a" * 64) is None, "it was dropped"


@pytest.mark.parametrize(("damage", "text"), [("mode", "alone may read"), ("short", "must hold 32 bytes")])
def test_bad_key_file_is_an_operators_error(tmp_path: Path, damage: str, text: str) -> None:
    """A key that others could read authenticates nothing."""
    path = tmp_path / KEY_NAME
    key = read_or_make_key(path)
    assert len(key) == 32
    assert read_or_make_key(path) == key
    if damage == "mode":
        path.chmod(0o640)
    else:
        path.write_bytes(key[:31])

    with pytest.raises(ConfigError, match=text):
        read_or_make_key(path)


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


def test_full_disk_keeps_nobody_from_serving(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The bundle is there; it is compiled again next time."""

    def no_room(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ArtefactCache, "put", no_room)
    assert compile_module(MODULE, SETTINGS, cache_directory=tmp_path, host=host()).manifest.callbacks
    assert "cannot be kept: [Errno 28] No space left on device" in caplog.text


def test_half_written_entries_are_never_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that fails leaves nothing behind."""
    cache = ArtefactCache(tmp_path)
    monkeypatch.setattr(Path, "replace", no_compiler)

    with pytest.raises(AssertionError):
        cache.put("a" * 64, b"data")
    assert [entry.name for entry in tmp_path.iterdir()] == [KEY_NAME]


class Leaf:
    """Stands in for a compiler's cgroup."""

    def __init__(self, *, starved: bool = False) -> None:
        self.done: list[object] = []
        self._starved = starved

    def enter(self, pid: int) -> None:
        """The process must be there and have read nothing: it waits for its plan."""
        os.kill(pid, 0)
        self.done.append("enter")

    def memory_death(self) -> bool:
        return self._starved

    def remove(self) -> None:
        self.done.append("remove")


def test_compiler_is_put_into_its_cgroup() -> None:
    """And the cgroup is removed when it has ended, whatever came of it."""
    leaf = Leaf()
    jailer = Jailer(machine_facts(), load_filters(), compiler_cgroup=lambda: leaf)
    compile_module(fresh_module(), SETTINGS, host=host(), jailer=jailer)
    assert leaf.done == ["enter", "remove"]

    leaf.done.clear()
    with pytest.raises(CompilerOverwhelmed):
        compile_module(fresh_module(), SETTINGS, timeout_s=0.01, host=host(), jailer=jailer)
    assert leaf.done == ["enter", "remove"]


def test_compiler_that_its_cgroup_killed_wanted_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's SIGKILL is told from that of the time limit."""
    jailer = Jailer(machine_facts(), load_filters(), compiler_cgroup=lambda: Leaf(starved=True))
    compiler_as(monkeypatch, "os.abort()")
    with pytest.raises(CompilerOverwhelmed, match=r"took too much memory$"):
        compile_module(fresh_module(), SETTINGS, host=host(), jailer=jailer)


def test_compiler_without_the_cgroup_that_it_should_have_is_not_started() -> None:
    """What the kernel refuses ends the compilation, and leaves no process."""

    def refused() -> Leaf:
        raise JailError("cgroup", 16, "no")

    jailer = Jailer(machine_facts(), load_filters(), compiler_cgroup=refused)
    with pytest.raises(JailError, match="cgroup"):
        compile_module(fresh_module(), SETTINGS, host=host(), jailer=jailer)
