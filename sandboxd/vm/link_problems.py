"""
What forbids linking a guest, in words that an operator can act on. Pure: no wasmtime, no files.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from sandboxd.errors import ModuleRejected
from sandboxd.limits import WASM_PAGE_BYTES
from sandboxd.text import cut_bytes
from sandboxd.vm import abi
from sandboxd.vm.abi import AbiVersion
from sandboxd.vm.wasm_binary import abi_version
from sandboxd.vm.wasm_module import Kind, WasmModule
from sandboxd.vm.wasm_rewrite import START_EXPORT

MAX_SHOWN_PROBLEMS = 20
"""Of a module that cannot be linked; an operator reads no more of them."""
MAX_PROBLEMS_BYTES = 4000


def problems(module: WasmModule, memory_bytes: int) -> Iterator[str]:
    """
    Yield everything that forbids loading the module, in plain words; nothing if nothing does.

    A missing or unknown ABI version is one of them.
    """
    version = None
    try:
        version = abi_version(module)
    except ModuleRejected as error:
        yield str(error)
    yield from _import_problems(module)
    yield from _memory_problems(module, memory_bytes // WASM_PAGE_BYTES)
    functions = module.functions()
    if not any(name in functions for name in abi.ALLOCATORS):
        names = ", ".join(abi.ALLOCATORS)
        yield f"exports no allocator (one of {names} with type {abi.ALLOCATORS['malloc']})"
    yield from _export_problems(module, version or AbiVersion.V0_2_1)


def first_problems(module: WasmModule, memory_bytes: int) -> str:
    """Return why the module cannot be linked, bounded: logs, fronts and the status are given it. Empty: it can."""
    found = list(itertools.islice(problems(module, memory_bytes), MAX_SHOWN_PROBLEMS + 1))
    text = cut_bytes("; ".join(found[:MAX_SHOWN_PROBLEMS]), MAX_PROBLEMS_BYTES)
    return f"{text}; and more" if len(found) > MAX_SHOWN_PROBLEMS else text


def _import_problems(module: WasmModule) -> Iterator[str]:
    for item in module.imports:
        where = f"import {_shown(item.module)}.{_shown(item.name)}"
        if item.type is None:
            yield f"{where} is a {item.kind.name.lower()}; only functions can be imported"
        elif item.module not in abi.IMPORT_MODULES:
            yield f"{where}: unknown module (allowed: {', '.join(abi.IMPORT_MODULES)})"
        elif item.name not in abi.IMPORT_MODULES[item.module]:
            yield f"{where}: no host function of that name"
        elif item.type != (expected := abi.IMPORT_MODULES[item.module][item.name]):
            yield f"{where} has type {item.type}, expected {expected}"


def _memory_problems(module: WasmModule, max_pages: int) -> Iterator[str]:
    if len(module.memories) > 1:
        yield f"has {len(module.memories)} memories, exactly one is accepted"
    elif not module.memories:
        yield "has no memory of its own"
    elif not any(export.kind is Kind.MEMORY for export in module.exports):
        yield "does not export its memory"
    elif module.memories[0].minimum > max_pages:
        needed = module.memories[0].minimum
        yield (
            f"its memory begins with {needed} pages ({needed * WASM_PAGE_BYTES} bytes), "
            f"the policy allows {max_pages} ({max_pages * WASM_PAGE_BYTES} bytes)"
        )


def _export_problems(module: WasmModule, version: AbiVersion) -> Iterator[str]:
    expected = abi.START_EXPORTS | abi.ALLOCATORS | abi.CALLBACKS
    if version is AbiVersion.V0_1_0:
        expected |= abi.CALLBACKS_0_1_0
    for export in module.exports:
        if export.name == START_EXPORT:
            yield f"export {START_EXPORT} has a name that the linker needs"
        elif export.name not in expected:
            continue
        elif export.type is None:
            yield f"export {export.name} is a {export.kind.name.lower()}, expected a function"
        elif export.type != expected[export.name]:
            yield f"export {export.name} has type {export.type}, expected {expected[export.name]}"


def _shown(name: str) -> str:
    """Return a hostile name fit for an error text."""
    return "".join(char if char.isprintable() else "?" for char in name[:64]) or "(empty)"
