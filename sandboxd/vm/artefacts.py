"""
The bundle: one file with all compiled modules of a plugin and a manifest that says what they are.

Pure. What `read_manifest` reads was written by the compiler, which has read hostile input: every field is
checked. The blobs themselves are machine code; only a worker of the tenant that owns the module may load
them.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sandboxd.errors import InternalError, WorkerError
from sandboxd.limits import MAX_MODULE_IMPORTS, MIB
from sandboxd.vm import abi
from sandboxd.vm.abi import AbiVersion, Binding

if TYPE_CHECKING:  # a worker only reads bundles
    from sandboxd.vm.link import LinkPlan

MAGIC: Final = b"SBXB"
VERSION: Final = 1
MAX_MANIFEST_BYTES: Final = 1 * MIB
MAX_BUNDLE_BYTES: Final = 512 * MIB
"""Machine code is some four times the size of its WebAssembly."""
BLOB_NAMES: Final = ("trampolines", "guest", "adapter", "membrane", "hostcore", "fixup")

_HEADER: Final = struct.Struct("<4sII")


@dataclass(frozen=True, slots=True)
class ManifestImport:
    """One import of the guest, by its index."""

    module: str
    name: str
    binding: Binding


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a bundle says of itself."""

    abi: AbiVersion
    module_sha256: str
    engine: str
    settings_sha256: str
    allocator: str
    memory_pages: tuple[int, int]
    """Minimum and maximum of the guest's memory."""
    callbacks: tuple[str, ...]
    granted_callbacks: tuple[str, ...]
    imports: tuple[ManifestImport, ...]
    blobs: Mapping[str, tuple[int, int]]
    """Name to offset from the end of the manifest, and length."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle's bytes with its manifest read."""

    data: bytes
    manifest: Manifest


def write_bundle(
    link: LinkPlan, *, module_sha256: str, engine: str, settings: str, blobs: Mapping[str, bytes]
) -> bytes:
    """
    Return a bundle.

    Args:
        link: how the guest was linked.
        module_sha256: digest of the module as the operator gave it.
        engine: the engine's identity.
        settings: see `sandboxd.vm.identity.settings_sha256`.
        blobs: compiled modules; all of `BLOB_NAMES`.
    """
    if set(blobs) != set(BLOB_NAMES):
        raise InternalError(f"a bundle holds {', '.join(BLOB_NAMES)}, not {', '.join(sorted(blobs))}")
    places: dict[str, list[int]] = {}
    offset = 0
    for name in BLOB_NAMES:
        places[name] = [offset, len(blobs[name])]
        offset += len(blobs[name])
    manifest = {
        "abi": link.abi.text,
        "module_sha256": module_sha256,
        "engine": engine,
        "settings_sha256": settings,
        "allocator": link.allocator,
        "memory_pages": list(link.memory_pages),
        "callbacks": list(link.callbacks),
        "granted_callbacks": list(link.granted_callbacks),
        "imports": [{"module": item.module, "name": item.name, "binding": item.binding.value} for item in link.imports],
        "blobs": places,
    }
    text = json.dumps(manifest, separators=(",", ":")).encode()
    return b"".join([_HEADER.pack(MAGIC, VERSION, len(text)), text, *(blobs[name] for name in BLOB_NAMES)])


def read_manifest(data: bytes | memoryview) -> Manifest:
    """
    Return a bundle's manifest.

    Raises:
        WorkerError: it is not a bundle, or a field is not what a bundle can hold.
    """
    text, room = _manifest_text(data)
    try:
        # A deep nest of brackets is a RecursionError, an enormous number a ValueError.
        fields = json.loads(text)
    except (ValueError, RecursionError):
        raise _bad("manifest", "not JSON") from None
    if not isinstance(fields, dict):
        raise _bad("manifest", "not an object")
    return Manifest(
        abi=abi.VERSIONS_BY_TEXT[_choice(fields, "abi", tuple(abi.VERSIONS_BY_TEXT))],
        module_sha256=_digest(fields, "module_sha256"),
        engine=_string(fields, "engine"),
        settings_sha256=_digest(fields, "settings_sha256"),
        allocator=_choice(fields, "allocator", tuple(abi.ALLOCATORS)),
        memory_pages=_pages(fields),
        callbacks=_callbacks(fields, "callbacks"),
        granted_callbacks=_callbacks(fields, "granted_callbacks"),
        imports=_imports(fields),
        blobs=_blobs(fields, room),
    )


def blob(data: memoryview, manifest: Manifest, name: str) -> memoryview:
    """Return one compiled module of a bundle whose manifest `read_manifest` gave."""
    start = _HEADER.size + _HEADER.unpack_from(data)[2] + manifest.blobs[name][0]
    return data[start : start + manifest.blobs[name][1]]


def _manifest_text(data: bytes | memoryview) -> tuple[bytes, int]:
    if len(data) < _HEADER.size or len(data) > MAX_BUNDLE_BYTES:
        raise _bad("size", f"{len(data)} bytes")
    magic, version, length = _HEADER.unpack_from(data)
    if magic != MAGIC or version != VERSION:
        raise _bad("header", "not a bundle of version 1")
    if length > MAX_MANIFEST_BYTES or length > len(data) - _HEADER.size:
        raise _bad("manifest", f"{length} bytes")
    return bytes(data[_HEADER.size : _HEADER.size + length]), len(data) - _HEADER.size - length


def _bad(field: str, problem: str) -> WorkerError:
    return WorkerError(f"artefact bundle: {field}: {problem}")


def _string(fields: Mapping[str, object], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or not value.isascii() or not value.isprintable() or len(value) > 512:
        raise _bad(name, "not a short printable text")
    return value


def _choice(fields: Mapping[str, object], name: str, allowed: tuple[str, ...]) -> str:
    value = _string(fields, name)
    if value not in allowed:
        raise _bad(name, f"none of {', '.join(allowed)}")
    return value


def _digest(fields: Mapping[str, object], name: str) -> str:
    value = _string(fields, name)
    if len(value) != 64 or not set(value) <= set("0123456789abcdef"):
        raise _bad(name, "not 64 hex digits")
    return value


def _list(fields: Mapping[str, object], name: str, limit: int) -> list[object]:
    value = fields.get(name)
    if not isinstance(value, list) or len(value) > limit:
        raise _bad(name, f"not a list of at most {limit}")
    return value


def _whole(value: object, field: str, limit: int) -> int:
    # bool is an int in Python, but not in a manifest.
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= limit:
        raise _bad(field, f"not a whole number from 0 to {limit}")
    return value


def _pages(fields: Mapping[str, object]) -> tuple[int, int]:
    value = _list(fields, "memory_pages", 2)
    if len(value) != 2:
        raise _bad("memory_pages", "not two numbers")
    minimum, maximum = (_whole(item, "memory_pages", 65536) for item in value)
    if minimum > maximum:
        raise _bad("memory_pages", "minimum above maximum")
    return minimum, maximum


def _callbacks(fields: Mapping[str, object], name: str) -> tuple[str, ...]:
    names = _list(fields, name, len(abi.CALLBACKS))
    checked = tuple(value for value in names if isinstance(value, str) and value in abi.CALLBACKS)
    if len(checked) != len(names) or len(set(checked)) != len(names):
        raise _bad(name, "not a list of different callback names")
    return checked


def _imports(fields: Mapping[str, object]) -> tuple[ManifestImport, ...]:
    return tuple(_import(item) for item in _list(fields, "imports", MAX_MODULE_IMPORTS))


def _import(item: object) -> ManifestImport:
    if not isinstance(item, dict):
        raise _bad("imports", "not a list of objects")
    module = _choice(item, "module", tuple(abi.IMPORT_MODULES))
    name = _string(item, "name")
    if name not in abi.IMPORT_MODULES[module]:
        raise _bad("imports", "unknown function")
    return ManifestImport(module, name, Binding(_choice(item, "binding", tuple(Binding))))


def _blobs(fields: Mapping[str, object], room: int) -> dict[str, tuple[int, int]]:
    value = fields.get("blobs")
    if not isinstance(value, dict) or set(value) != set(BLOB_NAMES):
        raise _bad("blobs", f"not exactly {', '.join(BLOB_NAMES)}")
    return {name: _place(value[name], name, room) for name in BLOB_NAMES}


def _place(value: object, name: str, room: int) -> tuple[int, int]:
    if not isinstance(value, list) or len(value) != 2:
        raise _bad(f"blobs.{name}", "not two numbers")
    offset, length = (_whole(item, f"blobs.{name}", room) for item in value)
    if offset + length > room:
        raise _bad(f"blobs.{name}", "reaches past the end")
    return offset, length
