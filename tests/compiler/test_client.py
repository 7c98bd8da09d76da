"""Asking for a bundle: what comes back, what is refused, and what is remembered."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest

from sandboxd.compiler import client
from sandboxd.compiler.client import check_module, compile_module, compile_module_async
from sandboxd.compiler.process import CompilerOverwhelmed
from sandboxd.errors import ModuleRejected, WorkerError
from sandboxd.vm.artefacts import BLOB_NAMES, read_manifest
from tests.support.compilers import MODULE, SETTINGS, compiler_as, fresh_module, no_compiler
from tests.support.modules import guest, host, misdeed


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
    monkeypatch.setattr(client, "run_compiler", no_compiler)

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
    monkeypatch.setattr(client, "run_compiler", no_compiler)

    link = check_module(MODULE, replace(SETTINGS, granted=frozenset()), host())

    assert link.callbacks == ("proxy_on_log",)
    assert link.granted_callbacks == ()


def test_lying_compiler_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler that the module took over cannot pass off another module's bundle, or none at all."""
    other = compile_module(guest(), SETTINGS, host=host())
    monkeypatch.setattr(client, "run_compiler", lambda *_: other.data)
    with pytest.raises(WorkerError, match="its manifest is not the module's"):
        compile_module(MODULE, SETTINGS, host=host())
    monkeypatch.setattr(client, "run_compiler", lambda *_: b"rubbish")
    with pytest.raises(WorkerError, match="artefact bundle"):
        compile_module(MODULE, SETTINGS, host=host())


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
    monkeypatch.setattr(client, "run_compiler", no_compiler)
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
