// Declarations of the part of the Proxy-Wasm ABI that the C guests use, and the few helpers that a module without
// a C library needs. Each guest is one translation unit and includes this file once.
#ifndef PROXY_WASM_H
#define PROXY_WASM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define WASM_EXPORT(name) __attribute__((export_name(#name), used)) name
#define WASM_IMPORT(name) __attribute__((import_module("env"), import_name(#name))) extern uint32_t name

enum { STATUS_OK = 0, STATUS_NOT_FOUND = 1 };
enum { LOG_INFO = 2, LOG_WARN = 3, LOG_ERROR = 4 };
enum { ACTION_CONTINUE = 0, ACTION_PAUSE = 1 };
enum { REQUEST_HEADERS = 0, RESPONSE_HEADERS = 2 };
enum { REQUEST_BODY = 0, RESPONSE_BODY = 1 };

// The ABI's "as much as there is".
#define WHOLE_BUFFER INT32_MAX

// ---- host functions of ABI 0.2.1, by chapter of the specification; only those that a guest calls become imports

WASM_IMPORT(proxy_log)(uint32_t level, const char *message, size_t message_size);
WASM_IMPORT(proxy_get_log_level)(uint32_t *level);
WASM_IMPORT(proxy_get_current_time_nanoseconds)(uint64_t *time);
WASM_IMPORT(proxy_set_tick_period_milliseconds)(uint32_t period);
WASM_IMPORT(proxy_set_effective_context)(uint32_t context);
WASM_IMPORT(proxy_done)(void);
WASM_IMPORT(proxy_get_status)(uint32_t *code, char **message, size_t *message_size);

WASM_IMPORT(proxy_get_header_map_size)(uint32_t map, size_t *size);
WASM_IMPORT(proxy_get_header_map_pairs)(uint32_t map, char **pairs, size_t *size);
WASM_IMPORT(proxy_set_header_map_pairs)(uint32_t map, const char *pairs, size_t size);
WASM_IMPORT(proxy_get_header_map_value)(uint32_t map, const char *key, size_t key_size, char **value, size_t *size);
WASM_IMPORT(proxy_add_header_map_value)(uint32_t map, const char *key, size_t key_size, const char *value,
                                        size_t value_size);
WASM_IMPORT(proxy_replace_header_map_value)(uint32_t map, const char *key, size_t key_size, const char *value,
                                            size_t value_size);
WASM_IMPORT(proxy_remove_header_map_value)(uint32_t map, const char *key, size_t key_size);

WASM_IMPORT(proxy_get_buffer_status)(uint32_t buffer, size_t *size, uint32_t *flags);
WASM_IMPORT(proxy_get_buffer_bytes)(uint32_t buffer, size_t start, size_t max_size, char **data, size_t *size);
WASM_IMPORT(proxy_set_buffer_bytes)(uint32_t buffer, size_t start, size_t size, const char *data, size_t data_size);

WASM_IMPORT(proxy_continue_stream)(uint32_t stream);
WASM_IMPORT(proxy_close_stream)(uint32_t stream);
WASM_IMPORT(proxy_send_local_response)(uint32_t status, const char *details, size_t details_size, const char *body,
                                       size_t body_size, const char *pairs, size_t pairs_size, uint32_t grpc_status);

WASM_IMPORT(proxy_get_property)(const char *path, size_t path_size, char **value, size_t *size);
WASM_IMPORT(proxy_set_property)(const char *path, size_t path_size, const char *value, size_t value_size);

WASM_IMPORT(proxy_define_metric)(uint32_t type, const char *name, size_t name_size, uint32_t *metric);
WASM_IMPORT(proxy_increment_metric)(uint32_t metric, int64_t delta);
WASM_IMPORT(proxy_record_metric)(uint32_t metric, uint64_t value);
WASM_IMPORT(proxy_get_metric)(uint32_t metric, uint64_t *value);

WASM_IMPORT(proxy_get_shared_data)(const char *key, size_t key_size, char **value, size_t *size, uint32_t *cas);
WASM_IMPORT(proxy_set_shared_data)(const char *key, size_t key_size, const char *value, size_t size, uint32_t cas);
WASM_IMPORT(proxy_register_shared_queue)(const char *name, size_t name_size, uint32_t *queue);
WASM_IMPORT(proxy_resolve_shared_queue)(const char *vm_id, size_t vm_id_size, const char *name, size_t name_size,
                                        uint32_t *queue);
WASM_IMPORT(proxy_enqueue_shared_queue)(uint32_t queue, const char *value, size_t size);
WASM_IMPORT(proxy_dequeue_shared_queue)(uint32_t queue, char **value, size_t *size);

WASM_IMPORT(proxy_http_call)(const char *upstream, size_t upstream_size, const char *pairs, size_t pairs_size,
                             const char *body, size_t body_size, const char *trailers, size_t trailers_size,
                             uint32_t timeout_ms, uint32_t *call);
WASM_IMPORT(proxy_grpc_call)(const char *upstream, size_t upstream_size, const char *service, size_t service_size,
                             const char *method, size_t method_size, const char *metadata, size_t metadata_size,
                             const char *message, size_t message_size, uint32_t timeout_ms, uint32_t *call);
WASM_IMPORT(proxy_grpc_stream)(const char *upstream, size_t upstream_size, const char *service, size_t service_size,
                               const char *method, size_t method_size, const char *metadata, size_t metadata_size,
                               uint32_t *stream);
WASM_IMPORT(proxy_grpc_send)(uint32_t stream, const char *message, size_t message_size, uint32_t end_of_stream);
WASM_IMPORT(proxy_grpc_cancel)(uint32_t call);
WASM_IMPORT(proxy_grpc_close)(uint32_t call);

WASM_IMPORT(proxy_call_foreign_function)(const char *name, size_t name_size, const char *arguments, size_t size,
                                         char **results, size_t *results_size);

// A string literal as the two arguments (address, length) that the ABI wants.
#define TEXT(literal) (literal), (sizeof(literal) - 1)

// ---- memory: what the host hands over lives until the callback returns, so one arena is emptied at each callback.

#define WASM_PAGE_BYTES 65536u

extern unsigned char __heap_base; // set by the linker: the first byte behind the data and the stack
static uintptr_t arena_top;

static void arena_reset(void) {
    arena_top = ((uintptr_t)&__heap_base + 7u) & ~(uintptr_t)7u;
}

// Called by the host for each value it returns. 0 when memory cannot grow that far.
void *WASM_EXPORT(proxy_on_memory_allocate)(size_t size) {
    if (arena_top == 0) arena_reset();
    uint64_t end = ((uint64_t)arena_top + size + 7u) & ~(uint64_t)7u;
    uint64_t have = (uint64_t)__builtin_wasm_memory_size(0) * WASM_PAGE_BYTES;
    if (end > UINT32_MAX) return NULL;
    if (end > have) {
        size_t pages = (size_t)((end - have + WASM_PAGE_BYTES - 1) / WASM_PAGE_BYTES);
        if (__builtin_wasm_memory_grow(0, pages) == SIZE_MAX) return NULL;
    }
    void *block = (void *)arena_top;
    arena_top = (uintptr_t)end;
    return block;
}

#endif
