"""
A guest's binary as data: what `sandboxd.vm.wasm_binary.parse` returns. Pure; anybody may import it.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from sandboxd.vm.abi import FuncType


class SectionId(enum.IntEnum):
    """The sections of the binary format."""

    CUSTOM = 0
    TYPE = 1
    IMPORT = 2
    FUNCTION = 3
    TABLE = 4
    MEMORY = 5
    GLOBAL = 6
    EXPORT = 7
    START = 8
    ELEMENT = 9
    CODE = 10
    DATA = 11
    DATA_COUNT = 12


class Kind(enum.IntEnum):
    """What is imported or exported."""

    FUNCTION = 0
    TABLE = 1
    MEMORY = 2
    GLOBAL = 3


@dataclass(frozen=True, slots=True)
class Section:
    """
    One section. ``start`` is its id byte, ``body`` its first byte of content, ``end`` the byte after it.
    """

    id: SectionId
    name: str
    """Of a custom section, else empty."""
    start: int
    body: int
    end: int


@dataclass(frozen=True, slots=True)
class Limits:
    """Size of a memory in pages, or of a table in elements."""

    minimum: int
    maximum: int | None = None


@dataclass(frozen=True, slots=True)
class Import:
    """One import; ``type`` is None if it is not a function."""

    module: str
    name: str
    kind: Kind
    type: FuncType | None


@dataclass(frozen=True, slots=True)
class Export:
    """One export; ``type`` is None if it is not a function."""

    name: str
    kind: Kind
    index: int
    type: FuncType | None


@dataclass(frozen=True, slots=True)
class WasmModule:
    """A module as `parse` read it."""

    data: bytes
    sections: tuple[Section, ...]
    imports: tuple[Import, ...]
    memories: tuple[Limits, ...]
    """Memories that the module defines itself."""
    tables: tuple[Limits, ...]
    exports: tuple[Export, ...]
    start: int | None
    """Index of the start function."""

    def export(self, name: str) -> Export | None:
        """Return the export of that name; names are unique."""
        return next((export for export in self.exports if export.name == name), None)

    def functions(self) -> dict[str, FuncType]:
        """Return the exported functions by name."""
        return {export.name: export.type for export in self.exports if export.type is not None}
