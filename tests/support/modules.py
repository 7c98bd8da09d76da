"""Guests written in WAT for one test each, and bundles of guests."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

from wasmtime import wat2wasm

from sandboxd.compiler.client import CompileSettings, HostCode, compile_module, host_code
from sandboxd.limits import MIB
from sandboxd.vm import abi
from sandboxd.vm.artefacts import Bundle
from tests.support.guests import GUESTS

EVERYTHING = frozenset(abi.PROXY_FUNCTIONS) | frozenset(abi.WASI_FUNCTIONS) | frozenset(abi.CALLBACKS)

MARKER = '(func (export "proxy_abi_version_0_2_1"))'
MEMORY = '(memory (export "memory") 1)'
ALLOCATOR = '(func (export "proxy_on_memory_allocate") (param i32) (result i32) (i32.const 1024))'


def guest(
    *parts: str, imports: str = "", marker: str = MARKER, memory: str = MEMORY, allocator: str = ALLOCATOR
) -> bytes:
    """Return a module that is a plugin but for what the test changes."""
    return bytes(wat2wasm("\n".join(("(module", imports, marker, memory, allocator, *parts, ")"))))


def misdeed(name: str) -> bytes:
    """Return one of the guests that do wrong."""
    return (GUESTS / "misdeeds" / f"{name}.wasm").read_bytes()


@functools.cache
def host() -> HostCode:
    """Return hostcore, built once."""
    return host_code()


@functools.cache
def _cache() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="sandboxd-test-artefacts-")


def bundle(module: bytes, granted: frozenset[str] = EVERYTHING, memory_bytes: int = 16 * MIB) -> Bundle:
    """Return the module's bundle; compiled once in a test run."""
    return compile_module(
        module,
        CompileSettings(granted, memory_bytes),
        cache_directory=Path(_cache().name),
        host=host(),
        timeout_s=100,
    )
