"""
The tables of the Proxy-Wasm ABI and of WASI preview 1: names and signatures, nothing else.

Source: the Proxy-Wasm specification 0.1.0, 0.2.0 and 0.2.1, the reference host's additions, and WASI snapshot
preview 1. Pure data; anybody may import it.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class FuncType:
    """
    A function type of core WebAssembly: ``i32``, ``i64``, ``f32``, ``f64``, ``v128``, ``funcref``,
    ``externref``.
    """

    params: tuple[str, ...] = ()
    results: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"({' '.join(self.params)})->({' '.join(self.results)})"


def _type(params: str, results: str = "i32") -> FuncType:
    return FuncType(tuple(params.split()), tuple(results.split()))


def _status(i32_params: int) -> FuncType:
    """Return the shape of nearly every host function: so many ``i32``, and a status as ``i32``."""
    return FuncType(("i32",) * i32_params, ("i32",))


class AbiVersion(enum.IntEnum):
    """An ABI version; the values are those of hostcore's ``abi`` configuration entry."""

    V0_1_0 = 1
    V0_2_0 = 2
    V0_2_1 = 3

    @property
    def text(self) -> str:
        """The version as people write it: ``0.2.1``."""
        return self.name[1:].replace("_", ".")

    @property
    def marker(self) -> str:
        """The name of the export that declares this version."""
        return f"proxy_abi_version_{self.name[1:]}"


class Binding(enum.StrEnum):
    """What an import of the guest is bound to."""

    HOST = "host"
    """hostcore's function of that name."""
    DENIED = "denied"
    """A stub that reports the call and answers as the ABI has it: the policy does not grant the function."""
    UNAVAILABLE = "unavailable"
    """A stub: the ABI has the function, this version does not."""


MARKER_PREFIX: Final = "proxy_abi_version_"
MARKERS: Final = {version.marker: version for version in AbiVersion}
VERSIONS_BY_TEXT: Final = {version.text: version for version in AbiVersion}

PROXY_FUNCTIONS: Final[dict[str, FuncType]] = {
    "proxy_log": _status(3),
    "proxy_get_log_level": _status(1),
    "proxy_get_status": _status(3),
    "proxy_set_property": _status(4),
    "proxy_get_property": _status(4),
    "proxy_send_local_response": _status(8),
    "proxy_get_shared_data": _status(5),
    "proxy_set_shared_data": _status(5),
    "proxy_register_shared_queue": _status(3),
    "proxy_resolve_shared_queue": _status(5),
    "proxy_dequeue_shared_queue": _status(3),
    "proxy_enqueue_shared_queue": _status(3),
    "proxy_get_header_map_value": _status(5),
    "proxy_add_header_map_value": _status(5),
    "proxy_replace_header_map_value": _status(5),
    "proxy_remove_header_map_value": _status(3),
    "proxy_get_header_map_pairs": _status(3),
    "proxy_set_header_map_pairs": _status(3),
    "proxy_get_header_map_size": _status(2),
    "proxy_get_buffer_status": _status(3),
    "proxy_get_buffer_bytes": _status(5),
    "proxy_set_buffer_bytes": _status(5),
    "proxy_http_call": _status(10),
    "proxy_grpc_call": _status(12),
    "proxy_grpc_stream": _status(9),
    "proxy_grpc_send": _status(4),
    "proxy_grpc_cancel": _status(1),
    "proxy_grpc_close": _status(1),
    "proxy_set_tick_period_milliseconds": _status(1),
    "proxy_get_current_time_nanoseconds": _status(1),
    "proxy_define_metric": _status(4),
    "proxy_increment_metric": _type("i32 i64"),
    "proxy_record_metric": _type("i32 i64"),
    "proxy_get_metric": _status(2),
    "proxy_set_effective_context": _status(1),
    "proxy_done": _status(0),
    "proxy_call_foreign_function": _status(6),
    "proxy_get_configuration": _status(2),
    "proxy_continue_request": _status(0),
    "proxy_continue_response": _status(0),
    "proxy_clear_route_cache": _status(0),
    "proxy_continue_stream": _status(1),
    "proxy_close_stream": _status(1),
}
"""
Host functions of all three versions. Every module may import any of them: the union is more tolerant, and
harmless.
"""

EXTRA_FUNCTIONS: Final[dict[str, FuncType]] = {
    "emscripten_notify_memory_growth": _type("i32", ""),
    "pthread_equal": _status(2),
    "envoy_resolve_dns": _status(3),
}
"""Functions outside the specification that real modules import from ``env``. No capability withholds them."""

WASI_FUNCTIONS: Final[dict[str, FuncType]] = {
    "args_get": _status(2),
    "args_sizes_get": _status(2),
    "clock_res_get": _status(2),
    "clock_time_get": _type("i32 i64 i32"),
    "environ_get": _status(2),
    "environ_sizes_get": _status(2),
    "fd_advise": _type("i32 i64 i64 i32"),
    "fd_allocate": _type("i32 i64 i64"),
    "fd_close": _status(1),
    "fd_datasync": _status(1),
    "fd_fdstat_get": _status(2),
    "fd_fdstat_set_flags": _status(2),
    "fd_fdstat_set_rights": _type("i32 i64 i64"),
    "fd_filestat_get": _status(2),
    "fd_filestat_set_size": _type("i32 i64"),
    "fd_filestat_set_times": _type("i32 i64 i64 i32"),
    "fd_pread": _type("i32 i32 i32 i64 i32"),
    "fd_prestat_dir_name": _status(3),
    "fd_prestat_get": _status(2),
    "fd_pwrite": _type("i32 i32 i32 i64 i32"),
    "fd_read": _status(4),
    "fd_readdir": _type("i32 i32 i32 i64 i32"),
    "fd_renumber": _status(2),
    "fd_seek": _type("i32 i64 i32 i32"),
    "fd_sync": _status(1),
    "fd_tell": _status(2),
    "fd_write": _status(4),
    "path_create_directory": _status(3),
    "path_filestat_get": _status(5),
    "path_filestat_set_times": _type("i32 i32 i32 i32 i64 i64 i32"),
    "path_link": _status(7),
    "path_open": _type("i32 i32 i32 i32 i32 i64 i64 i32 i32"),
    "path_readlink": _status(6),
    "path_remove_directory": _status(3),
    "path_rename": _status(6),
    "path_symlink": _status(5),
    "path_unlink_file": _status(3),
    "poll_oneoff": _status(4),
    "proc_exit": _type("i32", ""),
    "proc_raise": _status(1),
    "random_get": _status(2),
    "sched_yield": _status(0),
    "sock_accept": _status(3),
    "sock_recv": _status(6),
    "sock_send": _status(5),
    "sock_shutdown": _status(2),
}
"""WASI snapshot preview 1."""

WASI_MODULES: Final = ("wasi_snapshot_preview1", "wasi_unstable")
"""Both names mean the same functions here; AssemblyScript and old TinyGo use the second."""

IMPORT_MODULES: Final[dict[str, dict[str, FuncType]]] = {
    "env": PROXY_FUNCTIONS | EXTRA_FUNCTIONS,
    **dict.fromkeys(WASI_MODULES, WASI_FUNCTIONS),
}
"""Every import that links, by module and name."""

START_EXPORTS: Final[dict[str, FuncType]] = {
    "_initialize": _type("", ""),
    "_start": _type("", ""),
    "main": _type("i32 i32"),
    "__main_void": _type(""),
}
ALLOCATORS: Final[dict[str, FuncType]] = {
    "proxy_on_memory_allocate": _type("i32"),
    "malloc": _type("i32"),
}
"""The guest's allocator, the preferred name first, as the specification has it."""

CALLBACKS: Final[dict[str, FuncType]] = {
    "proxy_on_context_create": _type("i32 i32", ""),
    "proxy_on_vm_start": _type("i32 i32"),
    "proxy_validate_configuration": _type("i32 i32"),
    "proxy_on_configure": _type("i32 i32"),
    "proxy_on_tick": _type("i32", ""),
    "proxy_on_queue_ready": _type("i32 i32", ""),
    "proxy_on_new_connection": _type("i32"),
    "proxy_on_downstream_data": _type("i32 i32 i32"),
    "proxy_on_upstream_data": _type("i32 i32 i32"),
    "proxy_on_downstream_connection_close": _type("i32 i32", ""),
    "proxy_on_upstream_connection_close": _type("i32 i32", ""),
    "proxy_on_request_headers": _type("i32 i32 i32"),
    "proxy_on_request_body": _type("i32 i32 i32"),
    "proxy_on_request_trailers": _type("i32 i32"),
    "proxy_on_request_metadata": _type("i32 i32"),
    "proxy_on_response_headers": _type("i32 i32 i32"),
    "proxy_on_response_body": _type("i32 i32 i32"),
    "proxy_on_response_trailers": _type("i32 i32"),
    "proxy_on_response_metadata": _type("i32 i32"),
    "proxy_on_http_call_response": _type("i32 i32 i32 i32 i32", ""),
    "proxy_on_grpc_receive_initial_metadata": _type("i32 i32 i32", ""),
    "proxy_on_grpc_receive": _type("i32 i32 i32", ""),
    "proxy_on_grpc_receive_trailing_metadata": _type("i32 i32 i32", ""),
    "proxy_on_grpc_close": _type("i32 i32 i32", ""),
    "proxy_on_foreign_function": _type("i32 i32 i32", ""),
    "proxy_on_done": _type("i32"),
    "proxy_on_log": _type("i32", ""),
    "proxy_on_delete": _type("i32", ""),
}
"""
Callbacks with the types of ABI 0.2.x. Each is optional; see `CALLBACKS_0_1_0` for the two that differ there.
"""

CALLBACKS_0_1_0: Final[dict[str, FuncType]] = {
    "proxy_on_request_headers": _type("i32 i32"),
    "proxy_on_response_headers": _type("i32 i32"),
}
"""ABI 0.1.0 does not tell the headers callbacks whether the stream ends."""


_OLD: Final = (AbiVersion.V0_1_0,)
_NEW: Final = (AbiVersion.V0_2_0, AbiVersion.V0_2_1)
_ONLY_IN: Final = {
    "proxy_get_configuration": _OLD,
    "proxy_continue_request": _OLD,
    "proxy_continue_response": _OLD,
    "proxy_clear_route_cache": _OLD,
    "proxy_continue_stream": _NEW,
    "proxy_close_stream": _NEW,
    "proxy_get_log_level": (AbiVersion.V0_2_1,),
    "proxy_on_foreign_function": _NEW,
}


def in_version(name: str, version: AbiVersion) -> bool:
    """
    Return whether a host function or callback is part of that version of the specification.

    Modules may import and export what is not: it works here, other hosts may refuse such a module.
    """
    return version in _ONLY_IN.get(name, tuple(AbiVersion))


def callback_type(name: str, version: AbiVersion) -> FuncType:
    """Return the type that the export ``name`` must have in a module of that ABI version."""
    if version is AbiVersion.V0_1_0 and name in CALLBACKS_0_1_0:
        return CALLBACKS_0_1_0[name]
    return CALLBACKS[name]


STATUS_INTERNAL_FAILURE: Final = 10
"""What a host function answers that is denied or that nobody provides: a status that every SDK survives."""
WASI_NOTCAPABLE: Final = 76
"""What a denied WASI function answers."""
WASI_NOSYS: Final = 52
"""What a WASI function answers that nobody provides."""
