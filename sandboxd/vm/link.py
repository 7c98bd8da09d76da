"""
How a guest is joined to hostcore: what each of its imports is bound to, and which of its exports are called.

`sandboxd.vm.link_problems` says what cannot be linked, `sandboxd.vm.link_modules` generates what the plan asks for.

Pure: no wasmtime, no files. The compiler runs it to build a bundle, ``sandboxd check`` to explain one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from sandboxd.errors import ModuleRejected
from sandboxd.limits import WASM_PAGE_BYTES
from sandboxd.vm import abi
from sandboxd.vm.abi import AbiVersion, Binding, FuncType
from sandboxd.vm.link_problems import first_problems
from sandboxd.vm.wasm_binary import abi_version
from sandboxd.vm.wasm_module import Kind, WasmModule
from sandboxd.vm.wasm_rewrite import START_EXPORT

__all__ = ["Binding", "BoundImport", "LinkPlan", "plan"]


@dataclass(frozen=True, slots=True)
class BoundImport:
    """One import of the guest and what it is bound to."""

    module: str
    name: str
    type: FuncType
    binding: Binding


@dataclass(frozen=True, slots=True)
class LinkPlan:
    """All that is decided about a guest before it is compiled."""

    abi: AbiVersion
    allocator: str
    """The export that hands out guest memory."""
    memory_export: str
    memory_pages: tuple[int, int]
    """Minimum, and maximum as the policy bounds it."""
    imports: tuple[BoundImport, ...]
    """In the guest's own order; names may repeat."""
    callbacks: tuple[str, ...]
    """Callbacks that the guest exports."""
    granted_callbacks: tuple[str, ...]
    """Those of them that the policy grants; the others are treated as absent."""
    start_functions: tuple[str, ...]
    """Exports that initialise the guest, in the order of their calls."""


def plan(
    module: WasmModule, granted: frozenset[str], memory_bytes: int, host_functions: Mapping[str, FuncType]
) -> LinkPlan:
    """
    Decide how the module is linked.

    Args:
        module: the guest as parsed.
        granted: the capability names that the policy grants.
        memory_bytes: limit of the guest's memory.
        host_functions: what hostcore exports.

    Raises:
        ModuleRejected: the module cannot be linked; the text lists the reasons, as many as an operator can read.
    """
    if text := first_problems(module, memory_bytes):
        raise ModuleRejected(text)
    functions = module.functions()
    callbacks = tuple(name for name in abi.CALLBACKS if name in functions)
    memory = module.memories[0]
    pages = memory_bytes // WASM_PAGE_BYTES
    return LinkPlan(
        abi=abi_version(module),
        allocator=next(name for name in abi.ALLOCATORS if name in functions),
        memory_export=next(export.name for export in module.exports if export.kind is Kind.MEMORY),
        memory_pages=(memory.minimum, pages if memory.maximum is None else min(memory.maximum, pages)),
        imports=tuple(_bind(module, granted, host_functions)),
        callbacks=callbacks,
        granted_callbacks=tuple(name for name in callbacks if name in granted),
        start_functions=_start_functions(module),
    )


def _bind(module: WasmModule, granted: frozenset[str], host_functions: Mapping[str, FuncType]) -> Iterator[BoundImport]:
    for item in module.imports:
        function = abi.IMPORT_MODULES[item.module][item.name]
        if item.name not in abi.EXTRA_FUNCTIONS and item.name not in granted:
            binding = Binding.DENIED
        elif host_functions.get(item.name) == function:
            binding = Binding.HOST
        else:
            binding = Binding.UNAVAILABLE
        yield BoundImport(item.module, item.name, function, binding)


def _start_functions(module: WasmModule) -> tuple[str, ...]:
    functions = module.functions()
    names = [START_EXPORT] if module.start is not None else []
    if "_initialize" in functions:
        names += ["_initialize", *[name for name in ("main", "__main_void") if name in functions][:1]]
    elif "_start" in functions:
        names.append("_start")
    return tuple(names)
