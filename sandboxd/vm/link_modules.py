"""
The three small modules that are generated to join a guest to hostcore.

The guest imports host functions and hostcore imports the guest's callbacks, so neither can be instantiated
first. *trampolines* breaks the circle: one exported function per import of the guest, each of which calls
through a table that *fixup* fills at the end. *adapter* turns whatever the guest exports into the one fixed
set that hostcore imports.

Pure: text from a `LinkPlan`; no wasmtime, no files.
"""

from __future__ import annotations

from sandboxd.vm import abi
from sandboxd.vm.abi import Binding, FuncType
from sandboxd.vm.link import BoundImport, LinkPlan
from sandboxd.vm.wasm_rewrite import START_EXPORT

LINK_VERSION = 3
"""Part of every cache key: raise it when the generated modules change."""

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
