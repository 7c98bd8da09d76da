"""
Asks the compiler for a bundle, and keeps bundles on disk.

For the trusted side: no wasmtime here. The compiler's process has read hostile input, so what it gives back
is checked; the machine code in it is never looked at, only handed to workers of the tenant that owns the
module.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import importlib.util
import logging
import math
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from sandboxd.compiler.cache import ArtefactCache
from sandboxd.compiler.frames import ExitCode, Job, encode
from sandboxd.compiler.rejections import Rejections
from sandboxd.compiler.running import Running
from sandboxd.errors import InternalError, ModuleRejected, WorkerError
from sandboxd.hostcore import build as hostcore_build
from sandboxd.jail import full_plan
from sandboxd.jail.command import python_module
from sandboxd.jail.jailer import CompilerLeaf, Jailer, this_machine
from sandboxd.limits import DEFAULT_VM_MEMORY_BYTES, GIB
from sandboxd.vm.artefacts import MAX_BUNDLE_BYTES, Bundle, read_manifest
from sandboxd.vm.identity import cache_key, engine_identity, settings_sha256
from sandboxd.vm.link import LinkPlan, plan
from sandboxd.vm.wasm_binary import parse

DEFAULT_TIMEOUT_S: Final = 120.0
MAX_TEXT_BYTES: Final = 8192
MEMORY_BYTES: Final = 4 * GIB
"""Address space of a compiler. Code generation for the largest accepted module stays below this."""
_TOO_MUCH_MEMORY: Final = "compiling the module took too much memory"
_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL

_log = logging.getLogger(__name__)

_rejections: Final = Rejections()
_running: Final = Running()


class CompilerOverwhelmed(ModuleRejected):
    """
    The module made the compiler hang or blow up. ``timeout_s`` is the time that was not enough; None: it was
    not for want of time.
    """

    def __init__(self, text: str, timeout_s: float | None = None) -> None:
        self.timeout_s = timeout_s
        super().__init__(text)

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (str(self), self.timeout_s))


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
        data = _run(encode(job), timeout_s, jailer or this_machine())
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


def stop() -> None:
    """Kill all compilers, for the daemon ends; who waits for one gets a `WorkerError`, and so does who asks later."""
    _running.stop()


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


def _run(job: bytes, timeout_s: float, jailer: Jailer) -> bytes:
    """Return the output of one compiler process."""
    with (
        _memfd("sandboxd-job") as job_fd,
        _memfd("sandboxd-result") as result_fd,
        _memfd("sandboxd-error") as error_fd,
    ):
        _write_sealed(job_fd, job)
        argv, environment = python_module("sandboxd.compiler", str(job_fd), str(result_fd))
        process = subprocess.Popen(
            argv,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=error_fd,
            stderr=error_fd,
            pass_fds=(job_fd, result_fd),
            start_new_session=True,
            cwd="/",
        )
        leaf: CompilerLeaf | None = None
        try:
            leaf = jailer.compiler_cgroup()
            if leaf is not None:
                leaf.enter(process.pid)
            plan = jailer.compiler(
                job_fd,
                result_fd,
                process.pid,
                cpu_seconds=max(1, math.ceil(timeout_s)),
                memory_bytes=MEMORY_BYTES,
                result_bytes=MAX_BUNDLE_BYTES,
            )
            with _running.noted(process):
                process.communicate(full_plan.encode(plan), timeout_s)
            code = process.returncode
        except subprocess.TimeoutExpired:
            text = f"compiling the module took more than {timeout_s:g} s"
            raise CompilerOverwhelmed(text, timeout_s) from None
        finally:
            _end(process)
            starved = leaf is not None and leaf.memory_death()
            if leaf is not None:
                leaf.remove()
        if starved and code != ExitCode.DONE:
            raise CompilerOverwhelmed(_TOO_MUCH_MEMORY)
        return _result(code, result_fd, error_fd, timeout_s)


def _result(code: int, result_fd: int, error_fd: int, timeout_s: float) -> bytes:
    if code == ExitCode.DONE:
        return _read(result_fd, MAX_BUNDLE_BYTES)
    if code == ExitCode.REJECTED:
        raise ModuleRejected(_text(result_fd))
    if code == ExitCode.INTERNAL:
        raise InternalError(f"compiler: {_text(result_fd)}")
    if code == ExitCode.EXHAUSTED:
        raise CompilerOverwhelmed(f"{_TOO_MUCH_MEMORY}, or gave too large a result")
    if code in (-signal.SIGXCPU, -signal.SIGKILL):
        text = f"compiling the module took more than {timeout_s:g} s of CPU"
        raise CompilerOverwhelmed(text, timeout_s)
    if code < 0:
        name = signal.Signals(-code).name
        text = f"compiling the module crashed the compiler, or took too much memory ({name})"
        raise CompilerOverwhelmed(text)
    raise InternalError(f"compiler: exit code {code}: {_text(error_fd)}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill whatever is left of the process and its children."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    if process.stdin is not None:
        with contextlib.suppress(BrokenPipeError):  # what was not sent goes to nobody
            process.stdin.close()
    process.wait()


@contextlib.contextmanager
def _memfd(name: str) -> Iterator[int]:
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        yield fd
    finally:
        os.close(fd)


def _write_sealed(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    os.lseek(fd, 0, os.SEEK_SET)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)


def _read(fd: int, limit: int) -> bytes:
    """Return the file's content. The process that wrote it is dead, so its size cannot change any more."""
    size = os.fstat(fd).st_size
    if size > limit:
        raise WorkerError(f"compiler: {size} bytes of output, at most {limit} are accepted")
    return os.pread(fd, size, 0)


def _text(fd: int) -> str:
    """Return the end of the file as text fit for a log."""
    size = os.fstat(fd).st_size
    raw = os.pread(fd, MAX_TEXT_BYTES, max(0, size - MAX_TEXT_BYTES)).decode(errors="replace")
    return "".join(char if char.isprintable() or char == "\n" else "?" for char in raw).strip()
