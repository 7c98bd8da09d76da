"""The bundle format: what is written is read, what is damaged is refused."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxd.errors import InternalError, WorkerError
from sandboxd.limits import MIB
from sandboxd.vm.abi import AbiVersion, Binding
from sandboxd.vm.artefacts import BLOB_NAMES, blob, read_manifest, write_bundle
from sandboxd.vm.identity import cache_key, engine_identity, settings_sha256
from sandboxd.vm.link import plan
from sandboxd.vm.wasm_binary import parse
from tests.support.modules import guest

DIGEST = "ab" * 32
LINK = plan(
    parse(
        guest(
            '(func (export "proxy_on_log") (param i32))',
            imports='(import "env" "proxy_done" (func (result i32)))',
        )
    ),
    frozenset({"proxy_on_log"}),
    MIB,
    {},
)


def a_bundle() -> bytes:
    """Return a small bundle."""
    return write_bundle(
        LINK,
        module_sha256=DIGEST,
        engine="wasmtime-x",
        settings=DIGEST,
        blobs={name: name.encode() * 3 for name in BLOB_NAMES},
    )


def remade(**changes: Any) -> bytes:
    """Return the bundle with fields of its manifest changed."""
    data = a_bundle()
    length = struct.unpack_from("<I", data, 8)[0]
    fields = json.loads(data[12 : 12 + length]) | changes
    text = json.dumps(fields).encode()
    return data[:8] + struct.pack("<I", len(text)) + text + data[12 + length :]


def placed(offset: int, length: int) -> dict[str, list[int]]:
    """Return the places of blobs that all lie there."""
    return {name: [offset, length] for name in BLOB_NAMES}


def test_round_trip() -> None:
    """Everything that is written comes back."""
    data = a_bundle()

    manifest = read_manifest(data)

    assert manifest.abi is AbiVersion.V0_2_1
    assert (manifest.module_sha256, manifest.engine, manifest.settings_sha256) == (
        DIGEST,
        "wasmtime-x",
        DIGEST,
    )
    assert manifest.allocator == "proxy_on_memory_allocate"
    assert manifest.memory_pages == (1, 16)
    assert manifest.callbacks == manifest.granted_callbacks == ("proxy_on_log",)
    assert [(item.module, item.name, item.binding) for item in manifest.imports] == [
        ("env", "proxy_done", Binding.DENIED)
    ]
    for name in BLOB_NAMES:
        assert bytes(blob(memoryview(data), manifest, name)) == name.encode() * 3


def test_a_bundle_holds_all_modules() -> None:
    """Forgetting one is a bug of ours."""
    with pytest.raises(InternalError, match="hostcore"):
        write_bundle(LINK, module_sha256=DIGEST, engine="x", settings=DIGEST, blobs={"guest": b""})


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "size"),
        (b"SBXB" + bytes(8), "not a bundle of version 1"),
        (b"SBXB\1\0\0\0\xff\xff\0\0{}", "manifest: 65535 bytes"),
        (b"SBXB\1\0\0\0\2\0\0\0[]", "not an object"),
        (b"SBXB\1\0\0\0\1\0\0\0{", "not JSON"),
        (b"SBXB\1\0\0\0" + struct.pack("<I", 100_000) + b"[" * 100_000, "not JSON"),
        (remade(abi="9"), "abi"),
        (remade(abi=["0.2.1"]), "abi"),
        (remade(module_sha256="AB" * 32), "module_sha256: not 64 hex digits"),
        (remade(engine="a\nb"), "engine"),
        (remade(allocator="free"), "allocator"),
        (remade(memory_pages=[1]), "memory_pages"),
        (remade(memory_pages=[2, 1]), "minimum above maximum"),
        (remade(memory_pages=[True, 1]), "memory_pages"),
        (remade(memory_pages=[0, 65537]), "memory_pages"),
        (remade(callbacks=["proxy_on_nothing"]), "callbacks"),
        (remade(callbacks=["proxy_on_log", "proxy_on_log"]), "callbacks"),
        (remade(callbacks=[["proxy_on_log"]]), "callbacks"),
        (remade(imports=[1]), "imports"),
        (remade(imports=[{"module": "env", "name": "x", "binding": "host"}]), "unknown function"),
        (remade(imports=[{"module": "env", "name": "proxy_log", "binding": "yes"}]), "binding"),
        (remade(imports=[{}] * 1001), "imports: not a list of at most 1000"),
        (remade(blobs={}), "blobs"),
        (remade(blobs=placed(0, 10_000)), "blobs"),
        (remade(blobs=placed(100, 60)), "reaches past the end"),
        (remade(blobs=placed(-1, 1)), "blobs"),
    ],
)
def test_damaged_bundles_are_refused(data: bytes, text: str) -> None:
    """Each field by its name."""
    with pytest.raises(WorkerError, match=text):
        read_manifest(data)


@given(st.lists(st.tuples(st.integers(0, 900), st.integers(0, 255)), min_size=1, max_size=8))
@settings(max_examples=400, deadline=None)
def test_any_damage_is_read_or_refused(edits: list[tuple[int, int]]) -> None:
    """No other exception."""
    data = bytearray(a_bundle())
    for position, value in edits:
        data[position % len(data)] = value
    try:
        manifest = read_manifest(bytes(data))
    except WorkerError:
        return
    for name in BLOB_NAMES:
        assert len(blob(memoryview(bytes(data)), manifest, name)) == manifest.blobs[name][1]


def test_cache_keys_differ_by_everything_that_matters() -> None:
    """Module, engine, capabilities, memory limit, hostcore."""
    base = settings_sha256(frozenset({"a"}), 1)

    assert base != settings_sha256(frozenset({"b"}), 1)
    assert base != settings_sha256(frozenset({"a"}), 2)
    assert len({cache_key("m", "e", "s"), cache_key("n", "e", "s"), cache_key("m", "f", "s")}) == 3
    assert engine_identity(b"one") != engine_identity(b"two")
