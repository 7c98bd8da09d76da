// Calls every host function from callbacks where most of them make no sense: vm start, configure, context create,
// tick, done, log and delete. Statuses are ignored; requests are let through untouched.
//
// After each round it logs `called everything in <callback>`, so a reader of the log sees which rounds the host and
// the guest both outlived.
#include "../c/proxy_wasm.h"

#define SOME_ID 7777u

void WASM_EXPORT(proxy_abi_version_0_2_1)(void) {}

static char *data;
static size_t size;
static uint32_t number;
static uint64_t long_number;

static void call_stream_functions(void) {
    for (uint32_t map = 0; map <= 8; map++) {
        proxy_get_header_map_size(map, &size);
        proxy_get_header_map_pairs(map, &data, &size);
        proxy_get_header_map_value(map, TEXT(":path"), &data, &size);
        proxy_add_header_map_value(map, TEXT("x-wrong"), TEXT("1"));
        proxy_replace_header_map_value(map, TEXT("x-wrong"), TEXT("2"));
        proxy_remove_header_map_value(map, TEXT("x-wrong"));
        proxy_set_header_map_pairs(map, NULL, 0);
    }
    for (uint32_t buffer = 0; buffer <= 9; buffer++) {
        proxy_get_buffer_status(buffer, &size, &number);
        proxy_get_buffer_bytes(buffer, 0, WHOLE_BUFFER, &data, &size);
        proxy_set_buffer_bytes(buffer, 0, WHOLE_BUFFER, TEXT("wrong"));
    }
    for (uint32_t stream = 0; stream <= 4; stream++) {
        proxy_continue_stream(stream);
        proxy_close_stream(stream);
    }
    proxy_send_local_response(500, TEXT("wrong"), TEXT("wrong"), NULL, 0, (uint32_t)-1);
}

static void call_shared_functions(void) {
    proxy_get_shared_data(TEXT("k"), &data, &size, &number);
    proxy_set_shared_data(TEXT("k"), TEXT("v"), 0);
    proxy_register_shared_queue(TEXT("q"), &number);
    proxy_resolve_shared_queue(TEXT(""), TEXT("no-such-queue"), &number);
    proxy_enqueue_shared_queue(SOME_ID, TEXT("v"));
    proxy_dequeue_shared_queue(SOME_ID, &data, &size);
    proxy_http_call(TEXT("nowhere"), NULL, 0, NULL, 0, NULL, 0, 10, &number);
    proxy_grpc_call(TEXT("nowhere"), TEXT("s"), TEXT("m"), NULL, 0, NULL, 0, 10, &number);
    proxy_grpc_stream(TEXT("nowhere"), TEXT("s"), TEXT("m"), NULL, 0, &number);
    proxy_grpc_send(SOME_ID, TEXT("v"), 1);
    proxy_grpc_cancel(SOME_ID);
    proxy_grpc_close(SOME_ID);
}

static void call_other_functions(void) {
    proxy_get_log_level(&number);
    proxy_get_current_time_nanoseconds(&long_number);
    proxy_get_status(&number, &data, &size);
    proxy_get_property(TEXT("request\0path"), &data, &size);
    proxy_get_property(TEXT("plugin_root_id"), &data, &size);
    proxy_set_property(TEXT("wrong"), TEXT("v"));
    proxy_define_metric(0, TEXT("wrong"), &number);
    proxy_increment_metric(SOME_ID, -1);
    proxy_record_metric(SOME_ID, 1);
    proxy_get_metric(SOME_ID, &long_number);
    proxy_call_foreign_function(TEXT("no-such-function"), TEXT(""), &data, &size);
    proxy_call_foreign_function(TEXT("clear_route_cache"), TEXT(""), &data, &size);
    proxy_set_tick_period_milliseconds(50);
    proxy_set_effective_context(SOME_ID);
    proxy_set_effective_context(0);
    proxy_done();
}

static void call_everything(const char *line, size_t line_size) {
    arena_reset();
    call_stream_functions();
    call_shared_functions();
    call_other_functions();
    proxy_log(LOG_INFO, line, line_size);
}

void WASM_EXPORT(proxy_on_context_create)(uint32_t context, uint32_t parent) {
    (void)context, (void)parent;
    call_everything(TEXT("called everything in context_create"));
}

uint32_t WASM_EXPORT(proxy_on_vm_start)(uint32_t root_context, uint32_t configuration_size) {
    (void)root_context, (void)configuration_size;
    call_everything(TEXT("called everything in vm_start"));
    return true;
}

uint32_t WASM_EXPORT(proxy_on_configure)(uint32_t root_context, uint32_t configuration_size) {
    (void)root_context, (void)configuration_size;
    call_everything(TEXT("called everything in configure"));
    return true;
}

void WASM_EXPORT(proxy_on_tick)(uint32_t root_context) {
    (void)root_context;
    call_everything(TEXT("called everything in tick"));
}

uint32_t WASM_EXPORT(proxy_on_done)(uint32_t context) {
    (void)context;
    call_everything(TEXT("called everything in done"));
    return true;
}

void WASM_EXPORT(proxy_on_log)(uint32_t context) {
    (void)context;
    call_everything(TEXT("called everything in log"));
}

void WASM_EXPORT(proxy_on_delete)(uint32_t context) {
    (void)context;
    call_everything(TEXT("called everything in delete"));
}
