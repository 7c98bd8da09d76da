"""
The capability names, in groups that belong together.

Names are Proxy-Wasm's own: host functions in full (``proxy_log``), WASI functions without their module
(``fd_write``), callbacks in full (``proxy_on_request_headers``). Tables alone; what follows from a set of names is
in `sandboxd.policy.capabilities`.
"""

from __future__ import annotations

MAP_READS = frozenset({"proxy_get_header_map_value", "proxy_get_header_map_pairs", "proxy_get_header_map_size"})
MAP_WRITES = frozenset(
    {
        "proxy_add_header_map_value",
        "proxy_replace_header_map_value",
        "proxy_remove_header_map_value",
        "proxy_set_header_map_pairs",
    }
)
BUFFER_FUNCTIONS = frozenset({"proxy_get_buffer_status", "proxy_get_buffer_bytes", "proxy_set_buffer_bytes"})
METRIC_FUNCTIONS = frozenset(
    {"proxy_define_metric", "proxy_increment_metric", "proxy_record_metric", "proxy_get_metric"}
)
BASIC_FUNCTIONS = frozenset(
    {
        "proxy_log",
        "proxy_get_log_level",
        "proxy_get_status",
        "proxy_get_current_time_nanoseconds",
        "proxy_get_configuration",
        "proxy_get_property",
        "proxy_set_effective_context",
        "proxy_done",
    }
)
STREAM_FUNCTIONS = frozenset(
    {
        "proxy_send_local_response",
        "proxy_continue_stream",
        "proxy_close_stream",
        "proxy_continue_request",
        "proxy_continue_response",
        "proxy_clear_route_cache",
        "proxy_set_property",
        "proxy_call_foreign_function",
    }
)
TENANT_FUNCTIONS = frozenset(
    {
        "proxy_get_shared_data",
        "proxy_set_shared_data",
        "proxy_register_shared_queue",
        "proxy_resolve_shared_queue",
        "proxy_dequeue_shared_queue",
        "proxy_enqueue_shared_queue",
        "proxy_set_tick_period_milliseconds",
    }
)
"""Timers, shared data and queues: what they do stays within the tenant."""
CALLOUT_FUNCTIONS = frozenset(
    {
        "proxy_http_call",
        "proxy_grpc_call",
        "proxy_grpc_stream",
        "proxy_grpc_send",
        "proxy_grpc_cancel",
        "proxy_grpc_close",
    }
)
UNAVAILABLE_FUNCTIONS: frozenset[str] = frozenset()
"""Host functions that this version links but answers with the ABI's status for "not available"."""

HOST_FUNCTIONS = (
    BASIC_FUNCTIONS
    | MAP_READS
    | MAP_WRITES
    | BUFFER_FUNCTIONS
    | METRIC_FUNCTIONS
    | STREAM_FUNCTIONS
    | TENANT_FUNCTIONS
    | CALLOUT_FUNCTIONS
)
"""Every Proxy-Wasm host function of ABI 0.1.0, 0.2.0 and 0.2.1."""

WASI_FUNCTIONS = frozenset(
    [
        "args_get",
        "args_sizes_get",
        "clock_res_get",
        "clock_time_get",
        "environ_get",
        "environ_sizes_get",
        "fd_advise",
        "fd_allocate",
        "fd_close",
        "fd_datasync",
        "fd_fdstat_get",
        "fd_fdstat_set_flags",
        "fd_fdstat_set_rights",
        "fd_filestat_get",
        "fd_filestat_set_size",
        "fd_filestat_set_times",
        "fd_pread",
        "fd_prestat_dir_name",
        "fd_prestat_get",
        "fd_pwrite",
        "fd_read",
        "fd_readdir",
        "fd_renumber",
        "fd_seek",
        "fd_sync",
        "fd_tell",
        "fd_write",
        "path_create_directory",
        "path_filestat_get",
        "path_filestat_set_times",
        "path_link",
        "path_open",
        "path_readlink",
        "path_remove_directory",
        "path_rename",
        "path_symlink",
        "path_unlink_file",
        "poll_oneoff",
        "proc_exit",
        "proc_raise",
        "random_get",
        "sched_yield",
        "sock_accept",
        "sock_recv",
        "sock_send",
        "sock_shutdown",
    ]
)
"""WASI preview 1. One name covers both modules, ``wasi_snapshot_preview1`` and ``wasi_unstable``."""

WASI_BASICS = frozenset(
    [
        "args_get",
        "args_sizes_get",
        "clock_res_get",
        "clock_time_get",
        "environ_get",
        "environ_sizes_get",
        "fd_close",
        "fd_fdstat_get",
        "fd_fdstat_set_flags",
        "fd_filestat_get",
        "fd_prestat_dir_name",
        "fd_prestat_get",
        "fd_read",
        "fd_seek",
        "fd_write",
        "poll_oneoff",
        "proc_exit",
        "random_get",
        "sched_yield",
    ]
)
"""What modules built with the SDKs (Rust, Go, C++, AssemblyScript) import. None of it reaches the host."""

FILE_FUNCTIONS = WASI_BASICS | frozenset(
    name for name in WASI_FUNCTIONS if name.startswith(("fd_", "path_")) and name not in {"path_link", "path_symlink"}
)
"""What a plugin with preopened folders is granted with them."""

LIFE_CALLBACKS = frozenset(
    {
        "proxy_on_context_create",
        "proxy_on_vm_start",
        "proxy_validate_configuration",
        "proxy_on_configure",
        "proxy_on_done",
        "proxy_on_log",
        "proxy_on_delete",
    }
)
HEADER_CALLBACKS = frozenset({"proxy_on_request_headers", "proxy_on_response_headers"})
HTTP_CALLBACKS = HEADER_CALLBACKS | {
    "proxy_on_request_body",
    "proxy_on_request_trailers",
    "proxy_on_response_body",
    "proxy_on_response_trailers",
}
TCP_CALLBACKS = frozenset(
    {
        "proxy_on_new_connection",
        "proxy_on_downstream_data",
        "proxy_on_upstream_data",
        "proxy_on_downstream_connection_close",
        "proxy_on_upstream_connection_close",
    }
)
TENANT_CALLBACKS = frozenset({"proxy_on_tick", "proxy_on_queue_ready"})
CALLOUT_CALLBACKS = frozenset(
    {
        "proxy_on_http_call_response",
        "proxy_on_grpc_receive_initial_metadata",
        "proxy_on_grpc_receive",
        "proxy_on_grpc_receive_trailing_metadata",
        "proxy_on_grpc_close",
    }
)
UNAVAILABLE_CALLBACKS = frozenset(
    [
        "proxy_on_request_metadata",
        "proxy_on_response_metadata",
        "proxy_on_foreign_function",
    ]
)
"""Callbacks that this version never calls."""

CALLBACKS = (
    LIFE_CALLBACKS | HTTP_CALLBACKS | TCP_CALLBACKS | TENANT_CALLBACKS | CALLOUT_CALLBACKS | UNAVAILABLE_CALLBACKS
)
"""Every callback that a capability can withhold."""

UNAVAILABLE = UNAVAILABLE_FUNCTIONS | UNAVAILABLE_CALLBACKS
"""Capabilities that may be granted but do nothing in this version; ``sandboxd check`` lists them."""

ALL = HOST_FUNCTIONS | WASI_FUNCTIONS | CALLBACKS
"""Every capability name there is."""

GO_START_FUNCTIONS = frozenset(
    {"args_sizes_get", "clock_time_get", "environ_sizes_get", "fd_prestat_get", "poll_oneoff"}
)
"""WASI functions whose NOTCAPABLE answer ends a Go module at its start or at its first sleep."""
