"""
One well-formed call of every host function, and what has to be called before it. Pure data.

A call is a tuple as in `tests.hostcore.guest_wat`. ``{...}`` marks what depends on the scope: `BUFFER`, `STREAM`.
"""

from __future__ import annotations

import enum
import struct
import zlib
from typing import Any, Final

from sandboxd.vm import abi
from tests.hostcore.driver import encode_pairs
from tests.hostcore.guest_wat import OUT, OUT_CAS, OUT_WORD, OUT_WORDS

Call = tuple[Any, ...]


class Scope(enum.StrEnum):
    """Where a call is made."""

    START = "start"
    """``proxy_on_configure``."""
    ROOT = "root"
    """``proxy_on_tick``: as in a service, a timer, a queue's notice."""
    HTTP = "http"
    """An HTTP stream."""
    TCP = "tcp"
    """A TCP connection."""


BUFFER: Final = object()
"""A buffer that the scope has: HTTP body, TCP data, VM configuration."""
STREAM: Final = object()
"""The scope's stream type."""
_BUFFERS: Final = {Scope.START: 6, Scope.ROOT: 6, Scope.HTTP: 0, Scope.TCP: 2}
_STREAMS: Final = {Scope.START: 0, Scope.ROOT: 0, Scope.HTTP: 0, Scope.TCP: 2}

UPSTREAM: Final = "upstream"
_METRIC_ID: Final = 4
_STREAM_ID: Final = 6
"""hostcore's first ids: of a counter, and of a gRPC stream."""
_HEADERS: Final = encode_pairs([(b":method", b"GET"), (b":path", b"/"), (b":authority", b"a")])
_PAIRS: Final = encode_pairs([(b"a", b"b")])
_AT: Final = 256
"""Room for whatever a call returns that is not reported."""
_CLOCK: Final = struct.pack("<QB7xI4xQQH6x", 1, 0, 1, 1000, 0, 0)
_TEXT_AT: Final = 0x10000
_QUEUE: Final = ("proxy_register_shared_queue", "queue", OUT_WORD)
_COUNTER: Final = ("proxy_define_metric", 0, "counter", OUT_WORD)
_GRPC_STREAM: Final = ("proxy_grpc_stream", UPSTREAM, "a.Service", "Method", _PAIRS, OUT_WORD)

_PROXY: Final[tuple[Call, ...]] = (
    ("proxy_log", 1, "text"),
    ("proxy_get_log_level", OUT_WORD),
    ("proxy_get_status", _AT, _AT + 4, _AT + 8),
    ("proxy_set_property", "name", "value"),
    ("proxy_get_property", "plugin_name", OUT),
    ("proxy_send_local_response", 200, "details", "body", _PAIRS, -1),
    ("proxy_get_shared_data", "key", OUT_CAS),
    ("proxy_set_shared_data", "key", "value", 0),
    _QUEUE,
    ("proxy_resolve_shared_queue", "a vm", "queue", OUT_WORD),
    ("proxy_dequeue_shared_queue", 1, OUT),
    ("proxy_enqueue_shared_queue", 1, "item"),
    ("proxy_get_header_map_value", 0, ":path", OUT),
    ("proxy_add_header_map_value", 0, "a", "b"),
    ("proxy_replace_header_map_value", 0, "a", "b"),
    ("proxy_remove_header_map_value", 0, "a"),
    ("proxy_get_header_map_pairs", 0, OUT),
    ("proxy_set_header_map_pairs", 0, _HEADERS),
    ("proxy_get_header_map_size", 0, OUT_WORD),
    ("proxy_get_buffer_status", BUFFER, OUT_WORDS),
    ("proxy_get_buffer_bytes", BUFFER, 0, 4, OUT),
    ("proxy_set_buffer_bytes", BUFFER, 0, 1, "x"),
    ("proxy_http_call", UPSTREAM, _HEADERS, "body", _PAIRS, 500, OUT_WORD),
    ("proxy_grpc_call", UPSTREAM, "a.Service", "Method", _PAIRS, "message", 500, OUT_WORD),
    _GRPC_STREAM,
    ("proxy_grpc_send", _STREAM_ID, "message", 0),
    ("proxy_grpc_cancel", _STREAM_ID),
    ("proxy_grpc_close", _STREAM_ID),
    ("proxy_set_tick_period_milliseconds", 1000),
    ("proxy_get_current_time_nanoseconds", OUT_WORD),
    _COUNTER,
    ("proxy_increment_metric", _METRIC_ID, 1),
    ("proxy_record_metric", _METRIC_ID, 1),
    ("proxy_get_metric", _METRIC_ID, OUT_WORD),
    ("proxy_set_effective_context", 1),
    ("proxy_done",),
    ("proxy_call_foreign_function", "clear_route_cache", "", OUT),
    ("proxy_get_configuration", OUT),
    ("proxy_continue_request",),
    ("proxy_continue_response",),
    ("proxy_clear_route_cache",),
    ("proxy_continue_stream", STREAM),
    ("proxy_close_stream", STREAM),
    ("envoy_resolve_dns", "name", OUT_WORD),
    ("pthread_equal", 1, 2),
    ("emscripten_notify_memory_growth", 0),
)

_WASI: Final[tuple[Call, ...]] = (
    ("args_get", _AT, _AT),
    ("args_sizes_get", _AT, _AT),
    ("clock_res_get", 0, OUT_WORD),
    ("clock_time_get", 0, 0, OUT_WORD),
    ("environ_get", _AT, _AT),
    ("environ_sizes_get", _AT, _AT),
    ("fd_advise", 4, 0, 0, 0),
    ("fd_allocate", 4, 0, 1),
    ("fd_close", 4),
    ("fd_datasync", 4),
    ("fd_fdstat_get", 4, _AT),
    ("fd_fdstat_set_flags", 4, 0),
    ("fd_fdstat_set_rights", 4, 0x42, 0),
    ("fd_filestat_get", 4, _AT),
    ("fd_filestat_set_size", 4, 1),
    ("fd_filestat_set_times", 4, 0, 0, 0),
    ("fd_pread", 4, _AT, 0, 0, OUT_WORD),
    ("fd_prestat_dir_name", 3, _AT, 5),
    ("fd_prestat_get", 3, OUT_WORD),
    ("fd_pwrite", 4, _AT, 0, 0, OUT_WORD),
    ("fd_read", 4, _AT, 0, OUT_WORD),
    ("fd_readdir", 3, _AT, 100, 0, OUT_WORD),
    ("fd_renumber", 4, 4),
    ("fd_seek", 4, 0, 0, OUT_WORD),
    ("fd_sync", 4),
    ("fd_tell", 4, OUT_WORD),
    ("fd_write", 1, _AT, 0, OUT_WORD),
    ("path_create_directory", 3, "folder"),
    ("path_filestat_get", 3, 0, "file", _AT),
    ("path_filestat_set_times", 3, 0, "file", 0, 0, 0),
    ("path_link", 3, 0, "file", 3, "link"),
    ("path_open", 3, 0, "file", 0, 0x42, 0, 0, OUT_WORD),
    ("path_readlink", 3, "file", _AT, 10, OUT_WORD),
    ("path_remove_directory", 3, "folder"),
    ("path_rename", 3, "file", 3, "other"),
    ("path_symlink", "file", 3, "link"),
    ("path_unlink_file", 3, "gone"),
    ("poll_oneoff", 512, 1024, 1, OUT_WORD),
    ("proc_exit", 0),
    ("proc_raise", 9),
    ("random_get", _AT, 8),
    ("sched_yield",),
    ("sock_accept", 4, 0, OUT_WORD),
    ("sock_recv", 4, _AT, 0, 0, _AT, _AT),
    ("sock_send", 4, _AT, 0, 0, OUT_WORD),
    ("sock_shutdown", 4, 0),
)

CALLS: Final[dict[str, Call]] = {call[0]: call for call in (*_PROXY, *_WASI)}
"""Every function of `sandboxd.vm.abi`, in its order."""

FOREIGN: Final[dict[str, bytes]] = {
    "clear_route_cache": b"",
    "compress": b"text",
    "declare_property": b"\x0a\x04name",
    "expr_create": b"1 + 1",
    "expr_delete": bytes(4),
    "expr_evaluate": bytes(4),
    "set_envoy_filter_state": b"\x0a\x03key\x12\x05value",
    "sign": b"",
    "uncompress": zlib.compress(b"text"),
    "verify_signature": b"",
}
"""Envoy's foreign functions, with arguments that they take."""

OPEN_FILE: Final[Call] = ("path_open", 3, 0, "file", 0, 0x42, 0, 0, OUT_WORD)
"""Makes descriptor 4, for reading and writing."""
_BEFORE: Final[dict[str, tuple[Call, ...]]] = {
    "proxy_get_shared_data": (("proxy_set_shared_data", "key", "value", 0),),
    "proxy_resolve_shared_queue": (_QUEUE,),
    "proxy_enqueue_shared_queue": (_QUEUE,),
    "proxy_dequeue_shared_queue": (_QUEUE, ("proxy_enqueue_shared_queue", 1, "item")),
    "proxy_grpc_send": (_GRPC_STREAM,),
    "proxy_grpc_cancel": (_GRPC_STREAM,),
    "proxy_grpc_close": (_GRPC_STREAM,),
    "proxy_increment_metric": (_COUNTER,),
    "proxy_record_metric": (_COUNTER,),
    "proxy_get_metric": (_COUNTER,),
    "path_remove_directory": (("path_create_directory", 3, "folder"),),
}
_NEEDS_FILE: Final = frozenset(
    call[0]
    for call in _WASI
    if len(call) > 1 and call[1] == 4 and call[0].startswith(("fd_", "sock_"))
)  # fmt: skip


def before(name: str) -> tuple[Call, ...]:
    """Return the calls that make the function's own call succeed where it can."""
    return (OPEN_FILE,) if name in _NEEDS_FILE else _BEFORE.get(name, ())


def call(name: str, scope: Scope) -> Call:
    """Return the function's call as it is made there."""
    known = {id(BUFFER): _BUFFERS[scope], id(STREAM): _STREAMS[scope]}
    return tuple(known.get(id(argument), argument) for argument in CALLS[name])


def wild(name: str) -> Call | None:
    """Return the function's call with addresses outside the guest's memory; None: it takes none."""
    place = 0xFFFF0000 - (1 << 32)
    found: list[Any] = [name]
    pointers = False
    for argument in CALLS[name][1:]:
        if isinstance(argument, str | bytes):
            found += [place, max(len(argument), 1)]
        elif argument in {OUT, OUT_WORDS}:
            found += [place, place]
        elif argument is OUT_CAS:
            found += [place, place, place]
        elif argument is OUT_WORD or argument in {_AT, _AT + 4, _AT + 8, 512, 1024}:
            found.append(place)
        else:
            found.append({id(BUFFER): 0, id(STREAM): 0}.get(id(argument), argument))
            continue
        pointers = True
    kinds = (abi.PROXY_FUNCTIONS | abi.EXTRA_FUNCTIONS | abi.WASI_FUNCTIONS)[name].params
    assert len(found) == len(kinds) + 1, name
    return tuple(found) if pointers else None
