// External authorization: asks a service whether a request may pass, and waits for its answer.
//
// The service gets `GET <path>` with the request's method, host and path as `x-original-method`, `x-original-host` and
// `x-original-path`, and the request's header `header` as `authorization`. What it answers:
//   2xx               the request passes; headers of the answer that begin with `prefix` are set in it
//   4xx               the client gets that status, the answer's body (1 KiB of it) and its `www-authenticate`
//   anything else, or no answer in `timeout_ms`: the client gets `error_status`, or the request passes if `open` is 1
//
// A request with several such headers is answered with 400: nobody knows which of them the upstream would take.
//
// Configuration (each optional):
//   {"upstream": "authz", "path": "/check", "timeout_ms": 500, "header": "authorization",
//    "prefix": "x-auth-",       what clients send under it is removed, so that nobody can pretend
//    "error_status": 503, "open": 0}
//
// The plugin sees `authorization` only if its policy shows it. Metrics: `ext_authz.allowed`, `ext_authz.denied`,
// `ext_authz.failed`.
#include "stream_table.h"

enum { CALL_HEADERS = 6, CALL_BODY = 4, REQUEST_STREAM = 0 };
enum { MAX_BODY = 1024 };

static struct setting_text upstream = {5, "authz"}, path = {6, "/check"}, forwarded = {13, "authorization"},
                           prefix = {7, "x-auth-"};
static uint64_t timeout_ms = 500, error_status = 503, open;
static uint32_t allowed_metric, denied_metric, failed_metric;

void WASM_EXPORT(proxy_abi_version_0_2_1)(void) {}

static const struct setting settings[] = {
    {.name = {TEXT("upstream")}, .text = &upstream},
    {.name = {TEXT("path")}, .text = &path},
    {.name = {TEXT("header")}, .text = &forwarded},
    {.name = {TEXT("prefix")}, .text = &prefix},
    {.name = {TEXT("timeout_ms")}, .number = &timeout_ms, .least = 1, .most = 60000},
    {.name = {TEXT("error_status")}, .number = &error_status, .least = 400, .most = 599},
    {.name = {TEXT("open")}, .number = &open, .most = 1},
};

uint32_t WASM_EXPORT(proxy_on_configure)(uint32_t context, uint32_t size) {
    (void)context;
    arena_reset();
    if (!configure(size, settings, sizeof settings / sizeof *settings)) return 0;
    uint32_t failed = proxy_define_metric(METRIC_COUNTER, TEXT("ext_authz.allowed"), &allowed_metric);
    failed |= proxy_define_metric(METRIC_COUNTER, TEXT("ext_authz.denied"), &denied_metric);
    failed |= proxy_define_metric(METRIC_COUNTER, TEXT("ext_authz.failed"), &failed_metric);
    return failed == STATUS_OK;
}

// ---- the question

static void pass_on(struct header_list *list, struct text from, struct text to) {
    struct text value;
    if (header(REQUEST_HEADERS, from, &value)) list_header(list, to, value);
}

static bool ask(uint32_t context) {
    struct header_list question = {.count = 0};
    list_header(&question, LITERAL(":method"), LITERAL("GET"));
    list_header(&question, LITERAL(":path"), setting_value(&path));
    list_header(&question, LITERAL(":authority"), setting_value(&upstream));
    pass_on(&question, LITERAL(":method"), LITERAL("x-original-method"));
    pass_on(&question, LITERAL(":authority"), LITERAL("x-original-host"));
    pass_on(&question, LITERAL(":path"), LITERAL("x-original-path"));
    pass_on(&question, setting_value(&forwarded), LITERAL("authorization"));
    struct text list = encoded(&question);
    struct stream *stream = list.size ? add_stream(context) : NULL;
    if (!stream) return false;
    if (proxy_http_call(SPREAD(setting_value(&upstream)), SPREAD(list), NULL, 0, NULL, 0, (uint32_t)timeout_ms,
                        &stream->call) == STATUS_OK)
        return true;
    stream->context = 0;
    return false;
}

// Without an answer. Returns whether the request goes on.
static bool fail(void) {
    struct header_list headers = {.count = 0};
    proxy_increment_metric(failed_metric, 1);
    if (open) return true;
    answer((uint32_t)error_status, LITERAL("ext_authz_error"), &headers, LITERAL("Authorization is not available.\n"));
    return false;
}

uint32_t WASM_EXPORT(proxy_on_request_headers)(uint32_t context, uint32_t count, uint32_t end_of_stream) {
    (void)count, (void)end_of_stream;
    arena_reset();
    if (header_count(REQUEST_HEADERS, setting_value(&forwarded)) > 1 || !remove_prefixed(setting_value(&prefix))) {
        struct header_list headers = {.count = 0};
        answer(400, LITERAL("ext_authz_headers"), &headers, LITERAL("Too many headers.\n"));
        return ACTION_PAUSE;
    }
    if (ask(context)) return ACTION_PAUSE;
    return fail() ? ACTION_CONTINUE : ACTION_PAUSE;
}

// ---- the answer

static void copy_prefixed(struct text name, struct text value) {
    if (prefix.size && begins_with(name, setting_value(&prefix))) set_header(REQUEST_HEADERS, name, value);
}

static void deny(uint32_t status) {
    char *body = NULL;
    size_t size = 0;
    struct text challenge;
    struct header_list headers = {.count = 0};
    proxy_increment_metric(denied_metric, 1);
    if (header(CALL_HEADERS, LITERAL("www-authenticate"), &challenge))
        list_header(&headers, LITERAL("www-authenticate"), challenge);
    if (proxy_get_buffer_bytes(CALL_BODY, 0, MAX_BODY, &body, &size) != STATUS_OK) size = 0;
    answer(status, LITERAL("ext_authz_denied"), &headers, (struct text){body, size});
}

// Returns whether the request goes on.
static bool judge(uint32_t headers) {
    struct text text;
    uint64_t status = 0;
    if (headers == 0 || !header(CALL_HEADERS, LITERAL(":status"), &text) || !text_number(text, &status)) return fail();
    if (status >= 400 && status < 500) {
        deny((uint32_t)status);
        return false;
    }
    if (status < 200 || status >= 300 || !each_header(CALL_HEADERS, copy_prefixed)) return fail();
    proxy_increment_metric(allowed_metric, 1);
    return true;
}

// Of no more than a few thousand streams, one waits for this answer.
static struct stream *waiting_for(uint32_t call) {
    for (struct stream *stream = streams; stream < streams + MAX_STREAMS; stream++)
        if (stream->context != 0 && stream->call == call) return stream;
    return NULL;
}

// The answer comes to the plugin's root context; the stream that waits for it may be gone.
void WASM_EXPORT(proxy_on_http_call_response)(uint32_t root, uint32_t call, uint32_t headers, uint32_t body_size,
                                              uint32_t trailers) {
    (void)root, (void)body_size, (void)trailers;
    arena_reset();
    struct stream *stream = waiting_for(call);
    if (!stream) return;
    uint32_t context = stream->context;
    stream->context = 0;
    if (proxy_set_effective_context(context) == STATUS_OK && judge(headers)) proxy_continue_stream(REQUEST_STREAM);
}

void WASM_EXPORT(proxy_on_delete)(uint32_t context) {
    struct stream *stream = find_stream(context);
    if (stream) stream->context = 0;
}
