"""
The engine's functions that are called with raw addresses, and the values that they take.

For `sandboxd.vm.instance` alone.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any, Final

from wasmtime import _bindings as capi
from wasmtime._ffi import dll

from sandboxd.errors import InternalError

VALUE_BYTES: Final = 16
"""``wasmtime_val_raw``: a 128-bit union."""

# The call is declared once more here, so that the package's own declaration with its slow conversions stays
# as it is. CFUNCTYPE: the interpreter's lock is released while the guest runs.
call_unchecked: Final = ctypes.CFUNCTYPE(
    ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p
)(("wasmtime_func_call_unchecked", dll))
"""``wasmtime_func_call_unchecked`` (context, function, values, count of values, where a trap goes); gives an error."""

memory_data_size: Final = ctypes.CFUNCTYPE(ctypes.c_size_t, ctypes.c_void_p, ctypes.c_void_p)(
    ("wasmtime_memory_data_size", dll)
)
"""Called before each sleep."""


@dataclass(frozen=True, slots=True)
class Function:
    """A function of an instance, ready to be called; ``values`` hold arguments and result."""

    extern: Any
    address: int
    values: Any
    count: int


def extern(**of: Any) -> Any:
    """Return ``func=`` or ``memory=`` as an extern."""
    kind, value = next(iter(of.items()))
    number = {"func": 0, "memory": 3}[kind]
    return capi.wasmtime_extern_t(number, capi.wasmtime_extern_union(**{kind: value}))


def address(pointer: Any) -> int:
    """Return the address that the engine gave for hostcore's memory; `InternalError` if it gave none."""
    value = ctypes.cast(pointer, ctypes.c_void_p).value
    if not value:
        raise InternalError("the engine gave no address for hostcore's memory")
    return value
