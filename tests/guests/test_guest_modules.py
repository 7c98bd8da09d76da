"""The built guest modules are what their sources and the README say they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import wasmtime

GUESTS = Path(__file__).parent
MODULES = sorted(GUESTS.rglob("*.wasm"))
MISDEEDS = {path.stem: path for path in MODULES if path.parent.name == "misdeeds"}

START_SECTION = 8
PAGE_BYTES = 65536

ABI_MARKERS = ("proxy_abi_version_0_1_0", "proxy_abi_version_0_2_0", "proxy_abi_version_0_2_1")
INITIALISERS = ("_initialize", "_start")
ALLOCATORS = ("proxy_on_memory_allocate", "malloc")

RUST_WASI = {"environ_get", "environ_sizes_get", "fd_write", "proc_exit"}
GO_WASI = {
    "args_get", "args_sizes_get", "clock_time_get", "environ_get", "environ_sizes_get", "fd_close",
    "fd_fdstat_get", "fd_fdstat_set_flags", "fd_prestat_dir_name", "fd_prestat_get", "fd_write",
    "poll_oneoff", "proc_exit", "random_get", "sched_yield",
}  # fmt: skip
FILES_WASI = {
    "fd_close", "fd_fdstat_get", "fd_filestat_get", "fd_prestat_dir_name", "fd_prestat_get", "fd_read", "fd_readdir",
    "path_create_directory", "path_filestat_get", "path_open", "path_remove_directory", "path_rename",
    "path_unlink_file",
}  # fmt: skip


@dataclass(frozen=True)
class Expected:
    """What a filter asks of a host: its ABI, how it is initialised, its imports besides ``env``."""

    abi: str
    init: tuple[str, ...]
    allocators: tuple[str, ...]
    wasi_module: str = "wasi_snapshot_preview1"
    wasi: frozenset[str] = frozenset()


def _rust(*more: str) -> Expected:
    return Expected("0_2_1", ("_initialize",), ALLOCATORS[:1], wasi=frozenset({*RUST_WASI, *more}))


GO_SOURCES = {"go_filter": GUESTS / "go/main.go", "go_files": GUESTS / "go/files/main.go"}
"""A Go module is named by its folder, not by a file."""

FILTERS = {
    "http_headers": _rust(),
    "http_config": _rust(),
    "http_body": _rust(),
    "token_gate": _rust(),
    "callouts": _rust(),
    "probe": _rust("clock_time_get", "poll_oneoff", "random_get"),
    "c_add_header": Expected("0_2_1", (), ALLOCATORS[:1]),
    "c_json_body": Expected("0_2_1", (), ALLOCATORS[:1]),
    "c_counter": Expected("0_2_1", (), ALLOCATORS[:1]),
    "c_bench": Expected("0_2_1", (), ALLOCATORS[:1]),
    "c_access_log": Expected("0_2_1", (), ALLOCATORS[:1]),
    "c_log_shipper": Expected("0_2_1", (), ALLOCATORS[:1]),
    "c_twenty_calls": Expected("0_2_1", (), ALLOCATORS[:1]),
    "c_slow_body": Expected("0_2_1", (), ALLOCATORS[:1]),
    "c_upper_body": Expected("0_2_1", (), ALLOCATORS[:1]),
    "c_gate": Expected("0_2_1", (), ALLOCATORS[:1]),
    "c_all_calls": Expected("0_2_1", (), ALLOCATORS[:1]),
    "c_all_on": Expected("0_2_1", (), ALLOCATORS[:1]),
    "c_tcp_probe": Expected("0_2_1", (), ALLOCATORS[:1]),
    "c_tcp_flow": Expected("0_2_1", (), ALLOCATORS[:1]),
    "c_state_probe": Expected("0_2_1", (), ALLOCATORS[:1]),
    "c_foreign_probe": Expected("0_2_1", (), ALLOCATORS[:1]),
    "c_rate_limiter": Expected("0_2_1", (), ALLOCATORS[:1]),
    "c_circuit_breaker": Expected("0_2_1", (), ALLOCATORS[:1]),
    "c_fault_injection": Expected("0_2_1", (), ALLOCATORS[:1]),
    "c_ext_authz": Expected("0_2_1", (), ALLOCATORS[:1]),
    "c_jwt_check": Expected("0_2_1", (), ALLOCATORS[:1]),
    "c_abi_0_1_0": Expected("0_1_0", ("_start",), ALLOCATORS),
    "files": _rust(*FILES_WASI),
    "go_files": Expected("0_2_0", ("_initialize",), ALLOCATORS[:1], wasi=frozenset(GO_WASI | FILES_WASI)),
    "go_filter": Expected("0_2_0", ("_initialize",), ALLOCATORS[:1], wasi=frozenset(GO_WASI)),
    "as_filter": Expected("0_2_0", (), ALLOCATORS[1:], "wasi_unstable", frozenset({"proc_exit"})),
}


Load = Callable[[Path], wasmtime.Module]


@pytest.fixture(scope="module")
def load() -> Iterator[Load]:
    """Return what compiles a module, each once; for looking at it, so with little effort."""
    config = wasmtime.Config()
    config.cranelift_opt_level = "none"
    config.wasm_multi_memory = True
    engine = wasmtime.Engine(config)
    modules: dict[Path, wasmtime.Module] = {}

    def compiled(path: Path) -> wasmtime.Module:
        if path not in modules:
            modules[path] = wasmtime.Module(engine, path.read_bytes())
        return modules[path]

    yield compiled
    modules.clear()


def filter_path(name: str) -> Path:
    (path,) = (path for path in MODULES if path.stem == name)
    return path


def section_ids(wasm: bytes) -> list[int]:
    """Return the ids of the sections of a module, in their order."""
    ids, at = [], 8
    while at < len(wasm):
        ids.append(wasm[at])
        size = shift = 0
        while True:
            at += 1
            size |= (wasm[at] & 0x7F) << shift
            shift += 7
            if wasm[at] < 0x80:
                break
        at += 1 + size
    return ids


def markers(module: wasmtime.Module) -> list[str]:
    return [e.name for e in module.exports if e.name in ABI_MARKERS and isinstance(e.type, wasmtime.FuncType)]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_module_is_valid_and_has_its_source(load: Load, path: Path) -> None:
    load(path)
    stem = path.with_suffix("")
    sources = [stem.with_suffix(".wat"), stem.with_suffix(".c"), stem.with_suffix(".ts"), stem / "src/lib.rs"]
    assert any(source.exists() for source in sources) or (path.stem in GO_SOURCES and GO_SOURCES[path.stem].exists())


@pytest.mark.parametrize("path", sorted(GUESTS.rglob("*.wat")), ids=lambda path: path.stem)
def test_assembled_module_is_up_to_date(path: Path) -> None:
    assert path.read_text().startswith(";; "), "the first line says what the module does wrong"
    assembled = bytes(wasmtime.wat2wasm(path.read_text()))
    assert path.with_suffix(".wasm").read_bytes() == assembled, "run tests/guests/build.sh misdeeds"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_readme_names_the_module(path: Path) -> None:
    name = f"`{path.stem}`" if path.stem in MISDEEDS else f"`{path.relative_to(GUESTS)}`"
    assert name in (GUESTS / "README.md").read_text()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_module_holds_no_path_of_the_machine_that_built_it(path: Path) -> None:
    wasm = path.read_bytes()
    assert [place for place in (b"/root/", b"/home/") if place in wasm] == []


def test_every_filter_is_expected() -> None:
    assert {path.stem for path in MODULES} - MISDEEDS.keys() == FILTERS.keys()


@pytest.mark.parametrize("name", FILTERS)
def test_filter_asks_of_a_host_what_its_toolchain_is_known_to_ask(load: Load, name: str) -> None:
    module, expected = load(filter_path(name)), FILTERS[name]
    exports = [export.name for export in module.exports]
    foreign = [(i.module, i.name) for i in module.imports if i.module != "env"]
    assert markers(module) == [f"proxy_abi_version_{expected.abi}"]
    assert tuple(name for name in INITIALISERS if name in exports) == expected.init
    assert tuple(name for name in ALLOCATORS if name in exports) == expected.allocators
    assert set(foreign) == {(expected.wasi_module, function) for function in expected.wasi}
    assert all(i.name.startswith("proxy_") for i in module.imports if i.module == "env")


def test_go_imports_the_same_function_twice(load: Load) -> None:
    names = [i.name for i in load(filter_path("go_filter")).imports]
    assert names.count("fd_write") == 2


def test_only_assemblyscript_and_three_misdeeds_have_a_start_section() -> None:
    with_start = {path.stem for path in MODULES if START_SECTION in section_ids(path.read_bytes())}
    misdeeds = {"trap_in_start_section", "loop_in_start_section", "host_call_in_start_section"}
    assert with_start == {"as_filter", *misdeeds}


UNUSUAL_EXPORTS = {
    "no_marker": ([], 1, True),
    "marker_not_function": ([], 1, True),
    "two_markers": ([ABI_MARKERS[2], ABI_MARKERS[0]], 1, True),
    "no_memory": (ABI_MARKERS[2:], 0, True),
    "two_memories": (ABI_MARKERS[2:], 2, True),
    "no_allocator": (ABI_MARKERS[2:], 1, False),
}


@pytest.mark.parametrize("name", MISDEEDS)
def test_misdeed_is_an_ordinary_module_in_all_else(load: Load, name: str) -> None:
    module = load(MISDEEDS[name])
    exports = list(module.exports)
    wanted_markers, memories, allocator = UNUSUAL_EXPORTS.get(name, (ABI_MARKERS[2:], 1, True))
    assert markers(module) == list(wanted_markers)
    assert sum(isinstance(export.type, wasmtime.MemoryType) for export in exports) == memories
    assert any(export.name in ALLOCATORS for export in exports) == allocator


def imports(load: Load, name: str) -> dict[str, object]:
    return {str(i.name): i.type for i in load(MISDEEDS[name]).imports}


def test_misdeeds_of_linking(load: Load) -> None:
    assert [*imports(load, "unknown_import")] == ["proxy_open_the_pod_bay_doors"]
    log_type = imports(load, "mistyped_import")["proxy_log"]
    assert isinstance(log_type, wasmtime.FuncType)
    assert len(log_type.params) == 2
    assert isinstance(imports(load, "imported_memory")["memory"], wasmtime.MemoryType)
    assert isinstance(imports(load, "imported_global")["answer"], wasmtime.GlobalType)


def test_memory_too_big_asks_for_two_gibibytes(load: Load) -> None:
    (memory,) = (e.type for e in load(MISDEEDS["memory_too_big"]).exports if e.name == "memory")
    assert isinstance(memory, wasmtime.MemoryType)
    assert memory.limits.min * PAGE_BYTES == 2 << 30
