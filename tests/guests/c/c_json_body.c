// Writes `"sandboxed":true` as the first member of the top-level object of each JSON response.
//
// The body is withheld until all of it has come, and only its beginning is rewritten. A response whose content type
// does not name JSON, or whose body is no object, passes unchanged.
#include "proxy_wasm.h"

#define MAX_JSON_STREAMS 8192

// Streams whose response is JSON and has not been deleted yet: content-type cannot be asked for once the headers
// have gone on.
static uint32_t json_streams[MAX_JSON_STREAMS];
static size_t json_stream_count;

void WASM_EXPORT(proxy_abi_version_0_2_1)(void) {}

static bool contains(const char *text, size_t size, const char *word, size_t word_size) {
    for (size_t at = 0; at + word_size <= size; at++) {
        size_t same = 0;
        while (same < word_size && (text[at + same] | 0x20) == word[same]) same++;
        if (same == word_size) return true;
    }
    return false;
}

static bool response_is_json(void) {
    char *type = NULL;
    size_t size = 0;
    uint32_t status = proxy_get_header_map_value(RESPONSE_HEADERS, TEXT("content-type"), &type, &size);
    return status == STATUS_OK && contains(type, size, TEXT("json"));
}

static size_t find_stream(uint32_t context) {
    size_t index = 0;
    while (index < json_stream_count && json_streams[index] != context) index++;
    return index;
}

static size_t skip_space(const char *body, size_t size, size_t at) {
    while (at < size && (body[at] == ' ' || body[at] == '\t' || body[at] == '\r' || body[at] == '\n')) at++;
    return at;
}

static void rewrite_body(void) {
    char *body = NULL;
    size_t size = 0;
    if (proxy_get_buffer_bytes(RESPONSE_BODY, 0, WHOLE_BUFFER, &body, &size) != STATUS_OK) return;
    size_t brace = skip_space(body, size, 0);
    if (brace == size || body[brace] != '{') return;
    size_t first = skip_space(body, size, brace + 1);
    bool empty = first < size && body[first] == '}';
    if (empty) {
        proxy_set_buffer_bytes(RESPONSE_BODY, 0, first, TEXT("{\"sandboxed\":true"));
    } else {
        proxy_set_buffer_bytes(RESPONSE_BODY, 0, brace + 1, TEXT("{\"sandboxed\":true,"));
    }
}

uint32_t WASM_EXPORT(proxy_on_response_headers)(uint32_t context, uint32_t count, uint32_t end_of_stream) {
    (void)count;
    arena_reset();
    if (end_of_stream || !response_is_json()) return ACTION_CONTINUE;
    if (json_stream_count == MAX_JSON_STREAMS) {
        proxy_log(LOG_WARN, TEXT("too many streams at once: a JSON response passes unchanged"));
        return ACTION_CONTINUE;
    }
    json_streams[json_stream_count++] = context;
    proxy_remove_header_map_value(RESPONSE_HEADERS, TEXT("content-length"));
    return ACTION_CONTINUE;
}

uint32_t WASM_EXPORT(proxy_on_response_body)(uint32_t context, uint32_t size, uint32_t end_of_stream) {
    (void)size;
    arena_reset();
    if (find_stream(context) == json_stream_count) return ACTION_CONTINUE;
    if (!end_of_stream) return ACTION_PAUSE;
    rewrite_body();
    return ACTION_CONTINUE;
}

// With trailers no chunk of the body ends the stream; what was withheld is still at hand here.
uint32_t WASM_EXPORT(proxy_on_response_trailers)(uint32_t context, uint32_t count) {
    (void)count;
    arena_reset();
    if (find_stream(context) < json_stream_count) rewrite_body();
    return ACTION_CONTINUE;
}

void WASM_EXPORT(proxy_on_delete)(uint32_t context) {
    size_t index = find_stream(context);
    if (index < json_stream_count) json_streams[index] = json_streams[--json_stream_count];
}
