// The benchmark's talkative filter: twenty host calls for an exchange, of the kinds that filters make. Eleven with the
// request (six values, time, three changes, a log line), nine with the response (five values, time, two changes, a log
// line); what it reads last it writes into the response header `x-twenty`, so that a host cannot answer with nothing.
#include "proxy_wasm.h"

void WASM_EXPORT(proxy_abi_version_0_2_1)(void) {}

struct text {
    char *bytes;
    size_t size;
};

#define GET(map, name) get(map, TEXT(name))

static struct text get(uint32_t map, const char *name, size_t name_size) {
    struct text value = {.bytes = NULL};
    if (proxy_get_header_map_value(map, name, name_size, &value.bytes, &value.size) != STATUS_OK) value.size = 0;
    return value;
}

static struct text plugin_name(void) {
    struct text value = {.bytes = NULL};
    if (proxy_get_property(TEXT("plugin_name"), &value.bytes, &value.size) != STATUS_OK) value.size = 0;
    return value;
}

uint32_t WASM_EXPORT(proxy_on_request_headers)(uint32_t context, uint32_t count, uint32_t end_of_stream) {
    (void)context, (void)count, (void)end_of_stream;
    uint64_t now = 0;
    arena_reset();
    struct text path = GET(REQUEST_HEADERS, ":path");
    (void)GET(REQUEST_HEADERS, ":method");
    (void)GET(REQUEST_HEADERS, ":authority");
    (void)GET(REQUEST_HEADERS, "x-forwarded-proto");
    (void)GET(REQUEST_HEADERS, "user-agent");
    struct text plugin = plugin_name();
    proxy_get_current_time_nanoseconds(&now);
    proxy_add_header_map_value(REQUEST_HEADERS, TEXT("x-plugin"), plugin.bytes, plugin.size);
    proxy_replace_header_map_value(REQUEST_HEADERS, TEXT("x-original-path"), path.bytes, path.size);
    proxy_remove_header_map_value(REQUEST_HEADERS, TEXT("x-internal"));
    proxy_log(LOG_INFO, path.bytes, path.size);
    return ACTION_CONTINUE;
}

uint32_t WASM_EXPORT(proxy_on_response_headers)(uint32_t context, uint32_t count, uint32_t end_of_stream) {
    (void)context, (void)count, (void)end_of_stream;
    uint64_t now = 0;
    arena_reset();
    struct text status = GET(RESPONSE_HEADERS, ":status");
    (void)GET(RESPONSE_HEADERS, "content-length");
    (void)GET(RESPONSE_HEADERS, "content-type");
    (void)GET(RESPONSE_HEADERS, "server");
    struct text plugin = plugin_name();
    proxy_get_current_time_nanoseconds(&now);
    proxy_replace_header_map_value(RESPONSE_HEADERS, TEXT("x-twenty"), status.bytes, status.size);
    proxy_add_header_map_value(RESPONSE_HEADERS, TEXT("x-plugin"), plugin.bytes, plugin.size);
    proxy_log(LOG_INFO, status.bytes, status.size);
    return ACTION_CONTINUE;
}
