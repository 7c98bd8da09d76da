"""
Compiles one plugin: the guest, hostcore, and what joins them.

Runs in the compiler's process, which is the only one that meets an unparsed module with a code generator.
"""

from __future__ import annotations

import hashlib

from wasmtime import Engine, Module, WasmtimeError, wat2wasm

from sandboxd.compiler.frames import Job
from sandboxd.errors import InternalError, ModuleRejected
from sandboxd.vm.artefacts import write_bundle
from sandboxd.vm.engine import new_engine
from sandboxd.vm.identity import engine_identity, settings_sha256
from sandboxd.vm.link import LinkPlan, plan
from sandboxd.vm.link_modules import adapter_wat, fixup_wat, trampolines_wat
from sandboxd.vm.traps import clean
from sandboxd.vm.wasm_binary import parse
from sandboxd.vm.wasm_rewrite import rewrite

MAX_ENGINE_TEXT = 500


def compile_bundle(job: Job) -> bytes:
    """
    Return the bundle.

    Raises:
        ModuleRejected: the module is at fault.
        InternalError: we are.
    """
    if engine_identity(job.hostcore) != job.engine:
        raise InternalError("compiler: the engine here is not the one that the client expects")
    module = parse(job.module)
    link = plan(module, job.granted, job.memory_bytes, parse(job.hostcore).functions())
    engine = new_engine()
    blobs = {"guest": _guest(engine, rewrite(module, link.memory_pages[1]))}
    blobs |= {name: _own(engine, name, code) for name, code in _own_modules(job, link).items()}
    return write_bundle(
        link,
        module_sha256=hashlib.sha256(job.module).hexdigest(),
        engine=job.engine,
        settings=settings_sha256(job.granted, job.memory_bytes),
        blobs=blobs,
    )


def _own_modules(job: Job, link: LinkPlan) -> dict[str, bytes]:
    texts = {
        "trampolines": trampolines_wat(link),
        "adapter": adapter_wat(link),
        "fixup": fixup_wat(link),
        "membrane": job.membrane.decode(),
    }
    return {"hostcore": job.hostcore} | {name: bytes(wat2wasm(text)) for name, text in texts.items()}


def _guest(engine: Engine, code: bytes) -> bytes:
    try:
        return bytes(Module(engine, code).serialize())
    except WasmtimeError as error:
        text = " ".join(str(error).split())
        raise ModuleRejected(f"the engine refuses the module: {clean(text, MAX_ENGINE_TEXT)}") from None


def _own(engine: Engine, name: str, code: bytes) -> bytes:
    try:
        return bytes(Module(engine, code).serialize())
    except WasmtimeError as error:
        raise InternalError(f"compiler: {name} does not compile: {error}") from error
