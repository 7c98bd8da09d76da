// Turns each piece of a request's body to upper case and lets it go at once.
#include "proxy_wasm.h"

void WASM_EXPORT(proxy_abi_version_0_2_1)(void) {}

uint32_t WASM_EXPORT(proxy_on_request_body)(uint32_t context, uint32_t size, uint32_t end_of_stream) {
    char *piece = NULL;
    size_t len = 0;
    (void)context, (void)end_of_stream;
    arena_reset();
    if (proxy_get_buffer_bytes(REQUEST_BODY, 0, size, &piece, &len) != STATUS_OK) return ACTION_CONTINUE;
    for (size_t i = 0; i < len; i++)
        if (piece[i] >= 'a' && piece[i] <= 'z') piece[i] -= 'a' - 'A';
    proxy_set_buffer_bytes(REQUEST_BODY, 0, len, piece, len);
    return ACTION_CONTINUE;
}
