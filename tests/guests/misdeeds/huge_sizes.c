// Hands the host values that lie in memory and are far too large, and lengths inside values that are lies.
//
// Each request gets one header per attempt, `x-huge-<what>`, with the status that came back; `x-huge-mebibytes` says
// how much memory the guest could get for the large values (it asks for 101 MiB, then for less).
#include "../c/proxy_wasm.h"

#define MEBIBYTE (1u << 20)
#define WANTED_MEBIBYTES 101u
#define PAGES_PER_MEBIBYTE (MEBIBYTE / WASM_PAGE_BYTES)

__attribute__((import_module("wasi_snapshot_preview1"), import_name("fd_write"))) extern uint32_t
wasi_fd_write(uint32_t fd, const void *iovs, size_t iovs_len, size_t *written);
__attribute__((import_module("wasi_snapshot_preview1"), import_name("random_get"))) extern uint32_t
wasi_random_get(void *buffer, size_t size);

static char *big;      // at least big_size bytes, all `x`
static size_t big_size;

void WASM_EXPORT(proxy_abi_version_0_2_1)(void) {}

static void report(const char *name, size_t size, uint32_t number) {
    char digits[10];
    size_t at = sizeof digits;
    do digits[--at] = (char)('0' + number % 10);
    while ((number /= 10) != 0);
    proxy_replace_header_map_value(REQUEST_HEADERS, name, size, digits + at, sizeof digits - at);
}

#define TRY(name, call) report(TEXT("x-huge-" name), (call))

static void get_big_block(void) {
    if (big_size != 0) return;
    uint32_t mebibytes = WANTED_MEBIBYTES;
    size_t page;
    while ((page = __builtin_wasm_memory_grow(0, mebibytes * PAGES_PER_MEBIBYTE)) == SIZE_MAX && mebibytes > 1) {
        mebibytes /= 2;
    }
    if (page == SIZE_MAX) return;
    big = (char *)(page * WASM_PAGE_BYTES);
    big_size = mebibytes * MEBIBYTE;
    for (size_t at = 0; at < big_size; at++) big[at] = 'x';
}

// Writes a pairs block of `count` headers `a: b` at big[0..] and returns its size.
static size_t write_pairs(uint32_t count) {
    uint32_t *word = (uint32_t *)big;
    *word++ = count;
    for (uint32_t index = 0; index < 2 * count; index++) *word++ = 1;
    char *text = (char *)word;
    for (uint32_t index = 0; index < count; index++) {
        *text++ = 'a', *text++ = 0, *text++ = 'b', *text++ = 0;
    }
    return (size_t)(text - big);
}

static void try_pairs(void) {
    static const uint32_t no_end[] = {0xffffffff};
    static const uint32_t count_overflow[] = {0x20000000, 1, 1};
    static const uint32_t long_key[] = {1, 0xffffffff, 0xffffffff, 0};
    static const uint32_t negative[] = {2, 0x80000000, 0x80000000, 0x80000000, 0x80000000, 0};
    char *none = NULL;
    uint32_t call = 0;
    TRY("pairs-count", proxy_set_header_map_pairs(REQUEST_HEADERS, (const char *)no_end, sizeof no_end));
    TRY("pairs-overflow", proxy_set_header_map_pairs(REQUEST_HEADERS, (const char *)count_overflow, sizeof count_overflow));
    TRY("pairs-lengths", proxy_set_header_map_pairs(REQUEST_HEADERS, (const char *)long_key, sizeof long_key));
    TRY("pairs-negative", proxy_set_header_map_pairs(REQUEST_HEADERS, (const char *)negative, sizeof negative));
    TRY("pairs-http-call", proxy_http_call(TEXT("nowhere"), (const char *)no_end, sizeof no_end, none, 0,
                                           (const char *)long_key, sizeof long_key, 10, &call));
}

// Only with a block of memory to spend; each of these may be refused, none may be half done.
static void try_values(void) {
    char *data = NULL;
    size_t size = 0;
    uint32_t number = 0;
    TRY("log", proxy_log(LOG_ERROR, big, big_size));
    TRY("property-path", proxy_get_property(big, big_size, &data, &size));
    TRY("property-value", proxy_set_property(TEXT("huge"), big, big_size));
    TRY("header-key", proxy_get_header_map_value(REQUEST_HEADERS, big, big_size, &data, &size));
    TRY("header-name", proxy_add_header_map_value(REQUEST_HEADERS, big, MEBIBYTE, TEXT("v")));
    TRY("header-value", proxy_add_header_map_value(REQUEST_HEADERS, TEXT("x-big"), big, big_size));
    TRY("metric-name", proxy_define_metric(0, big, big_size, &number));
    TRY("shared-value", proxy_set_shared_data(TEXT("huge"), big, big_size, 0));
    TRY("foreign", proxy_call_foreign_function(TEXT("clear_route_cache"), big, big_size, &data, &size));
}

static void try_wasi(void) {
    // One array of 1024 vectors that all name the same megabyte: a gigabyte, if it were believed.
    static uint32_t vectors[1024][2];
    for (size_t index = 0; index < 1024; index++) {
        vectors[index][0] = (uint32_t)big;
        vectors[index][1] = big_size < MEBIBYTE ? 0 : MEBIBYTE;
    }
    size_t written = 0;
    TRY("fd-write", wasi_fd_write(1, vectors, 1024, &written));
    TRY("fd-write-count", wasi_fd_write(1, vectors, 0xffffffff, &written));
    TRY("random", wasi_random_get(big, big_size));
}

uint32_t WASM_EXPORT(proxy_on_request_headers)(uint32_t context, uint32_t count, uint32_t end_of_stream) {
    (void)context, (void)count, (void)end_of_stream;
    arena_reset();
    get_big_block();
    TRY("mebibytes", big_size / MEBIBYTE);
    try_pairs();
    if (big_size >= MEBIBYTE) {
        try_values();
        try_wasi();
        TRY("pairs-many", proxy_set_header_map_pairs(REQUEST_HEADERS, big, write_pairs(50000)));
    }
    return ACTION_CONTINUE;
}
