"""
How a guest is joined to hostcore: the checks, and the three small modules that are generated for it.

The guest imports host functions and hostcore imports the guest's callbacks, so neither can be instantiated
first. *trampolines* breaks the circle: one exported function per import of the guest, each of which calls
through a table that *fixup* fills at the end. *adapter* turns whatever the guest exports into the one fixed
set that hostcore imports.

Pure: no wasmtime, no files. The compiler runs it to build a bundle, ``sandboxd check`` to explain one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from sandboxd.errors import ModuleRejected
from sandboxd.limits import WASM_PAGE_BYTES
from sandboxd.text import cut_bytes
from sandboxd.vm import abi
from sandboxd.vm.abi import AbiVersion, Binding, FuncType
from sandboxd.vm.wasm_binary import abi_version
from sandboxd.vm.wasm_module import Kind, WasmModule
from sandboxd.vm.wasm_rewrite import START_EXPORT

__all__ = [
    "ADAPTER_CALLBACKS",
    "LINK_VERSION",
    "Binding",
    "BoundImport",
    "LinkPlan",
    "adapter_wat",
    "fixup_wat",
    "plan",
    "problems",
    "trampolines_wat",
]

LINK_VERSION = 3
"""Part of every cache key: raise it when the generated modules change."""

MAX_SHOWN_PROBLEMS = 20
"""Of a module that cannot be linked; an operator reads no more of them."""
MAX_PROBLEMS_BYTES = 4000

ADAPTER_CALLBACKS = (
    "proxy_on_context_create",
    "proxy_on_vm_start",
    "proxy_on_configure",
    "proxy_on_request_headers",
    "proxy_on_request_body",
    "proxy_on_request_trailers",
    "proxy_on_response_headers",
    "proxy_on_response_body",
    "proxy_on_response_trailers",
    "proxy_on_done",
    "proxy_on_log",
    "proxy_on_delete",
    "proxy_on_tick",
    "proxy_on_queue_ready",
    "proxy_on_http_call_response",
    "proxy_on_grpc_receive_initial_metadata",
    "proxy_on_grpc_receive",
    "proxy_on_grpc_receive_trailing_metadata",
    "proxy_on_grpc_close",
    "proxy_on_new_connection",
    "proxy_on_downstream_data",
    "proxy_on_upstream_data",
    "proxy_on_downstream_connection_close",
    "proxy_on_upstream_connection_close",
)
"""The callbacks that hostcore imports, always all of them, with the types of ABI 0.2.x."""

_DEFAULT_TRUE = frozenset({"proxy_on_vm_start", "proxy_on_configure", "proxy_on_done"})
"""Callbacks whose absence means "yes"; the others' means 0 (continue)."""


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


def _first_problems(module: WasmModule, memory_bytes: int) -> str:
    """Return why the module cannot be linked, bounded: logs, fronts and the status are given it. Empty: it can."""
    found = list(itertools.islice(problems(module, memory_bytes), MAX_SHOWN_PROBLEMS + 1))
    text = cut_bytes("; ".join(found[:MAX_SHOWN_PROBLEMS]), MAX_PROBLEMS_BYTES)
    return f"{text}; and more" if len(found) > MAX_SHOWN_PROBLEMS else text


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
    if text := _first_problems(module, memory_bytes):
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


def trampolines_wat(link: LinkPlan) -> str:
    """
    Return the module that the guest imports from: ``f<N>`` for import N, through the exported table ``t``.
    """
    lines = [f'(table (export "t") {len(link.imports)} {len(link.imports)} funcref)']
    for number, item in enumerate(link.imports):
        arguments = " ".join(f"(local.get {index})" for index in range(len(item.type.params)))
        lines.append(f"(type $t{number} (func {_signature(item.type)}))")
        lines.append(
            f'(func (export "f{number}") (type $t{number}) {arguments} '
            f"(call_indirect (type $t{number}) (i32.const {number})))"
        )
    return _module("trampolines", lines)


def adapter_wat(link: LinkPlan) -> str:
    """
    Return the module that gives hostcore the fixed set of callbacks, and the membrane the guest's memory.
    """
    imports = [f'(import "guest" {_text(link.memory_export)} (memory $memory 0))']
    imports.append(_import("guest", link.allocator, abi.ALLOCATORS[link.allocator]))
    bodies = ['(export "memory" (memory $memory))', f'(export "alloc" (func ${link.allocator}))']
    start_types = abi.START_EXPORTS | {START_EXPORT: FuncType()}
    imports += [_import("guest", name, start_types[name]) for name in link.start_functions]
    calls = " ".join(_start_call(name, start_types[name]) for name in link.start_functions)
    bodies.append(f'(func (export "initialize") {calls})')
    for name in ADAPTER_CALLBACKS:
        if name in link.granted_callbacks:
            actual = abi.callback_type(name, link.abi)
            imports.append(_import("guest", name, actual))
            bodies.append(_adapted(name, actual))
        else:
            bodies.append(_default(name))
    return _module("adapter", imports + bodies)


def fixup_wat(link: LinkPlan) -> str:
    """Return the module that fills the trampolines' table."""
    size = len(link.imports)
    imports = [f'(import "trampolines" "t" (table {size} {size} funcref))']
    host = {item.name: item.type for item in link.imports if item.binding is Binding.HOST}
    imports += [_import("hostcore", name, function) for name, function in host.items()]
    if any(item.binding is Binding.DENIED for item in link.imports):
        imports.append('(import "hostcore" "denied" (func $denied (param i32)))')
    stubs = [
        f"(func $stub{number} {_signature(item.type)} {_stub_body(number, item)})"
        for number, item in enumerate(link.imports)
        if item.binding is not Binding.HOST
    ]
    targets = [
        f"${item.name}" if item.binding is Binding.HOST else f"$stub{number}"
        for number, item in enumerate(link.imports)
    ]
    return _module("fixup", [*imports, *stubs, f"(elem (i32.const 0) func {' '.join(targets)})"])


def _stub_body(number: int, item: BoundImport) -> str:
    is_wasi = item.module in abi.WASI_MODULES
    call = f"(call $denied (i32.const {number})) " if item.binding is Binding.DENIED else ""
    if item.name == "proc_exit":
        return f"{call}unreachable"
    if not item.type.results:
        return call
    if item.binding is Binding.DENIED:
        return f"{call}(i32.const {abi.WASI_NOTCAPABLE if is_wasi else abi.STATUS_INTERNAL_FAILURE})"
    return f"(i32.const {abi.WASI_NOSYS if is_wasi else abi.STATUS_INTERNAL_FAILURE})"


def _start_call(name: str, function: FuncType) -> str:
    call = f"(call ${name} {' '.join('(i32.const 0)' for _ in function.params)})"
    return f"(drop {call})" if function.results else call


def _adapted(name: str, actual: FuncType) -> str:
    expected = abi.CALLBACKS[name]
    if actual == expected:
        return f'(export "{name}" (func ${name}))'
    arguments = " ".join(f"(local.get {index})" for index in range(len(actual.params)))
    return f'(func (export "{name}") {_signature(expected)} (call ${name} {arguments}))'


def _default(name: str) -> str:
    function = abi.CALLBACKS[name]
    result = f"(i32.const {int(name in _DEFAULT_TRUE)})" if function.results else ""
    return f'(func (export "{name}") {_signature(function)} {result})'


def _import(module: str, name: str, function: FuncType) -> str:
    return f'(import "{module}" "{name}" (func ${name} {_signature(function)}))'


def _signature(function: FuncType) -> str:
    params = f"(param {' '.join(function.params)})" if function.params else ""
    results = f"(result {' '.join(function.results)})" if function.results else ""
    return f"{params} {results}".strip()


def _text(name: str) -> str:
    """Quote a hostile name for WAT: every byte as an escape."""
    return '"' + "".join(f"\\{byte:02x}" for byte in name.encode()) + '"'


def _module(name: str, lines: list[str]) -> str:
    return f"(module ${name}\n" + "\n".join(f"  {line}" for line in lines) + "\n)\n"
