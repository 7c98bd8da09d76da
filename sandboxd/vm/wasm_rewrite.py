"""
The changes that are made to a guest's binary before it is compiled.

The start function becomes an export, since it may call the host, which is linked only later; the memory's
maximum becomes the policy's; custom sections go, but for ``name``, which backtraces use. Pure.
"""

from __future__ import annotations

from sandboxd.errors import ModuleRejected
from sandboxd.vm.wasm_binary import parse
from sandboxd.vm.wasm_module import Kind, Limits, Section, SectionId, WasmModule
from sandboxd.vm.wasm_reader import Reader

START_EXPORT = "__sandboxd_start"
"""The name under which the former start function is exported."""


def rewrite(module: WasmModule, max_pages: int) -> bytes:
    """
    Return the module's binary, changed as said above.

    Args:
        module: what `parse` read.
        max_pages: upper bound of every memory that the module defines.

    Raises:
        ModuleRejected: a memory begins larger than the bound, or the module itself exports the name
        `START_EXPORT`.
    """
    out = [module.data[:8]]
    start_written = module.start is None
    for section in module.sections:
        if section.id is SectionId.EXPORT and module.start is not None:
            out.append(_export_section(module, section))
            start_written = True
        elif section.id is SectionId.START and not start_written:
            out.append(_section(SectionId.EXPORT, _u32(1) + _start_entry(module)))
        elif section.id is SectionId.MEMORY:
            out.append(_memory_section(module, max_pages))
        elif section.id is not SectionId.START and (section.id is not SectionId.CUSTOM or section.name == "name"):
            out.append(module.data[section.start : section.end])
    return b"".join(out)


def start_to_export(data: bytes) -> bytes:
    """
    Return the binary with its start function, if it has one, exported as `START_EXPORT` instead.

    Raises:
        ModuleRejected: the binary is malformed, or exports that name already.
    """
    return rewrite(parse(data), max_pages=65536)


def _export_section(module: WasmModule, section: Section) -> bytes:
    reader = Reader(module.data, section.body, section.end, "export section")
    count = reader.u32()
    return _section(
        SectionId.EXPORT, _u32(count + 1) + module.data[reader.position : section.end] + _start_entry(module)
    )


def _start_entry(module: WasmModule) -> bytes:
    if module.start is None:
        raise ValueError("the module has no start function")
    if module.export(START_EXPORT) is not None:
        raise ModuleRejected(f"the module exports {START_EXPORT}, a name that the linker needs")
    name = START_EXPORT.encode()
    return _u32(len(name)) + name + bytes([Kind.FUNCTION]) + _u32(module.start)


def _memory_section(module: WasmModule, max_pages: int) -> bytes:
    return _section(
        SectionId.MEMORY,
        _u32(len(module.memories)) + b"".join(_bounded(memory, max_pages) for memory in module.memories),
    )


def _bounded(memory: Limits, max_pages: int) -> bytes:
    if memory.minimum > max_pages:
        raise ModuleRejected(f"the memory begins with {memory.minimum} pages, the limit is {max_pages}")
    maximum = max_pages if memory.maximum is None else min(memory.maximum, max_pages)
    return b"\1" + _u32(memory.minimum) + _u32(maximum)


def _section(section_id: SectionId, body: bytes) -> bytes:
    return bytes([section_id]) + _u32(len(body)) + body


def _u32(value: int) -> bytes:
    """Encode an unsigned LEB128 number."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
