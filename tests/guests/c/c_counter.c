// Counts requests in shared data, each by compare and swap, and marks the request with `x-count` (the number; 0: it could
// not be counted) and `x-status` (what the last function answered).
#include "proxy_wasm.h"

enum { STATUS_CAS_MISMATCH = 8 };
enum { TRIES = 1000 };

void WASM_EXPORT(proxy_abi_version_0_2_1)(void) {}

static uint64_t count_request(uint32_t *status) {
    for (int attempt = 0; attempt < TRIES; attempt++) {
        char *value = NULL;
        size_t size = 0;
        uint32_t cas = 0;
        uint64_t number = 0;
        arena_reset();
        *status = proxy_get_shared_data(TEXT("requests"), &value, &size, &cas);
        if (*status != STATUS_OK && *status != STATUS_NOT_FOUND) return 0;
        if (*status == STATUS_OK && size == sizeof number) __builtin_memcpy(&number, value, sizeof number);
        number++;
        *status = proxy_set_shared_data(TEXT("requests"), (const char *)&number, sizeof number, cas);
        if (*status == STATUS_OK) return number;
        if (*status != STATUS_CAS_MISMATCH) return 0;
    }
    return 0;
}

static void set_number(const char *name, size_t name_size, uint64_t number) {
    char text[20];
    size_t at = sizeof text;
    do {
        text[--at] = (char)('0' + number % 10);
        number /= 10;
    } while (number != 0);
    proxy_replace_header_map_value(REQUEST_HEADERS, name, name_size, text + at, sizeof text - at);
}

uint32_t WASM_EXPORT(proxy_on_request_headers)(uint32_t context, uint32_t count, uint32_t end_of_stream) {
    (void)context, (void)count, (void)end_of_stream;
    uint32_t status = 0;
    uint64_t number = count_request(&status);
    set_number(TEXT("x-count"), number);
    set_number(TEXT("x-status"), status);
    return ACTION_CONTINUE;
}
