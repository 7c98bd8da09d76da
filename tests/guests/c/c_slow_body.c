// Holds each piece of a body, of requests and responses, until the next tick but one; headers and trailers pass at once.
#include "proxy_wasm.h"

enum { TICK_MS = 10, MAX_HELD = 64, FREE = 0 };

static struct held {
    uint32_t context, stream; // request or response
    bool seen;                // by a tick
} held[MAX_HELD];

void WASM_EXPORT(proxy_abi_version_0_2_1)(void) {}

uint32_t WASM_EXPORT(proxy_on_configure)(uint32_t context, uint32_t size) {
    (void)context, (void)size;
    return proxy_set_tick_period_milliseconds(TICK_MS) == STATUS_OK;
}

static uint32_t hold(uint32_t context, uint32_t stream) {
    struct held *entry = NULL;
    for (struct held *other = held; other < held + MAX_HELD; other++)
        if (other->context == FREE || (other->context == context && other->stream == stream)) entry = other;
    if (!entry) return ACTION_CONTINUE;
    *entry = (struct held){.context = context, .stream = stream};
    return ACTION_PAUSE;
}

uint32_t WASM_EXPORT(proxy_on_request_body)(uint32_t context, uint32_t size, uint32_t end_of_stream) {
    (void)size, (void)end_of_stream;
    return hold(context, 0);
}

uint32_t WASM_EXPORT(proxy_on_response_body)(uint32_t context, uint32_t size, uint32_t end_of_stream) {
    (void)size, (void)end_of_stream;
    return hold(context, 1);
}

void WASM_EXPORT(proxy_on_tick)(uint32_t context) {
    (void)context;
    for (struct held *entry = held; entry < held + MAX_HELD; entry++) {
        if (entry->context == FREE) continue;
        if (!entry->seen) {
            entry->seen = true;
            continue;
        }
        if (proxy_set_effective_context(entry->context) == STATUS_OK) proxy_continue_stream(entry->stream);
        entry->context = FREE;
    }
}
