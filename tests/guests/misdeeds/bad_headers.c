// Adds headers that no proxy may send on: line breaks, NULs, illegal names, absurd pseudo-headers, framing headers.
//
// A message that carries `x-bad-case: <n>` gets the nth of CASES (from 0), one that carries `x-bad-case: all` gets all,
// and any other passes unchanged; that goes for requests and for responses. The message also gets `x-bad-statuses`,
// a digit per case tried: the status of the add (`a`: 10 and so on).
#include "../c/proxy_wasm.h"

#define CASE_COUNT (sizeof CASES / sizeof CASES[0])

static const struct {
    const char *name;
    size_t name_size;
    const char *value;
    size_t value_size;
} CASES[] = {
    {TEXT("x-bad-crlf"), TEXT("a\r\nx-injected: yes")},            // 0
    {TEXT("x-bad-lf"), TEXT("a\nx-injected: yes")},                // 1
    {TEXT("x-bad-cr"), TEXT("a\rb")},                              // 2
    {TEXT("x-bad-nul"), TEXT("a\0b")},                             // 3
    {TEXT("x-bad\r\nx-injected"), TEXT("yes")},                    // 4
    {TEXT("x bad space"), TEXT("v")},                              // 5
    {TEXT("x-bad:colon"), TEXT("v")},                              // 6
    {TEXT(""), TEXT("empty name")},                                // 7
    {TEXT("X-Bad-Upper"), TEXT("v")},                              // 8: legal, must arrive in lower case
    {TEXT("x-bad-\xc3\xa9"), TEXT("v")},                           // 9
    {TEXT("x-bad-nul\0name"), TEXT("v")},                          // 10
    {TEXT(":x-bad-pseudo"), TEXT("v")},                            // 11
    {TEXT(":status"), TEXT("abc")},                                // 12
    {TEXT(":status"), TEXT("99")},                                 // 13
    {TEXT(":status"), TEXT("1000")},                               // 14
    {TEXT(":status"), TEXT("-1")},                                 // 15
    {TEXT(":path"), TEXT("/a b\r\nHost: evil")},                   // 16
    {TEXT(":method"), TEXT("GET / HTTP/1.1\r\n\r\n")},             // 17
    {TEXT("content-length"), TEXT("-1")},                          // 18
    {TEXT("transfer-encoding"), TEXT("chunked, identity")},        // 19
    {TEXT("connection"), TEXT("close, x-bad-upper")},              // 20
    {TEXT("host"), TEXT("evil.example")},                          // 21
    {TEXT("x-bad-space-value"), TEXT("  padded\t ")},              // 22
    {TEXT("x-bad-delete"), TEXT("a\x7f\x01z")},                    // 23
};

void WASM_EXPORT(proxy_abi_version_0_2_1)(void) {}

#define ALL_CASES CASE_COUNT
#define NO_CASE (CASE_COUNT + 1)

static size_t wanted_case(uint32_t map) {
    char *text = NULL;
    size_t size = 0;
    size_t wanted = 0;
    if (proxy_get_header_map_value(map, TEXT("x-bad-case"), &text, &size) != STATUS_OK || size == 0) return NO_CASE;
    if (text[0] == 'a') return ALL_CASES;
    for (size_t at = 0; at < size && wanted < CASE_COUNT; at++) wanted = wanted * 10 + (size_t)(text[at] - '0');
    return wanted < CASE_COUNT ? wanted : NO_CASE;
}

static uint32_t add_bad_headers(uint32_t map) {
    char statuses[CASE_COUNT];
    size_t tried = 0;
    arena_reset();
    size_t wanted = wanted_case(map);
    if (wanted == NO_CASE) return ACTION_CONTINUE;
    for (size_t index = 0; index < CASE_COUNT; index++) {
        if (wanted != ALL_CASES && wanted != index) continue;
        uint32_t status = proxy_add_header_map_value(map, CASES[index].name, CASES[index].name_size,
                                                     CASES[index].value, CASES[index].value_size);
        statuses[tried++] = (char)(status < 10 ? '0' + status : 'a' + status - 10);
    }
    proxy_replace_header_map_value(map, TEXT("x-bad-statuses"), statuses, tried);
    return ACTION_CONTINUE;
}

uint32_t WASM_EXPORT(proxy_on_request_headers)(uint32_t context, uint32_t count, uint32_t end_of_stream) {
    (void)context, (void)count, (void)end_of_stream;
    return add_bad_headers(REQUEST_HEADERS);
}

uint32_t WASM_EXPORT(proxy_on_response_headers)(uint32_t context, uint32_t count, uint32_t end_of_stream) {
    (void)context, (void)count, (void)end_of_stream;
    return add_bad_headers(RESPONSE_HEADERS);
}
