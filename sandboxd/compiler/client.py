"""
Asks the compiler for a bundle, and keeps bundles on disk (`sandboxd.compiler.process` runs it).

For the trusted side: no wasmtime here. The compiler's process has read hostile input, so what it gives back
is checked; the machine code in it is never looked at, only handed to workers of the tenant that owns the
module.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.util
import logging
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from sandboxd.compiler.cache import ArtefactCache
from sandboxd.compiler.frames import Job, encode
from sandboxd.compiler.process import CompilerOverwhelmed, run_compiler
from sandboxd.compiler.rejections import Rejections
from sandboxd.errors import InternalError, WorkerError
from sandboxd.hostcore import build as hostcore_build
from sandboxd.jail.jailer import Jailer, this_machine
from sandboxd.limits import DEFAULT_VM_MEMORY_BYTES
from sandboxd.vm.artefacts import Bundle, read_manifest
from sandboxd.vm.identity import cache_key, engine_identity, settings_sha256
from sandboxd.vm.link import LinkPlan, plan
from sandboxd.vm.wasm_binary import parse

DEFAULT_TIMEOUT_S: Final = 120.0

_log = logging.getLogger(__name__)

_rejections: Final = Rejections()


@dataclass(frozen=True, slots=True)
class CompileSettings:
    """What decides a bundle's content beside the module."""

    granted: frozenset[str]
    """Capability names."""
    memory_bytes: int = DEFAULT_VM_MEMORY_BYTES
    """Limit of the guest's memory."""


@dataclass(frozen=True, slots=True)
class HostCode:
    """Our own part of every bundle."""

    hostcore: bytes = field(repr=False)
    membrane: bytes = field(repr=False)
    engine: str
    """The engine's identity with this hostcore."""


def host_code() -> HostCode:
    """
    Return hostcore and membrane as the package has them.

    Raises:
        InternalError: the package was built without hostcore.
    """
    hostcore = hostcore_build.SOURCE_DIR / hostcore_build.MODULE_NAME
    # A checkout has the compiler and may have newer sources; an installed package has the module alone.
    if importlib.util.find_spec("ziglang") and os.access(hostcore_build.SOURCE_DIR, os.W_OK):
        hostcore = hostcore_build.build()
    try:
        code = hostcore.read_bytes()
        membrane = (hostcore_build.SOURCE_DIR / "membrane.wat").read_bytes()
    except OSError as error:
        raise InternalError(f"the package has no hostcore: {error}") from None
    return HostCode(code, membrane, engine_identity(code))


def check_module(module: bytes, settings: CompileSettings, host: HostCode | None = None) -> LinkPlan:
    """
    Return how the module would be linked, without compiling it. For ``sandboxd check``, and before every
    compilation.

    Raises:
        ModuleRejected: it cannot be linked; the text lists the reasons, as `sandboxd.vm.link.plan` does.
    """
    host = host or host_code()
    return plan(parse(module), settings.granted, settings.memory_bytes, parse(host.hostcore).functions())


def compile_module(
    module: bytes,
    settings: CompileSettings,
    *,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    cache_directory: Path | None = None,
    cache_key_bytes: bytes | None = None,
    host: HostCode | None = None,
    jailer: Jailer | None = None,
) -> Bundle:
    """
    Return the module's bundle, from the cache or from the compiler. Blocks; see `compile_module_async`.

    Args:
        module: the ``.wasm`` file.
        settings: see `CompileSettings`.
        timeout_s: wall clock, and CPU rounded up, that the compiler may take.
        cache_directory: where bundles are kept; None keeps none.
        cache_key_bytes: what authenticates them; None: see `ArtefactCache`.
        host: hostcore, if it is not the package's own.
        jailer: of the compiler's process; None: this machine's, with nothing tolerated.

    Raises:
        ModuleRejected: the module is at fault.
        CompilerOverwhelmed: compiling it took too long or too much memory, or crashed the compiler; or it did
            so before (`try_again`).
        JailError: the machine cannot give a layer that every compiler needs.
        InternalError: the compiler failed for another reason.
        ConfigError: the cache directory is not ours alone.
    """
    host = host or host_code()
    link = check_module(module, settings, host)
    digest = hashlib.sha256(module).hexdigest()
    key = cache_key(digest, host.engine, settings_sha256(settings.granted, settings.memory_bytes))
    cache = ArtefactCache(cache_directory, cache_key_bytes) if cache_directory is not None else None
    if cache is not None and (data := cache.get(key)) is not None:
        with contextlib.suppress(WorkerError):
            return _checked(data, link, digest, host, settings)
        cache.drop(key)
    if known := _rejections.find(digest, key, timeout_s):
        raise CompilerOverwhelmed(f"{known}; that was before, and it is not tried again for a while")
    started = time.monotonic()
    job = Job(module, host.hostcore, host.membrane, settings.granted, settings.memory_bytes, host.engine)
    try:
        data = run_compiler(encode(job), timeout_s, jailer or this_machine())
    except CompilerOverwhelmed as error:
        _log.warning("module %s: %s", digest[:12], error)
        _rejections.remember(digest, key, str(error), error.timeout_s)
        raise
    bundle = _checked(data, link, digest, host, settings)
    _log.info(
        "compiled module %s: %d bytes of wasm to %d bytes in %.2f s",
        digest[:12],
        len(module),
        len(bundle.data),
        time.monotonic() - started,
    )
    if cache is not None:
        try:
            cache.put(key, bundle.data)
        except OSError as error:  # a full disk keeps nobody from serving
            _log.warning("artefact cache: module %s cannot be kept: %s", digest[:12], error)
    return bundle


def try_again(module_sha256: str) -> None:
    """Forget that a module made the compiler hang or blow up."""
    _rejections.forget(module_sha256)


async def compile_module_async(
    module: bytes,
    settings: CompileSettings,
    *,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    cache_directory: Path | None = None,
    host: HostCode | None = None,
) -> Bundle:
    """Do as `compile_module` on a thread. A cancelled call goes on there until its time is up."""
    return await asyncio.to_thread(
        compile_module, module, settings, timeout_s=timeout_s, cache_directory=cache_directory, host=host
    )


def _checked(data: bytes, link: LinkPlan, digest: str, host: HostCode, settings: CompileSettings) -> Bundle:
    """Return the bundle if it says of itself what we know of it; `WorkerError` if not."""
    manifest = read_manifest(data)
    ours = (
        link.abi,
        digest,
        host.engine,
        settings_sha256(settings.granted, settings.memory_bytes),
        link.allocator,
        link.memory_pages,
        link.callbacks,
        link.granted_callbacks,
        tuple((item.module, item.name, item.binding) for item in link.imports),
    )
    theirs = (
        manifest.abi,
        manifest.module_sha256,
        manifest.engine,
        manifest.settings_sha256,
        manifest.allocator,
        manifest.memory_pages,
        manifest.callbacks,
        manifest.granted_callbacks,
        tuple((item.module, item.name, item.binding) for item in manifest.imports),
    )
    if ours != theirs:
        raise WorkerError("artefact bundle: its manifest is not the module's")
    return Bundle(data, manifest)
