"""The build: what the module imports and exports, when it is made again, and how a failure looks."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

import pytest
from wasmtime import MemoryType, Module

from sandboxd.hostcore import build as hostcore_build
from sandboxd.vm.abi import EXTRA_FUNCTIONS, IMPORT_MODULES
from sandboxd.vm.engine import new_engine
from sandboxd.vm.link_modules import ADAPTER_CALLBACKS
from sandboxd.vm.wasm_binary import parse

pytestmark = pytest.mark.long

WORKER_EXPORTS: Final = {
    "config_buffer",
    "vm_configure",
    "vm_start",
    "poll",
    "inbox_buffer",
    "inbox_deliver",
    "outbox_done",
    "outbox_first",
    "outbox_first_len",
    "status_ptr",
    "denied",
}


@pytest.fixture(scope="module")
def module() -> Module:
    """hostcore, compiled."""
    return Module(new_engine(), hostcore_build.build().read_bytes())


def test_imports_are_those_of_the_contract(module: Module) -> None:
    """One memory of a fixed size, the membrane, the clock, the guest."""
    found = {(item.module, item.name) for item in module.imports}
    guest = {("guest", name) for name in (*ADAPTER_CALLBACKS, "initialize", "alloc")}
    memory = next(item.type for item in module.imports if isinstance(item.type, MemoryType))

    assert found == guest | {
        ("env", "memory"),
        ("host", "clock_ns"),
        ("host", "shared_call"),
        ("membrane", "read"),
        ("membrane", "write"),
        ("membrane", "store"),
        ("membrane", "pages"),
    }
    assert (memory.limits.min, memory.limits.max) == (3072, 3072)


def test_every_function_of_the_abi_is_there_with_its_type() -> None:
    """A missing one, or one of another type, would be linked as unavailable."""
    functions = parse(hostcore_build.build().read_bytes()).functions()
    wanted = {name: kind for names in IMPORT_MODULES.values() for name, kind in names.items()}
    missing = {name for name in wanted if functions.get(name) != wanted[name]}

    assert missing <= set(EXTRA_FUNCTIONS)
    assert {name for name in missing if name.startswith(("proxy_", "fd_", "path_", "sock_"))} == set()


def test_nothing_else_is_exported() -> None:
    """What the worker calls, and host functions."""
    functions = set(parse(hostcore_build.build().read_bytes()).functions())
    host = {name for names in IMPORT_MODULES.values() for name in names}

    assert functions - host <= WORKER_EXPORTS | {"proc_raise", "envoy_resolve_dns"}


def test_it_is_built_only_when_its_sources_are_newer(tmp_path: Path) -> None:
    """By modification time, of every source."""
    module = hostcore_build.build(tmp_path)
    made = module.stat()

    assert hostcore_build.build(tmp_path).stat().st_mtime_ns == made.st_mtime_ns
    os.utime(module, ns=(0, 0))
    assert not hostcore_build.is_fresh(module)
    assert hostcore_build.build(tmp_path).stat().st_mtime_ns >= made.st_mtime_ns
    assert [path.name for path in tmp_path.iterdir()] == ["hostcore.wasm"]


def test_the_same_sources_give_the_same_module(tmp_path: Path) -> None:
    """Artefacts are cached by its digest."""
    first = hostcore_build.build(tmp_path / "a").read_bytes()
    second = hostcore_build.build(tmp_path / "b").read_bytes()

    assert first == second


def test_an_error_says_what_the_compiler_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """File and line; the old module stays."""
    for path in hostcore_build.SOURCE_DIR.glob("*.[ch]"):
        shutil.copy(path, tmp_path)
    (tmp_path / "table.c").write_text("int broken(void) { return nothing; }\n")
    broken = hostcore_build.sources(tmp_path)
    target = tmp_path / "target"
    target.mkdir()
    (target / hostcore_build.MODULE_NAME).write_bytes(b"old")
    monkeypatch.setattr(hostcore_build, "sources", lambda _directory=tmp_path: broken)

    with pytest.raises(RuntimeError, match=r"table\.c:1:.*nothing"):
        hostcore_build.build(target, force=True)

    assert (target / hostcore_build.MODULE_NAME).read_bytes() == b"old"


def test_the_compilers_cache_needs_no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Build machines have none that can be written."""
    monkeypatch.delenv("ZIG_GLOBAL_CACHE_DIR", raising=False)
    monkeypatch.setenv("HOME", "/nonexistent")
    assert hostcore_build.compiler_environment(tmp_path)["ZIG_GLOBAL_CACHE_DIR"].startswith(str(tmp_path))

    monkeypatch.setenv("HOME", str(tmp_path))
    assert "ZIG_GLOBAL_CACHE_DIR" not in hostcore_build.compiler_environment(tmp_path)

    monkeypatch.setenv("ZIG_GLOBAL_CACHE_DIR", "/elsewhere")
    assert hostcore_build.compiler_environment(tmp_path)["ZIG_GLOBAL_CACHE_DIR"] == "/elsewhere"
