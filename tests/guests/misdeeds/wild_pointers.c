// Calls every host function that takes a pointer with pointers and sizes that do not lie in memory.
//
// Each request gets one header per function and argument, `x-wild-<what>`: a digit per wild pair of WILD, the status
// that came back (a: 10 and so on). 6, invalid memory access, is the ABI's answer; 1 and 2 are right where the
// resource is not there to begin with. 0 anywhere means that the host touched what is not the guest's.
#include "../c/proxy_wasm.h"

#define WILD_COUNT 9

static struct {
    char *at;
    size_t size;
} wild[WILD_COUNT];

static char statuses[WILD_COUNT];

void WASM_EXPORT(proxy_abi_version_0_2_1)(void) {}

static void set_wild(size_t index, uintptr_t at, size_t size) {
    wild[index].at = (char *)at;
    wild[index].size = size;
}

static void list_wild_pairs(void) {
    uintptr_t end = __builtin_wasm_memory_size(0) * WASM_PAGE_BYTES;
    set_wild(0, 0xffffffff, 1);
    set_wild(1, 0xffffffff, 0xffffffff);
    set_wild(2, 0x80000000, 0x80000000);
    set_wild(3, 0x7fffffff, 0x7fffffff);
    set_wild(4, end - 1, 2);
    set_wild(5, end, 1);
    set_wild(6, end - 1, 0xffffffff);
    set_wild(7, end - 1, 0x7fffffff);
    set_wild(8, 0xfffffffc, 8);
}

static void report(const char *name, size_t size) {
    proxy_replace_header_map_value(REQUEST_HEADERS, name, size, statuses, WILD_COUNT);
}

// Evaluates `call` for each wild pair, which it reaches as AT and SIZE (or OUT, the address as an out-pointer).
#define TRY(name, call)                                                          \
    do {                                                                         \
        for (size_t index = 0; index < WILD_COUNT; index++) {                    \
            uint32_t status = (call);                                            \
            statuses[index] = (char)(status < 10 ? '0' + status : 'a' + status - 10); \
        }                                                                        \
        report(TEXT("x-wild-" name));                                            \
    } while (0)
#define AT wild[index].at
#define SIZE wild[index].size
#define OUT ((void *)wild[index].at)

static char *data;
static size_t data_size;
static uint32_t number;

static void try_headers(void) {
    TRY("header-key", proxy_get_header_map_value(REQUEST_HEADERS, AT, SIZE, &data, &data_size));
    TRY("header-value-out", proxy_get_header_map_value(REQUEST_HEADERS, TEXT(":path"), OUT, &data_size));
    TRY("header-size-out", proxy_get_header_map_value(REQUEST_HEADERS, TEXT(":path"), &data, OUT));
    TRY("header-map-size", proxy_get_header_map_size(REQUEST_HEADERS, OUT));
    TRY("pairs-out", proxy_get_header_map_pairs(REQUEST_HEADERS, OUT, &data_size));
    TRY("pairs-size-out", proxy_get_header_map_pairs(REQUEST_HEADERS, &data, OUT));
    TRY("pairs", proxy_set_header_map_pairs(REQUEST_HEADERS, AT, SIZE));
    TRY("add-key", proxy_add_header_map_value(REQUEST_HEADERS, AT, SIZE, TEXT("v")));
    TRY("add-value", proxy_add_header_map_value(REQUEST_HEADERS, TEXT("x-k"), AT, SIZE));
    TRY("replace-key", proxy_replace_header_map_value(REQUEST_HEADERS, AT, SIZE, TEXT("v")));
    TRY("replace-value", proxy_replace_header_map_value(REQUEST_HEADERS, TEXT("x-k"), AT, SIZE));
    TRY("remove-key", proxy_remove_header_map_value(REQUEST_HEADERS, AT, SIZE));
}

static void try_buffers_and_properties(void) {
    TRY("buffer-status", proxy_get_buffer_status(REQUEST_BODY, OUT, OUT));
    TRY("buffer-set", proxy_set_buffer_bytes(REQUEST_BODY, 0, 0, AT, SIZE));
    TRY("property-path", proxy_get_property(AT, SIZE, &data, &data_size));
    TRY("property-out", proxy_get_property(TEXT("plugin_root_id"), OUT, OUT));
    TRY("property-set-path", proxy_set_property(AT, SIZE, TEXT("v")));
    TRY("property-set-value", proxy_set_property(TEXT("wild"), AT, SIZE));
}

static void try_small_functions(void) {
    TRY("log", proxy_log(LOG_INFO, AT, SIZE));
    TRY("log-level", proxy_get_log_level(OUT));
    TRY("time", proxy_get_current_time_nanoseconds(OUT));
    TRY("status", proxy_get_status(OUT, OUT, OUT));
    TRY("metric-name", proxy_define_metric(0, AT, SIZE, &number));
    TRY("metric-out", proxy_define_metric(0, TEXT("wild"), OUT));
    TRY("foreign-name", proxy_call_foreign_function(AT, SIZE, TEXT(""), &data, &data_size));
    TRY("foreign-arguments", proxy_call_foreign_function(TEXT("clear_route_cache"), AT, SIZE, &data, &data_size));
}

static void try_stores_and_calls(void) {
    TRY("shared-key", proxy_get_shared_data(AT, SIZE, &data, &data_size, &number));
    TRY("shared-set-key", proxy_set_shared_data(AT, SIZE, TEXT("v"), 0));
    TRY("shared-set-value", proxy_set_shared_data(TEXT("k"), AT, SIZE, 0));
    TRY("queue-name", proxy_register_shared_queue(AT, SIZE, &number));
    TRY("queue-resolve", proxy_resolve_shared_queue(AT, SIZE, AT, SIZE, &number));
    TRY("queue-value", proxy_enqueue_shared_queue(1, AT, SIZE));
    TRY("http-upstream", proxy_http_call(AT, SIZE, NULL, 0, NULL, 0, NULL, 0, 10, &number));
    TRY("http-pairs", proxy_http_call(TEXT("nowhere"), AT, SIZE, AT, SIZE, AT, SIZE, 10, &number));
    TRY("grpc", proxy_grpc_call(AT, SIZE, AT, SIZE, AT, SIZE, AT, SIZE, AT, SIZE, 10, &number));
    TRY("grpc-stream", proxy_grpc_stream(AT, SIZE, AT, SIZE, AT, SIZE, AT, SIZE, &number));
    TRY("grpc-send", proxy_grpc_send(6, AT, SIZE, 0));
    TRY("local-response", proxy_send_local_response(200, AT, SIZE, AT, SIZE, AT, SIZE, (uint32_t)-1));
}

uint32_t WASM_EXPORT(proxy_on_request_headers)(uint32_t context, uint32_t count, uint32_t end_of_stream) {
    (void)context, (void)count, (void)end_of_stream;
    arena_reset();
    list_wild_pairs();
    try_headers();
    try_buffers_and_properties();
    try_small_functions();
    try_stores_and_calls();
    return ACTION_CONTINUE;
}
