/* Every host function whose arguments are all 32 bits wide: X(name, number of arguments). */
#define HOSTCALLS(X)                                                                                                   \
    X(proxy_log, 3) X(proxy_get_log_level, 1) X(proxy_get_status, 3) X(proxy_set_property, 4)                         \
    X(proxy_get_property, 4) X(proxy_send_local_response, 8) X(proxy_get_shared_data, 5) X(proxy_set_shared_data, 5)  \
    X(proxy_register_shared_queue, 3) X(proxy_resolve_shared_queue, 5) X(proxy_dequeue_shared_queue, 3)               \
    X(proxy_enqueue_shared_queue, 3) X(proxy_get_header_map_value, 5) X(proxy_add_header_map_value, 5)                \
    X(proxy_replace_header_map_value, 5) X(proxy_remove_header_map_value, 3) X(proxy_get_header_map_pairs, 3)         \
    X(proxy_set_header_map_pairs, 3) X(proxy_get_header_map_size, 2) X(proxy_get_buffer_status, 3)                    \
    X(proxy_get_buffer_bytes, 5) X(proxy_set_buffer_bytes, 5) X(proxy_http_call, 10) X(proxy_grpc_call, 12)           \
    X(proxy_grpc_stream, 9) X(proxy_grpc_send, 4) X(proxy_grpc_cancel, 1) X(proxy_grpc_close, 1)                      \
    X(proxy_set_tick_period_milliseconds, 1) X(proxy_get_current_time_nanoseconds, 1) X(proxy_define_metric, 4)       \
    X(proxy_get_metric, 2) X(proxy_set_effective_context, 1) X(proxy_done, 0) X(proxy_call_foreign_function, 6)       \
    X(proxy_get_configuration, 2) X(proxy_continue_request, 0) X(proxy_continue_response, 0)                          \
    X(proxy_clear_route_cache, 0) X(proxy_continue_stream, 1) X(proxy_close_stream, 1) X(pthread_equal, 2)            \
    X(envoy_resolve_dns, 3) X(fd_write, 4) X(fd_read, 4) X(fd_close, 1) X(fd_tell, 2) X(fd_fdstat_get, 2)             \
    X(fd_fdstat_set_flags, 2) X(fd_filestat_get, 2) X(fd_prestat_get, 2) X(fd_prestat_dir_name, 3) X(fd_datasync, 1)  \
    X(fd_sync, 1) X(fd_renumber, 2) X(path_filestat_get, 5) X(path_create_directory, 3) X(path_remove_directory, 3)   \
    X(path_unlink_file, 3) X(path_rename, 6) X(path_readlink, 6) X(path_link, 7) X(path_symlink, 5)                   \
    X(environ_sizes_get, 2) X(environ_get, 2) X(args_sizes_get, 2) X(args_get, 2) X(clock_res_get, 2)                 \
    X(random_get, 2) X(sched_yield, 0) X(poll_oneoff, 4) X(proc_raise, 1) X(sock_accept, 3) X(sock_recv, 6)           \
    X(sock_send, 5) X(sock_shutdown, 2)

#define PARAMS_0 void
#define PARAMS_1 u32
#define PARAMS_2 PARAMS_1, u32
#define PARAMS_3 PARAMS_2, u32
#define PARAMS_4 PARAMS_3, u32
#define PARAMS_5 PARAMS_4, u32
#define PARAMS_6 PARAMS_5, u32
#define PARAMS_7 PARAMS_6, u32
#define PARAMS_8 PARAMS_7, u32
#define PARAMS_9 PARAMS_8, u32
#define PARAMS_10 PARAMS_9, u32
#define PARAMS_11 PARAMS_10, u32
#define PARAMS_12 PARAMS_11, u32

#define DECLARE(name, count) u32 hc_##name(PARAMS_##count);
HOSTCALLS(DECLARE)
#undef DECLARE

/* The others. */
u32 hc_proxy_increment_metric(u32 id, i64 delta);
u32 hc_proxy_record_metric(u32 id, u64 value);
u32 hc_clock_time_get(u32 id, u64 precision, u32 out);
u32 hc_fd_pwrite(u32 fd, u32 vectors, u32 count, u64 offset, u32 out);
u32 hc_fd_seek(u32 fd, u64 offset, u32 whence, u32 out);
u32 hc_fd_readdir(u32 fd, u32 buffer, u32 len, u64 cookie, u32 out);
void hc_proc_exit(u32 code);
void hc_emscripten_notify_memory_growth(u32 memory);
void hc_denied(u32 import_index);

/* What the worker calls. */
u8 *hc_config_buffer(u32 len);
u32 hc_vm_configure(u8 *blob, u32 len);
u32 hc_vm_start(void);
u32 hc_poll(u32 spin);
u8 *hc_inbox_buffer(u32 len);
u32 hc_inbox_deliver(u8 *at, u32 len);
u8 *hc_outbox_first(void);
u32 hc_outbox_first_len(void);
void hc_outbox_done(void);
