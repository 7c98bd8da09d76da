"""
What a host must know of a guest's binary before it compiles it: imports, exports, memories, start function,
ABI version.

Pure, and bounded in time and memory: function bodies, data and names are stepped over. Not a validator; the
engine validates the rest when it compiles. Anybody may import this module.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from sandboxd.errors import ModuleRejected
from sandboxd.limits import MAX_MODULE_BYTES, MAX_MODULE_IMPORTS
from sandboxd.vm.abi import MARKER_PREFIX, MARKERS, AbiVersion, FuncType
from sandboxd.vm.wasm_module import Export, Import, Kind, Limits, Section, SectionId, WasmModule
from sandboxd.vm.wasm_reader import Reader

MAX_SECTIONS: Final = 4096
"""Compilers and linkers write some twenty; each costs time and memory even if it is empty."""
MAX_TYPES: Final = 50_000
MAX_FUNCTIONS: Final = 200_000
"""Large Go modules have some 20 000."""
MAX_EXPORTS: Final = 10_000
MAX_TABLES: Final = 16
MAX_MEMORIES: Final = 16
"""More than one is refused by `sandboxd.vm.link`, with a better text; this only bounds the reading."""
MAX_TYPE_VALUES: Final = 1000
"""Parameters or results of one type; the engine's own cap."""
MAX_ALL_TYPE_VALUES: Final = 500_000
"""Of all types together: ten for each of the most there may be."""

_HEADER: Final = b"\0asm\1\0\0\0"


_ORDER: Final = {
    section: position
    for position, section in enumerate(
        (
            SectionId.TYPE,
            SectionId.IMPORT,
            SectionId.FUNCTION,
            SectionId.TABLE,
            SectionId.MEMORY,
            SectionId.GLOBAL,
            SectionId.EXPORT,
            SectionId.START,
            SectionId.ELEMENT,
            SectionId.DATA_COUNT,
            SectionId.CODE,
            SectionId.DATA,
        )
    )
}


def parse(data: bytes) -> WasmModule:
    """
    Read a module.

    Raises:
        ModuleRejected: it is no WebAssembly module, or a section that is read here is malformed.
    """
    return _Parser(data).module()


def abi_markers(module: WasmModule) -> tuple[AbiVersion, ...]:
    """
    Return the ABI versions that the module declares, in the order of its export section. The first counts.
    """
    return tuple(
        MARKERS[export.name] for export in module.exports if export.kind is Kind.FUNCTION and export.name in MARKERS
    )


def abi_version(module: WasmModule) -> AbiVersion:
    """
    Return the module's ABI version.

    Raises:
        ModuleRejected: it declares none, or only unknown ones.
    """
    markers = abi_markers(module)
    if markers:
        return markers[0]
    unknown = [export.name for export in module.exports if export.name.startswith(MARKER_PREFIX)]
    found = f"it exports {unknown[0][:64]!r}" if unknown else "it exports no function of such a name"
    raise ModuleRejected(
        f"missing or unknown Proxy-Wasm ABI version: {found} (allowed: {', '.join(MARKERS)} as a function)"
    )


class _Parser:
    """Walks the sections once and keeps what `WasmModule` needs."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._sections: list[Section] = []
        self._types: list[FuncType] = []
        self._type_values = 0
        self._imports: list[Import] = []
        self._functions: list[FuncType] = []
        self._counts = dict.fromkeys(Kind, 0)
        self._memories: list[Limits] = []
        self._tables: list[Limits] = []
        self._exports: list[Export] = []
        self._start: int | None = None
        self._readers: dict[SectionId, Callable[[Reader], None]] = {
            SectionId.TYPE: self._type_section,
            SectionId.IMPORT: self._import_section,
            SectionId.FUNCTION: self._function_section,
            SectionId.TABLE: self._table_section,
            SectionId.MEMORY: self._memory_section,
            SectionId.GLOBAL: self._global_section,
            SectionId.EXPORT: self._export_section,
            SectionId.START: self._start_section,
        }

    def module(self) -> WasmModule:
        if len(self._data) > MAX_MODULE_BYTES:
            raise ModuleRejected(f"wasm binary: {len(self._data)} bytes, at most {MAX_MODULE_BYTES} are accepted")
        if self._data[: len(_HEADER)] != _HEADER:
            raise ModuleRejected(
                "wasm binary: not a core WebAssembly module of version 1 "
                "(it must begin with the bytes 00 61 73 6d 01 00 00 00)"
            )
        reader = Reader(self._data, len(_HEADER), len(self._data), "section header")
        while reader.left:
            self._section(reader)
        return WasmModule(
            data=self._data,
            sections=tuple(self._sections),
            imports=tuple(self._imports),
            memories=tuple(self._memories),
            tables=tuple(self._tables),
            exports=tuple(self._exports),
            start=self._start,
        )

    def _section(self, reader: Reader) -> None:
        start = reader.position
        if len(self._sections) >= MAX_SECTIONS:
            reader.fail(f"more than {MAX_SECTIONS} sections", start)
        code = reader.byte()
        if code not in SectionId.__members__.values():
            reader.fail(f"section id {code} is not supported", start)
        section_id = SectionId(code)
        length = reader.u32()
        body = reader.position
        reader.skip(length)
        part = f"{section_id.name.lower().replace('_', ' ')} section"
        content = Reader(self._data, body, reader.position, part)
        name = content.name() if section_id is SectionId.CUSTOM else ""
        self._check_order(section_id, reader, start)
        self._sections.append(Section(section_id, name, start, body, reader.position))
        if section_id in self._readers:
            self._readers[section_id](content)
            if content.left:
                content.fail(f"{content.left} bytes too many")

    def _check_order(self, section_id: SectionId, reader: Reader, at: int) -> None:
        if section_id is SectionId.CUSTOM:
            return
        last = next((s.id for s in reversed(self._sections) if s.id is not SectionId.CUSTOM), None)
        if last is not None and _ORDER[section_id] <= _ORDER[last]:
            reader.fail(f"{section_id.name.lower()} section is repeated or out of order", at)

    def _type_section(self, reader: Reader) -> None:
        for _ in range(reader.count("types", MAX_TYPES)):
            at = reader.position
            if reader.byte() != 0x60:
                reader.fail("only plain function types are supported", at)
            params = self._values(reader, "parameters")
            self._types.append(FuncType(params, self._values(reader, "results")))

    def _values(self, reader: Reader, what: str) -> tuple[str, ...]:
        at = reader.position
        count = reader.count(what, MAX_TYPE_VALUES)
        self._type_values += count
        if self._type_values > MAX_ALL_TYPE_VALUES:
            reader.fail(f"more than {MAX_ALL_TYPE_VALUES} parameters and results of all types", at)
        return tuple(reader.value_type() for _ in range(count))

    def _type_index(self, reader: Reader) -> FuncType:
        at = reader.position
        index = reader.u32()
        if index >= len(self._types):
            reader.fail(f"type {index} of {len(self._types)}", at)
        return self._types[index]

    def _import_section(self, reader: Reader) -> None:
        for _ in range(reader.count("imports", MAX_MODULE_IMPORTS)):
            module, name = reader.name(), reader.name()
            kind = self._kind(reader)
            self._counts[kind] += 1
            function = None
            if kind is Kind.FUNCTION:
                function = self._type_index(reader)
                self._functions.append(function)
            elif kind is Kind.TABLE:
                self._table(reader)
            elif kind is Kind.MEMORY:
                self._memory(reader)
            else:
                self._global_type(reader)
            self._imports.append(Import(module, name, kind, function))

    def _kind(self, reader: Reader) -> Kind:
        at = reader.position
        code = reader.byte()
        if code not in Kind.__members__.values():
            reader.fail(f"kind 0x{code:02x} is not supported (allowed: function, table, memory, global)", at)
        return Kind(code)

    def _function_section(self, reader: Reader) -> None:
        self._functions += [self._type_index(reader) for _ in range(reader.count("functions", MAX_FUNCTIONS))]
        self._counts[Kind.FUNCTION] = len(self._functions)

    def _table_section(self, reader: Reader) -> None:
        self._tables = [self._table(reader) for _ in range(reader.count("tables", MAX_TABLES))]
        self._counts[Kind.TABLE] += len(self._tables)

    def _table(self, reader: Reader) -> Limits:
        at = reader.position
        if reader.byte() not in (0x70, 0x6F):
            reader.fail("only tables of funcref or externref without initialiser are supported", at)
        return self._limits(reader, "table")

    def _memory_section(self, reader: Reader) -> None:
        self._memories = [self._memory(reader) for _ in range(reader.count("memories", MAX_MEMORIES))]
        self._counts[Kind.MEMORY] += len(self._memories)

    def _memory(self, reader: Reader) -> Limits:
        at = reader.position
        limits = self._limits(reader, "memory")
        if max(limits.minimum, limits.maximum or 0) > 65536:
            reader.fail("a memory has at most 65536 pages", at)
        return limits

    def _limits(self, reader: Reader, what: str) -> Limits:
        at = reader.position
        flags = reader.byte()
        if flags not in (0, 1):
            reader.fail(f"only plain 32-bit {what} limits are supported: not shared, not 64-bit, no page size", at)
        minimum = reader.u32()
        maximum = reader.u32() if flags else None
        if maximum is not None and maximum < minimum:
            reader.fail(f"{what} maximum {maximum} is below its minimum {minimum}", at)
        return Limits(minimum, maximum)

    def _global_type(self, reader: Reader) -> None:
        reader.value_type()
        at = reader.position
        if reader.byte() not in (0, 1):
            reader.fail("global is neither constant nor mutable", at)

    def _global_section(self, reader: Reader) -> None:
        # Only the number matters here, and it bounds nothing but indices; the initialisers are left to the
        # engine.
        self._counts[Kind.GLOBAL] += reader.count("globals", 1_000_000)
        reader.skip(reader.left)

    def _export_section(self, reader: Reader) -> None:
        names: set[str] = set()
        for _ in range(reader.count("exports", MAX_EXPORTS)):
            at = reader.position
            name = reader.name()
            if name in names:
                reader.fail(f"export {name[:64]!r} is repeated", at)
            names.add(name)
            kind = self._kind(reader)
            index = self._index(reader, kind)
            function = self._functions[index] if kind is Kind.FUNCTION else None
            self._exports.append(Export(name, kind, index, function))

    def _index(self, reader: Reader, kind: Kind) -> int:
        at = reader.position
        index = reader.u32()
        if index >= self._counts[kind]:
            reader.fail(f"{kind.name.lower()} {index} of {self._counts[kind]}", at)
        return index

    def _start_section(self, reader: Reader) -> None:
        at = reader.position
        self._start = self._index(reader, Kind.FUNCTION)
        if self._functions[self._start] != FuncType():
            reader.fail(f"start function has type {self._functions[self._start]}, expected {FuncType()}", at)
