"""
The engine's settings. Pure data, apart from everything else since worker and trusted side both need it.
"""

from __future__ import annotations

from typing import Final

from sandboxd.limits import KIB

MAX_WASM_STACK_BYTES: Final = 512 * KIB
"""Stack of guest, membrane and hostcore code together; recursion without end traps here."""

SETTINGS: Final[dict[str, bool | int | str]] = {
    "wasm_multi_memory": True,  # the membrane has two; a guest with two is refused by the linker
    "wasm_threads": True,  # hostcore reads the rings with atomic instructions; shared memories are refused
    "shared_memory": False,
    "wasm_memory64": False,
    "wasm_tail_call": False,
    "wasm_relaxed_simd": False,
    "wasm_function_references": False,
    "wasm_gc": False,
    "wasm_exceptions": False,
    "wasm_wide_arithmetic": False,
    "wasm_custom_page_sizes": False,
    "wasm_stack_switching": False,
    "wasm_component_model": False,
    "epoch_interruption": True,  # the CPU limit
    "consume_fuel": False,
    "memory_init_cow": False,  # no memfd per module; initial data is copied
    "memory_may_move": False,  # the channel is mapped into hostcore's memory
    "max_wasm_stack": MAX_WASM_STACK_BYTES,
    "cranelift_opt_level": "speed",
    "debug_info": False,
    "native_unwind_info": True,
}
"""
The engine's settings, by the name of the wasmtime option. What the table does not name is the engine's
default.
"""
