"""
A plugin's bundle, loaded into the engine: machine code ready to be instantiated any number of times.

Imports wasmtime: for the worker only. Loading runs no guest code.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
from dataclasses import dataclass

from wasmtime import Engine, Module, WasmtimeError
from wasmtime import _bindings as capi

from sandboxd.errors import WorkerError
from sandboxd.vm.artefacts import BLOB_NAMES, MAX_BUNDLE_BYTES, Manifest, blob, read_manifest

REQUIRED_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
"""What every memfd from the supervisor carries: its size can never change under a reader."""


@dataclass(frozen=True, slots=True)
class LoadedModule:
    """One module and the (module, name) of its imports, in order."""

    module: Module
    imports: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class LoadedPlugin:
    """A plugin's modules by their names in the bundle."""

    engine: Engine
    manifest: Manifest
    modules: dict[str, LoadedModule]


def load_plugin(engine: Engine, bundle: bytes | bytearray | mmap.mmap) -> LoadedPlugin:
    """
    Load a bundle.

    The machine code in it is trusted no more than the worker that runs it.

    Raises:
        WorkerError: it is not a bundle, or was made by another engine.
    """
    view = memoryview(bundle)
    manifest = read_manifest(view)
    modules = {name: _load(engine, blob(view, manifest, name), name) for name in BLOB_NAMES}
    return LoadedPlugin(engine, manifest, modules)


def load_plugin_fd(engine: Engine, bundle_fd: int) -> LoadedPlugin:
    """Load a bundle from a sealed memfd, which is not closed."""
    size = sealed_size(bundle_fd, MAX_BUNDLE_BYTES)
    # Unmapped with the last view of it: an error's traceback holds some, so closing it here could fail.
    return load_plugin(
        engine,
        mmap.mmap(bundle_fd, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE),
    )


def sealed_size(fd: int, limit: int) -> int:
    """
    Return the size of a sealed memfd.

    Raises:
        WorkerError: it is not sealed, is empty, or is larger than ``limit``.
    """
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        seals = 0
    if seals & REQUIRED_SEALS != REQUIRED_SEALS:
        raise WorkerError("the file that came with the frame is not a sealed memfd")
    size = os.fstat(fd).st_size
    if not 0 < size <= limit:
        raise WorkerError(f"the memfd that came with the frame has {size} bytes, allowed are 1 to {limit}")
    return size


def _load(engine: Engine, code: memoryview, name: str) -> LoadedModule:
    # Module.deserialize() copies the bytes twice on the way; a Go module's code is 10 MB.
    pointer = ctypes.POINTER(capi.wasmtime_module_t)()
    buffer = _as_buffer(code)
    error = capi.wasmtime_module_deserialize(engine.ptr(), buffer, len(code), ctypes.byref(pointer))
    if error:
        raise WorkerError(f"artefact {name}: {WasmtimeError._from_ptr(error)}")
    module = Module._from_ptr(pointer)
    return LoadedModule(module, tuple((item.module, item.name or "") for item in module.imports))


def _as_buffer(code: memoryview) -> ctypes.Array[ctypes.c_uint8]:
    kind = ctypes.c_uint8 * len(code)
    return kind.from_buffer_copy(code) if code.readonly else kind.from_buffer(code)
