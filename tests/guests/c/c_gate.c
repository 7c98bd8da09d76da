// Holds requests, headers and body, until one with the header `x-open` comes: that lets all of them go, and passes itself.
#include "filter.h"

enum { MAX_HELD = 64, REQUEST_STREAM = 0 };
static uint32_t held[MAX_HELD];
static size_t held_count;

void WASM_EXPORT(proxy_abi_version_0_2_1)(void) {}

static bool is_held(uint32_t context) {
    for (size_t i = 0; i < held_count; i++)
        if (held[i] == context) return true;
    return false;
}

static void open_gate(uint32_t own_context) {
    for (size_t i = 0; i < held_count; i++)
        if (proxy_set_effective_context(held[i]) == STATUS_OK) proxy_continue_stream(REQUEST_STREAM);
    held_count = 0;
    proxy_set_effective_context(own_context);
}

uint32_t WASM_EXPORT(proxy_on_request_headers)(uint32_t context, uint32_t count, uint32_t end_of_stream) {
    (void)count, (void)end_of_stream;
    struct text value;
    if (header(REQUEST_HEADERS, LITERAL("x-open"), &value) && value.size > 0) {
        open_gate(context);
        return ACTION_CONTINUE;
    }
    if (held_count == MAX_HELD) return ACTION_CONTINUE;
    held[held_count++] = context;
    return ACTION_PAUSE;
}

uint32_t WASM_EXPORT(proxy_on_request_body)(uint32_t context, uint32_t size, uint32_t end_of_stream) {
    (void)size, (void)end_of_stream;
    return is_held(context) ? ACTION_PAUSE : ACTION_CONTINUE;
}
