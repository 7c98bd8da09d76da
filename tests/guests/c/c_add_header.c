// Adds the header `x-wasm-processed: Yes` to each request and each response.
#include "proxy_wasm.h"

void WASM_EXPORT(proxy_abi_version_0_2_1)(void) {}

static void mark(uint32_t map) {
    proxy_replace_header_map_value(map, TEXT("x-wasm-processed"), TEXT("Yes"));
}

uint32_t WASM_EXPORT(proxy_on_request_headers)(uint32_t context, uint32_t count, uint32_t end_of_stream) {
    (void)context, (void)count, (void)end_of_stream;
    mark(REQUEST_HEADERS);
    return ACTION_CONTINUE;
}

uint32_t WASM_EXPORT(proxy_on_response_headers)(uint32_t context, uint32_t count, uint32_t end_of_stream) {
    (void)context, (void)count, (void)end_of_stream;
    mark(RESPONSE_HEADERS);
    return ACTION_CONTINUE;
}
