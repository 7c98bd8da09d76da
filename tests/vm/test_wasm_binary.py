"""Reading a guest's binary: what is found, and that hostile bytes are only ever rejected."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wasmtime import wat2wasm

from sandboxd.errors import ModuleRejected
from sandboxd.limits import MAX_MODULE_IMPORTS
from sandboxd.vm.abi import AbiVersion, FuncType
from sandboxd.vm.wasm_binary import MAX_ALL_TYPE_VALUES, MAX_SECTIONS, abi_markers, abi_version, parse
from sandboxd.vm.wasm_module import Export, Import, Kind, Limits
from sandboxd.vm.wasm_rewrite import rewrite, start_to_export
from tests.support.guests import GUESTS
from tests.support.modules import guest, misdeed

HEADER = b"\0asm\1\0\0\0"


def wat(text: str) -> bytes:
    """Assemble."""
    return bytes(wat2wasm(text))


def section(number: int, body: bytes) -> bytes:
    """Return a section shorter than 128 bytes."""
    return bytes([number, len(body)]) + body


def test_reads_what_the_linker_needs() -> None:
    """Imports, exports with their types, memories, tables and the start function."""
    module = parse(
        wat(
            """(module
            (import "env" "proxy_log" (func (param i32 i32 i32) (result i32)))
            (import "env" "g" (global i64))
            (memory (export "memory") 2 7)
            (table (export "t") 3 funcref)
            (global (export "h") (mut i32) (i32.const 1))
            (func $s)
            (func (export "f") (param i64 f32 f64) (result i32) (i32.const 0))
            (start $s))"""
        )
    )

    assert module.imports == (
        Import("env", "proxy_log", Kind.FUNCTION, FuncType(("i32",) * 3, ("i32",))),
        Import("env", "g", Kind.GLOBAL, None),
    )
    assert module.memories == (Limits(2, 7),)
    assert module.tables == (Limits(3),)
    assert module.start == 1
    assert module.exports == (
        Export("memory", Kind.MEMORY, 0, None),
        Export("t", Kind.TABLE, 0, None),
        Export("h", Kind.GLOBAL, 1, None),
        Export("f", Kind.FUNCTION, 2, FuncType(("i64", "f32", "f64"), ("i32",))),
    )


@pytest.mark.parametrize(
    ("path", "version"),
    [
        ("rust/http_headers", AbiVersion.V0_2_1),
        ("go/go_filter", AbiVersion.V0_2_0),
        ("assemblyscript/as_filter", AbiVersion.V0_2_0),
        ("c/c_abi_0_1_0", AbiVersion.V0_1_0),
    ],
)
def test_reads_real_guests(path: str, version: AbiVersion) -> None:
    """Modules of four toolchains are read and have the ABI version that their SDK declares."""
    assert abi_version(parse((GUESTS / f"{path}.wasm").read_bytes())) is version


def test_first_of_two_markers_counts() -> None:
    """The order of the export section decides, not the higher version."""
    module = parse(
        guest(
            '(func (export "proxy_abi_version_0_1_0"))',
            marker='(func (export "proxy_abi_version_0_2_0"))',
        )
    )

    assert abi_version(module) is AbiVersion.V0_2_0
    assert abi_markers(module) == (AbiVersion.V0_2_0, AbiVersion.V0_1_0)


@pytest.mark.parametrize(
    ("marker", "text"),
    [
        ("", "exports no function of such a name"),
        ('(func (export "proxy_abi_version_0_3_0"))', "it exports 'proxy_abi_version_0_3_0'"),
        ('(global (export "proxy_abi_version_0_2_1") i32 (i32.const 0))', "as a function"),
    ],
)
def test_no_known_marker_is_rejected(marker: str, text: str) -> None:
    """The text says what was found and what would do."""
    with pytest.raises(ModuleRejected, match=text) as caught:
        abi_version(parse(guest(marker=marker)))
    assert "proxy_abi_version_0_2_1" in str(caught.value)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "not a core WebAssembly module"),
        (b"\x7fELF" + bytes(60), "not a core WebAssembly module"),
        (b"\0asm\x0d\0\1\0", "not a core WebAssembly module"),  # a component
        (HEADER + b"\x63\0", "section header, byte 8: section id 99 is not supported"),
        (HEADER + b"\1\x80\x80\x80\x80\x80\0", "longer than 5 bytes"),
        (HEADER + b"\1\xff\xff\xff\xff\x7f", "does not fit in 32 bits"),
        (HEADER + b"\1\5\0", "5 bytes are announced and 1 follow"),
        (HEADER + section(1, b"\0") * 2, "type section is repeated or out of order"),
        (HEADER + section(2, b"\0") + section(1, b"\0"), "out of order"),
        (HEADER + section(1, b"\1\x5f\0"), "type section, byte 11: only plain function types"),
        (HEADER + section(1, b"\1\x60\1\x01\0"), "value type 0x01 is not supported"),
        (HEADER + section(1, b"\0\0"), "1 bytes too many"),
        (HEADER + section(2, b"\xe9\7" + bytes(9)), f"at most {MAX_MODULE_IMPORTS} are accepted"),
        (HEADER + section(2, b"\1\1m\1n\0\0"), "type 0 of 0"),
        (HEADER + section(2, b"\1\1\xff\1n\0\0"), "import section, byte 11: name is not UTF-8"),
        (HEADER + section(2, b"\1\1m\1n\4\0"), "kind 0x04 is not supported"),
        (HEADER + section(5, b"\1\3\1\2"), "not shared"),
        (HEADER + section(5, b"\1\4\1"), "not 64-bit"),
        (HEADER + section(5, b"\1\0\x81\x80\4"), "at most 65536 pages"),
        (HEADER + section(5, b"\1\1\2\1"), "maximum 1 is below its minimum 2"),
        (HEADER + section(7, b"\1\1x\0\0"), "function 0 of 0"),
        (HEADER + section(5, b"\1\0\1") + section(7, b"\2\1x\2\0\1x\2\0"), "export 'x' is repeated"),
        (HEADER + section(8, b"\0"), "start section, byte 10: function 0 of 0"),
        (
            HEADER + section(1, b"\1\x60\1\x7f\0") + section(3, b"\1\0") + section(8, b"\0"),
            r"start function has type \(i32\)->\(\)",
        ),
    ],
)
def test_malformed_binaries_are_rejected_with_their_place(data: bytes, text: str) -> None:
    """Each refusal names the section, the byte, and what is wrong there."""
    with pytest.raises(ModuleRejected, match=text):
        parse(data)


def test_the_number_of_sections_is_bounded() -> None:
    """An empty one is three bytes of the file, and more than a hundred of memory and a microsecond here."""
    least = section(0, b"\0")

    assert len(parse(HEADER + least * MAX_SECTIONS).sections) == MAX_SECTIONS
    place = f"section header, byte {len(HEADER) + 3 * MAX_SECTIONS}: more than {MAX_SECTIONS} sections"
    with pytest.raises(ModuleRejected, match=place):
        parse(HEADER + least * (MAX_SECTIONS + 1))


def test_the_types_values_are_bounded_in_all() -> None:
    """Each is one byte of the file, and a call here."""
    thousand = b"\x60\xe8\x07" + b"\x7f" * 1000 + b"\0"

    def types(count: int) -> bytes:
        body = bytes([count & 0x7F | 0x80, count >> 7]) + thousand * count
        length = bytes([len(body) >> shift & 0x7F | 0x80 for shift in (0, 7, 14)]) + bytes([len(body) >> 21])
        return HEADER + b"\1" + length + body

    most = MAX_ALL_TYPE_VALUES // 1000
    parse(types(most))
    with pytest.raises(ModuleRejected, match=f"type section, byte .*more than {MAX_ALL_TYPE_VALUES} parameters"):
        parse(types(most + 1))


def test_start_function_becomes_an_export() -> None:
    """The engine accepts the result, and instantiating it runs nothing."""
    from wasmtime import Engine, Instance, Module, Store

    data = wat(
        """(module (global (export "ran") (mut i32) (i32.const 0))
        (func $s (global.set 0 (i32.const 1))) (start $s))"""
    )

    store = Store(Engine())
    exports = Instance(store, Module(store.engine, start_to_export(data)), []).exports(store)
    before = exports["ran"].value(store)
    exports["__sandboxd_start"](store)

    assert (before, exports["ran"].value(store)) == (0, 1)
    assert parse(start_to_export(data)).start is None


def test_start_function_of_a_module_without_exports_becomes_its_only_export() -> None:
    """The export section is made where it has to stand."""
    changed = parse(start_to_export(wat("(module (func $s) (start $s))")))

    assert [export.name for export in changed.exports] == ["__sandboxd_start"]


def test_start_function_collides_with_an_export() -> None:
    """The linker's own name is not up for grabs."""
    with pytest.raises(ModuleRejected, match="__sandboxd_start"):
        start_to_export(wat('(module (func $s (export "__sandboxd_start")) (start $s))'))


def test_custom_sections_go_but_for_names() -> None:
    """A precompiled section, which other hosts would load as machine code, does not reach the engine."""
    custom = b"\x16\x15precompiled_v8_linux" + b"!"
    names = section(0, b"\4name\1\2\0\0")
    data = HEADER + section(0, custom[1:]) + names

    assert start_to_export(data) == HEADER + names


@pytest.mark.parametrize(("declared", "maximum"), [("1", 4), ("1 2", 2), ("1 9", 4)])
def test_memory_maximum_becomes_the_policys(declared: str, maximum: int) -> None:
    """The smaller of the two counts."""
    changed = rewrite(parse(wat(f"(module (memory {declared}))")), max_pages=4)

    assert parse(changed).memories == (Limits(1, maximum),)


def test_memory_that_begins_too_large_is_rejected() -> None:
    """A minimum above the limit cannot be mended."""
    with pytest.raises(ModuleRejected, match="begins with 5 pages, the limit is 4"):
        rewrite(parse(wat("(module (memory 5))")), max_pages=4)


def handle(data: bytes) -> None:
    """Do all that is done with a module before it is compiled; only ModuleRejected may come out."""
    try:
        module = parse(data)
        abi_markers(module)
        abi_version(module)
        rewrite(module, 1024)
    except ModuleRejected as error:
        if not str(error).isprintable():
            raise AssertionError(repr(error)) from None


@given(st.binary(max_size=200))
@settings(max_examples=500, deadline=None)
def test_arbitrary_bytes_are_only_rejected(data: bytes) -> None:
    """No other exception, whatever the bytes."""
    handle(data)
    handle(HEADER + data)


SEEDS = [misdeed("host_call_in_start_section"), misdeed("two_memories"), misdeed("imported_memory"), guest()]


@given(
    st.sampled_from(SEEDS),
    st.lists(st.tuples(st.integers(8, 200), st.integers(0, 255)), max_size=6),
    st.integers(0, 200),
)
@settings(max_examples=1000, deadline=None)
def test_damaged_modules_are_read_or_rejected(seed: bytes, edits: list[tuple[int, int]], cut: int) -> None:
    """Bytes changed and the end cut off: still no other exception."""
    data = bytearray(seed)
    for position, value in edits:
        if position < len(data):
            data[position] = value
    handle(bytes(data[: len(data) - cut]))
    handle(bytes(data))
