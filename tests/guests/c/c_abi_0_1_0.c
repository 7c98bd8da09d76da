// A module of the oldest ABI, 0.1.0, which differs from 0.2.x in these points, all of them used here:
// a `_start` export and no `_initialize`; headers callbacks of two parameters; the configuration through
// `proxy_get_configuration`; `proxy_continue_request` and `proxy_clear_route_cache`; a missing header reads as OK
// with an empty value.
//
// The request gets `x-abi: 0.1.0` and `x-absent: <status>,<size>` (what reading a missing header gave), the response
// gets `x-configuration: <the plugin configuration>`.
#include "proxy_wasm.h"

#define MAX_CONFIGURATION_BYTES 256

WASM_IMPORT(proxy_get_configuration)(char **data, size_t *size);
WASM_IMPORT(proxy_continue_request)(void);
WASM_IMPORT(proxy_clear_route_cache)(void);

static char configuration[MAX_CONFIGURATION_BYTES];
static size_t configuration_size;
static bool started;

void WASM_EXPORT(proxy_abi_version_0_1_0)(void) {}

// Hosts that know only the oldest allocator name look for this one.
void *WASM_EXPORT(malloc)(size_t size) {
    return proxy_on_memory_allocate(size);
}

void WASM_EXPORT(_start)(void) {
    started = true;
}

uint32_t WASM_EXPORT(proxy_on_configure)(uint32_t root_context, uint32_t size) {
    (void)root_context;
    arena_reset();
    char *data = NULL;
    size_t data_size = 0;
    if (!started || proxy_get_configuration(&data, &data_size) != STATUS_OK) return false;
    if (data_size != size || data_size > MAX_CONFIGURATION_BYTES) return false;
    for (size_t index = 0; index < data_size; index++) configuration[index] = data[index];
    configuration_size = data_size;
    return true;
}

uint32_t WASM_EXPORT(proxy_on_request_headers)(uint32_t context, uint32_t count) {
    (void)context, (void)count;
    arena_reset();
    char *value = NULL;
    size_t size = 0;
    uint32_t status = proxy_get_header_map_value(REQUEST_HEADERS, TEXT("x-not-there"), &value, &size);
    char absent[] = {(char)('0' + status % 10), ',', (char)('0' + size % 10)};
    proxy_replace_header_map_value(REQUEST_HEADERS, TEXT("x-abi"), TEXT("0.1.0"));
    proxy_replace_header_map_value(REQUEST_HEADERS, TEXT("x-absent"), absent, sizeof absent);
    proxy_clear_route_cache();
    // Nothing is paused, so this has no effect; it only has to link and to return.
    proxy_continue_request();
    return ACTION_CONTINUE;
}

uint32_t WASM_EXPORT(proxy_on_response_headers)(uint32_t context, uint32_t count) {
    (void)context, (void)count;
    arena_reset();
    proxy_replace_header_map_value(RESPONSE_HEADERS, TEXT("x-configuration"), configuration, configuration_size);
    return ACTION_CONTINUE;
}
