"""Which modules link, how, and what is said of those that do not."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wasmtime import Module, wat2wasm

from sandboxd.errors import ModuleRejected
from sandboxd.limits import MIB
from sandboxd.policy import capability_names
from sandboxd.vm import abi
from sandboxd.vm.abi import AbiVersion, Binding
from sandboxd.vm.engine import new_engine
from sandboxd.vm.link import LinkPlan, plan
from sandboxd.vm.link_modules import adapter_wat, fixup_wat, trampolines_wat
from sandboxd.vm.link_problems import problems
from sandboxd.vm.wasm_binary import parse
from sandboxd.vm.wasm_rewrite import rewrite
from tests.support.guests import GUESTS
from tests.support.modules import EVERYTHING, guest, host, misdeed

HOST = parse(host().hostcore).functions()


def linked(module: bytes, granted: frozenset[str] = EVERYTHING, memory_bytes: int = 16 * MIB) -> LinkPlan:
    """Plan with the real hostcore."""
    return plan(parse(module), granted, memory_bytes, HOST)


def test_hostcore_has_every_function_of_the_tables() -> None:
    """With the signatures of the tables; nothing that the ABI has is missing."""
    tables = abi.PROXY_FUNCTIONS | abi.EXTRA_FUNCTIONS | abi.WASI_FUNCTIONS
    missing = {name for name, function in tables.items() if HOST.get(name) != function}

    assert missing <= {"envoy_resolve_dns"}


def test_tables_name_what_policies_can_grant() -> None:
    """The capability names and the linker's tables are the same sets."""
    assert set(abi.PROXY_FUNCTIONS) == capability_names.HOST_FUNCTIONS
    assert set(abi.WASI_FUNCTIONS) == capability_names.WASI_FUNCTIONS
    assert set(abi.CALLBACKS) == capability_names.CALLBACKS


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("unknown_import", r"import env\.\w+: no host function of that name"),
        ("mistyped_import", r"import env\.\w+ has type .*, expected \(.*\)->\(i32\)"),
        ("imported_memory", "is a memory; only functions can be imported"),
        ("imported_global", "is a global; only functions can be imported"),
        ("no_memory", "does not export its memory|has no memory of its own"),
        ("no_allocator", "exports no allocator"),
        ("no_marker", "missing or unknown Proxy-Wasm ABI version"),
        ("marker_not_function", "missing or unknown Proxy-Wasm ABI version"),
        ("two_memories", "has 2 memories, exactly one is accepted"),
        ("wrong_callback_type", r"export proxy_on_\w+ has type .*, expected"),
        ("memory_too_big", "memory begins with .* pages"),
    ],
)
def test_misdeeds_are_rejected(name: str, text: str) -> None:
    """Every load-time misdeed has a text that names what is wrong and what would be right."""
    with pytest.raises(ModuleRejected, match=text):
        linked(misdeed(name))


@pytest.mark.parametrize(
    ("module", "text"),
    [
        (
            guest(imports='(import "gojs" "x" (func))'),
            r"import gojs\.x: unknown module \(allowed: env, wasi_snapshot_preview1, wasi_unstable\)",
        ),
        (
            guest(imports='(import "env" "__indirect_function_table" (table 1 funcref))'),
            "is a table; only functions",
        ),
        (guest(memory="(memory 1)"), "does not export its memory"),
        (guest('(global (export "proxy_on_done") i32 (i32.const 0))'), "is a global, expected a function"),
        (
            guest(allocator='(func (export "malloc") (param i64) (result i32) (i32.const 0))'),
            r"export malloc has type \(i64\)->\(i32\), expected \(i32\)->\(i32\)",
        ),
        (guest('(func (export "_initialize") (result i32) (i32.const 0))'), "export _initialize has type"),
        (guest('(func (export "__sandboxd_start"))'), "a name that the linker needs"),
        (
            guest(
                '(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) (i32.const 0))',
                marker='(func (export "proxy_abi_version_0_1_0"))',
            ),
            r"expected \(i32 i32\)->\(i32\)",
        ),
    ],
)
def test_wrong_modules_are_rejected(module: bytes, text: str) -> None:
    """Further refusals, each by its own text."""
    with pytest.raises(ModuleRejected, match=text):
        linked(module)


def test_all_problems_are_named_at_once() -> None:
    """An operator need not mend and try again for each."""
    module = guest(imports='(import "env" "nothing" (func))', marker="", memory="", allocator="")

    assert len(list(problems(parse(module), MIB))) == 4


@pytest.mark.parametrize("name", ["nothing", "\N{SNOWMAN}" * 64])
def test_text_of_many_problems_is_bounded(name: str) -> None:
    """It goes into control frames and logs; the first problems are enough to begin with."""
    module = guest(imports="".join(f'(import "env" "{number} {name}" (func))' for number in range(900)))
    with pytest.raises(ModuleRejected) as caught:
        linked(module)

    text = str(caught.value)
    assert text.startswith(f"import env.0 {name[:62]}: no host function of that name; ")
    assert text.endswith("; and more")
    assert text.count("import env.") <= 20
    assert len(text.encode()) <= 4096


def test_hostile_names_are_cleaned() -> None:
    """Control characters of an import's name do not reach an error text."""
    name = r"\1b[31m\0a" + "x" * 200

    with pytest.raises(ModuleRejected) as caught:
        linked(guest(imports=f'(import "env" "{name}" (func))'))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 200


def test_bindings_follow_the_grant() -> None:
    """Granted is host, withheld is denied; what no capability names is never withheld."""
    module = guest(
        imports="""
        (import "env" "proxy_log" (func (param i32 i32 i32) (result i32)))
        (import "env" "proxy_done" (func (result i32)))
        (import "wasi_unstable" "fd_write" (func (param i32 i32 i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "fd_write" (func (param i32 i32 i32 i32) (result i32)))
        (import "env" "emscripten_notify_memory_growth" (func (param i32)))
        (import "env" "envoy_resolve_dns" (func (param i32 i32 i32) (result i32)))"""
    )

    link = linked(module, frozenset({"proxy_log", "fd_write"}))

    assert [item.binding for item in link.imports][:5] == [
        Binding.HOST,
        Binding.DENIED,
        Binding.HOST,
        Binding.HOST,
        Binding.HOST,
    ]
    assert link.imports[5].binding is not Binding.DENIED


def test_callbacks_that_are_not_granted_are_absent() -> None:
    """They are known to exist, but the adapter does not call them."""
    module = guest('(func (export "proxy_on_log") (param i32))', '(func (export "proxy_on_delete") (param i32))')

    link = linked(module, frozenset({"proxy_on_delete"}))

    assert link.callbacks == ("proxy_on_log", "proxy_on_delete")
    assert link.granted_callbacks == ("proxy_on_delete",)
    assert '"guest" "proxy_on_delete"' in adapter_wat(link)
    assert '"guest" "proxy_on_log"' not in adapter_wat(link)


@pytest.mark.parametrize(
    ("exports", "expected"),
    [
        (("_initialize", "_start", "main"), ("_initialize", "main")),
        (("_initialize", "__main_void"), ("_initialize", "__main_void")),
        (("_initialize", "main", "__main_void"), ("_initialize", "main")),
        (("_start", "main"), ("_start",)),
        (("main",), ()),
    ],
)
def test_start_functions(exports: tuple[str, ...], expected: tuple[str, ...]) -> None:
    """A reactor's ``_initialize`` and then its main; a command's ``_start``; never main alone."""
    functions = {
        "_initialize": '(func (export "_initialize"))',
        "_start": '(func (export "_start"))',
        "main": '(func (export "main") (param i32 i32) (result i32) (i32.const 0))',
        "__main_void": '(func (export "__main_void") (result i32) (i32.const 0))',
    }

    assert linked(guest(*(functions[name] for name in exports))).start_functions == expected


def test_specified_allocator_is_preferred() -> None:
    """TinyGo exports both; its malloc leaks."""
    module = guest('(func (export "malloc") (param i32) (result i32) (i32.const 0))')

    assert linked(module).allocator == "proxy_on_memory_allocate"


@pytest.mark.parametrize(
    "path",
    [
        "rust/http_headers",
        "rust/http_body",
        "go/go_filter",
        "assemblyscript/as_filter",
        "c/c_abi_0_1_0",
        "misdeeds/host_call_in_start_section",
        "misdeeds/two_markers",
    ],
)
@pytest.mark.parametrize("granted", [EVERYTHING, frozenset[str]()])
def test_generated_modules_are_valid(path: str, granted: frozenset[str]) -> None:
    """For real guests, with everything granted and with nothing."""
    link = linked((GUESTS / f"{path}.wasm").read_bytes(), granted)

    for text in (trampolines_wat(link), adapter_wat(link), fixup_wat(link)):
        Module.validate(new_engine(), bytes(wat2wasm(text)))


def test_memory_export_may_have_any_name() -> None:
    """The name is quoted byte by byte in the adapter."""
    link = linked(guest(memory=r'(memory (export "\22) (export \22x\c3\a9") 1)'))

    Module.validate(new_engine(), bytes(wat2wasm(adapter_wat(link))))


def test_abi_0_1_0_headers_callback_loses_its_third_argument() -> None:
    """hostcore always passes three."""
    module = guest(
        '(func (export "proxy_on_request_headers") (param i32 i32) (result i32) (i32.const 0))',
        marker='(func (export "proxy_abi_version_0_1_0"))',
    )
    link = linked(module)

    assert link.abi is AbiVersion.V0_1_0
    assert "(call $proxy_on_request_headers (local.get 0) (local.get 1))" in adapter_wat(link)


@given(
    st.lists(st.sampled_from(sorted(abi.PROXY_FUNCTIONS | abi.EXTRA_FUNCTIONS)), max_size=20),
    st.lists(st.sampled_from(sorted(abi.WASI_FUNCTIONS)), max_size=20),
    st.frozensets(st.sampled_from(sorted(EVERYTHING))),
)
@settings(max_examples=60, deadline=None)
def test_any_imports_and_any_grant_link(proxy: list[str], wasi: list[str], granted: frozenset[str]) -> None:
    """
    Whatever a module imports from the tables, repeats included, and whatever is granted: valid modules come
    out.
    """
    wanted = [("env", name) for name in proxy] + [("wasi_snapshot_preview1", name) for name in wasi]
    lines = []
    for module_name, name in wanted:
        function = abi.IMPORT_MODULES[module_name][name]
        params = f"(param {' '.join(function.params)})" if function.params else ""
        results = f"(result {' '.join(function.results)})" if function.results else ""
        lines.append(f'(import "{module_name}" "{name}" (func {params} {results}))')
    module = parse(guest(imports="\n".join(lines)))
    link = plan(module, granted, MIB, HOST)

    for text in (trampolines_wat(link), fixup_wat(link)):
        Module.validate(new_engine(), bytes(wat2wasm(text)))
    Module.validate(new_engine(), rewrite(module, link.memory_pages[1]))
