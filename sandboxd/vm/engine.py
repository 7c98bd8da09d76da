"""
The wasmtime engine, set up as `sandboxd.vm.settings` says.

Imports wasmtime: for the compiler and the worker only.
"""

from __future__ import annotations

from typing import Final

from wasmtime import Config, Engine
from wasmtime import _bindings as capi

from sandboxd.vm.settings import SETTINGS

_OPT_LEVELS: Final = {"none": 0, "speed": 1, "speed_and_size": 2}


def new_engine() -> Engine:
    """
    Return an engine. A process needs one; artefacts load only into an engine of the same settings.

    Compilation stays on one thread: the compiler's process limits count threads, and its neighbours need the
    cores.
    """
    config = Config()
    # The package wraps only some options; the C functions are all named alike.
    for name, value in SETTINGS.items():
        setter = getattr(capi, f"wasmtime_config_{name}_set")
        setter(config.ptr(), _OPT_LEVELS[value] if isinstance(value, str) else value)
    capi.wasmtime_config_parallel_compilation_set(config.ptr(), False)
    return Engine(config)
