"""
What the engine calls back: the question whether a call is past its CPU limit, and the live clock.

One callback of each kind serves every store, told apart by a number: making a callback needs new executable
memory, which a sealed worker cannot have, so both are made when this module is imported. A raw callback that
raises is undefined behaviour. For `sandboxd.vm.instance` alone.
"""

from __future__ import annotations

import ctypes
import itertools
import time
from collections.abc import Callable
from typing import Any, Final

from wasmtime import Store
from wasmtime import _bindings as capi

from sandboxd.vm.traps import CPU_LIMIT_TEXT

_NAP: Final = 2
_NAP_S: Final = 20e-6
"""hostcore waits for a lock whose holder is not running; the system makes it some 70 us."""

_interrupts: dict[int, Callable[[], bool]] = {}
_interrupt_keys = itertools.count(1)


def _on_deadline(_context: Any, key: int | None, delta: Any, kind: Any) -> int:
    # Must not raise: that would be undefined behaviour. Without a handler to ask, the call ends.
    try:
        over = _interrupts[key or 0]()
    except BaseException:
        over = True
    if over:
        return ctypes.cast(capi.wasmtime_error_new(CPU_LIMIT_TEXT.encode()), ctypes.c_void_p).value or 0
    delta[0] = 1
    kind[0] = 0
    return 0


def _on_clock(_env: Any, _caller: Any, values: Any, _count: int) -> int:
    try:
        # WASI: 0 is the wall clock, 1 the monotonic one. 2 is hostcore's own: wait a moment off the CPU.
        if values[0].i32 == _NAP:
            time.sleep(_NAP_S)
        values[0].i64 = time.time_ns() if values[0].i32 == 0 else time.monotonic_ns()
    except BaseException:
        values[0].i64 = 0
    return 0


_shared: dict[int, Callable[[int], int]] = {}


def _on_shared(env: int | None, _caller: Any, values: Any, _count: int) -> int:
    try:
        values[0].i64 = _shared[env or 0](values[0].i32 & 0xFFFFFFFF)
    except BaseException:
        values[0].i64 = 0
    return 0


_deadline_arguments: Final = capi._wasmtime_store_epoch_deadline_callback.argtypes
_deadline_callback: Final = _deadline_arguments[1](_on_deadline)
_no_finalizer: Final = _deadline_arguments[3](0)
_clock_callback: Final = capi.wasmtime_func_unchecked_callback_t(_on_clock)
_shared_callback: Final = capi.wasmtime_func_unchecked_callback_t(_on_shared)


class Interrupt:
    """
    Has ``should_stop`` asked on the VM's thread, inside the running call, whenever the engine's epoch moves.

    Args:
        store: of the VM.
        should_stop: True ends the call as past its CPU limit. Must not raise.
    """

    def __init__(self, store: Store, should_stop: Callable[[], bool]) -> None:
        self._key = next(_interrupt_keys)
        _interrupts[self._key] = should_stop
        # One tick before the deadline for ever: the callback asks for one more each time.
        store.set_epoch_deadline(1)
        capi.wasmtime_store_epoch_deadline_callback(
            store.ptr(), _deadline_callback, ctypes.c_void_p(self._key), _no_finalizer
        )

    def close(self) -> None:
        """Forget the handler; the store must be closed already."""
        _interrupts.pop(self._key, None)


def clock_function(store: Store) -> Any:
    """Return ``clock_ns (i32 clock_id) -> i64`` as a function of the store."""
    return _function(store, _clock_callback, None)


class SharedCalls:
    """
    ``shared_call (i32 at) -> i64`` of one store.

    Args:
        answer: given the address in hostcore's memory, returns the length of the answer; on the VM's thread.
    """

    def __init__(self, store: Store, answer: Callable[[int], int]) -> None:
        self._key = next(_interrupt_keys)
        _shared[self._key] = answer
        self.function = _function(store, _shared_callback, ctypes.c_void_p(self._key))

    def close(self) -> None:
        """Forget the handler; the store must be closed already."""
        _shared.pop(self._key, None)


def _function(store: Store, callback: Any, env: Any) -> Any:
    """Return a function ``(i32) -> i64`` of the store."""
    function = capi.wasmtime_func_t()
    kind = _clock_type()
    try:
        capi.wasmtime_func_new_unchecked(store._context(), kind, callback, env, _no_finalizer, ctypes.byref(function))
    finally:
        capi.wasm_functype_delete(kind)
    return function


def _clock_type() -> Any:
    parameters, results = capi.wasm_valtype_vec_t(), capi.wasm_valtype_vec_t()
    for vector, kind in ((parameters, 0), (results, 1)):
        item = capi.wasm_valtype_new(kind)
        array = (ctypes.POINTER(capi.wasm_valtype_t) * 1)(item)
        capi.wasm_valtype_vec_new(ctypes.byref(vector), 1, array)
    return capi.wasm_functype_new(ctypes.byref(parameters), ctypes.byref(results))
