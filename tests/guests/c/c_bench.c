// The benchmark guest: reads the header `x-probe` as often as the header `x-reads` says, while the host holds a clock
// to it. Two requests with different counts give the price of one read, copy and allocation included.
#include "proxy_wasm.h"

void WASM_EXPORT(proxy_abi_version_0_2_1)(void) {}

static uint32_t number(const char *text, size_t size) {
    uint32_t value = 0;
    for (size_t index = 0; index < size && index < 9 && text[index] >= '0' && text[index] <= '9'; index++) {
        value = value * 10 + (uint32_t)(text[index] - '0');
    }
    return value;
}

uint32_t WASM_EXPORT(proxy_on_request_headers)(uint32_t context, uint32_t count, uint32_t end_of_stream) {
    (void)context, (void)count, (void)end_of_stream;
    char *value = NULL;
    size_t size = 0;
    arena_reset();
    if (proxy_get_header_map_value(REQUEST_HEADERS, TEXT("x-reads"), &value, &size) != STATUS_OK) {
        return ACTION_CONTINUE;
    }
    uint32_t reads = number(value, size);
    uint32_t failed = 0;
    for (uint32_t read = 0; read < reads; read++) {
        arena_reset();
        failed += proxy_get_header_map_value(REQUEST_HEADERS, TEXT("x-probe"), &value, &size) != STATUS_OK;
    }
    if (failed != 0) proxy_log(LOG_ERROR, TEXT("the header x-probe could not be read"));
    return ACTION_CONTINUE;
}
