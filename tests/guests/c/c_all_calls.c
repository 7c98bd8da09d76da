// The soak's other guest: each request waits for a callout, every fourth one by gRPC; every eighth response for another
// one. A few callouts are late, hang past their time or are reset. The body's size, or the message, shows whether the
// answer is that of the very call: what is not is counted in `calls.wrong`. Puts the path of each request into the
// shared queue `access` for the service c_log_shipper. Marks requests and responses with `x-wasm-processed: Yes`.
//
// Upstreams: `web` (`/big/N` answers with N bytes, `/slow/MS` late, `/reset` not at all), `rpc` (`test.Echo/Unary`
// repeats the message after `echo:`). Metrics: `calls.http`, `calls.grpc` (answered), `calls.failed`, `calls.refused`,
// `calls.wrong`, `calls.lost` (lines).
#include "filter.h"

enum { CALL_HEADERS = 6, GRPC_MESSAGE = 5 };
enum { REQUEST = 0, RESPONSE = 1 };
enum { PATIENCE_MS = 300, SIZES = 997, MAX_CALLS = 1024 };

// What is known of a call that is under way.
struct call {
    uint32_t context; // 0: free
    uint32_t id;
    uint32_t direction;
    bool grpc;
    uint64_t expected; // size of an HTTP answer; number in a gRPC message
};

static struct call calls[MAX_CALLS];
static uint64_t number;
static uint32_t queue, http_metric, grpc_metric, failed_metric, refused_metric, wrong_metric, lost_metric;

void WASM_EXPORT(proxy_abi_version_0_2_1)(void) {}

uint32_t WASM_EXPORT(proxy_on_configure)(uint32_t context, uint32_t size) {
    (void)context, (void)size;
    uint32_t failed = proxy_define_metric(METRIC_COUNTER, TEXT("calls.http"), &http_metric);
    failed |= proxy_define_metric(METRIC_COUNTER, TEXT("calls.grpc"), &grpc_metric);
    failed |= proxy_define_metric(METRIC_COUNTER, TEXT("calls.failed"), &failed_metric);
    failed |= proxy_define_metric(METRIC_COUNTER, TEXT("calls.refused"), &refused_metric);
    failed |= proxy_define_metric(METRIC_COUNTER, TEXT("calls.wrong"), &wrong_metric);
    failed |= proxy_define_metric(METRIC_COUNTER, TEXT("calls.lost"), &lost_metric);
    return failed == STATUS_OK;
}

// ---- asking

static struct text joined(char *buffer, struct text beginning, uint64_t value) {
    char digits[NUMBER_DIGITS];
    struct text end = number_text(digits, value);
    char *top = put_bytes(put_bytes(buffer, SPREAD(beginning)), SPREAD(end));
    return (struct text){buffer, (size_t)(top - buffer)};
}

static uint32_t ask_http(struct call *call) {
    char path[32];
    struct header_list list = {.count = 0};
    uint32_t timeout_ms = PATIENCE_MS;
    struct text target = joined(path, LITERAL("/big/"), call->expected);
    if (number % 256 == 7) target = LITERAL("/slow/2000"), timeout_ms = 50;
    else if (number % 64 == 5) target = LITERAL("/reset");
    else if (number % 32 == 9) target = LITERAL("/slow/30"), call->expected = sizeof "late" - 1;
    list_header(&list, LITERAL(":method"), LITERAL("GET"));
    list_header(&list, LITERAL(":path"), target);
    list_header(&list, LITERAL(":authority"), LITERAL("web"));
    struct text headers = encoded(&list);
    return proxy_http_call(TEXT("web"), SPREAD(headers), NULL, 0, NULL, 0, timeout_ms, &call->id);
}

static uint32_t ask_grpc(struct call *call) {
    char message[NUMBER_DIGITS];
    struct text text = number_text(message, call->expected);
    return proxy_grpc_call(TEXT("rpc"), TEXT("test.Echo"), TEXT("Unary"), NULL, 0, SPREAD(text), PATIENCE_MS,
                           &call->id);
}

static struct call *free_call(void) {
    for (struct call *call = calls; call < calls + MAX_CALLS; call++)
        if (call->context == 0) return call;
    return NULL;
}

// Returns what the stream does.
static uint32_t ask(uint32_t context, uint32_t direction) {
    struct call *call = free_call();
    number++;
    if (!call) return ACTION_CONTINUE;
    bool grpc = number % 4 == 3;
    *call = (struct call){.direction = direction, .grpc = grpc, .expected = grpc ? number : 1 + number % SIZES};
    if ((grpc ? ask_grpc(call) : ask_http(call)) != STATUS_OK) {
        proxy_increment_metric(refused_metric, 1);
        return ACTION_CONTINUE;
    }
    call->context = context;
    return ACTION_PAUSE;
}

uint32_t WASM_EXPORT(proxy_on_request_headers)(uint32_t context, uint32_t count, uint32_t end_of_stream) {
    (void)count, (void)end_of_stream;
    arena_reset();
    set_header(REQUEST_HEADERS, LITERAL("x-wasm-processed"), LITERAL("Yes"));
    return ask(context, REQUEST);
}

uint32_t WASM_EXPORT(proxy_on_response_headers)(uint32_t context, uint32_t count, uint32_t end_of_stream) {
    (void)count, (void)end_of_stream;
    arena_reset();
    set_header(RESPONSE_HEADERS, LITERAL("x-wasm-processed"), LITERAL("Yes"));
    return number % 8 == 0 ? ask(context, RESPONSE) : ACTION_CONTINUE;
}

// ---- answers: they come to the plugin's root context; the stream that waited may be gone

static struct call *waiting_for(bool grpc, uint32_t id) {
    for (struct call *call = calls; call < calls + MAX_CALLS; call++)
        if (call->context != 0 && call->id == id && call->grpc == grpc) return call;
    return NULL;
}

static void over(struct call *call, uint32_t metric) {
    uint32_t context = call->context;
    call->context = 0;
    proxy_increment_metric(metric, 1);
    if (proxy_set_effective_context(context) == STATUS_OK) proxy_continue_stream(call->direction);
}

void WASM_EXPORT(proxy_on_http_call_response)(uint32_t root, uint32_t id, uint32_t headers, uint32_t body_size,
                                              uint32_t trailers) {
    (void)root, (void)trailers;
    arena_reset();
    struct call *call = waiting_for(false, id);
    struct text status;
    if (!call) return;
    if (headers == 0) over(call, failed_metric);
    else if (!header(CALL_HEADERS, LITERAL(":status"), &status)) over(call, wrong_metric);
    // What the host says when there was no answer: 502, 503, 504.
    else if (begins_with(status, LITERAL("50"))) over(call, failed_metric);
    else over(call, same(status, LITERAL("200")) && body_size == call->expected ? http_metric : wrong_metric);
}

void WASM_EXPORT(proxy_on_grpc_receive)(uint32_t root, uint32_t id, uint32_t size) {
    (void)root;
    arena_reset();
    char *message = NULL, wanted[32];
    size_t have = 0;
    struct call *call = waiting_for(true, id);
    if (!call) return;
    bool got = proxy_get_buffer_bytes(GRPC_MESSAGE, 0, size, &message, &have) == STATUS_OK;
    struct text echo = joined(wanted, LITERAL("echo:"), call->expected);
    over(call, got && same((struct text){message, have}, echo) ? grpc_metric : wrong_metric);
}

void WASM_EXPORT(proxy_on_grpc_close)(uint32_t root, uint32_t id, uint32_t status) {
    (void)root, (void)status;
    arena_reset();
    struct call *call = waiting_for(true, id);
    if (call) over(call, failed_metric);
}

// ---- the end

void WASM_EXPORT(proxy_on_log)(uint32_t context) {
    (void)context;
    struct text path;
    arena_reset();
    if (!header(REQUEST_HEADERS, LITERAL(":path"), &path)) return;
    if (queue == 0 && proxy_resolve_shared_queue(NULL, 0, TEXT("access"), &queue) != STATUS_OK) queue = 0;
    if (queue == 0 || proxy_enqueue_shared_queue(queue, SPREAD(path)) != STATUS_OK)
        proxy_increment_metric(lost_metric, 1);
}

void WASM_EXPORT(proxy_on_delete)(uint32_t context) {
    for (struct call *call = calls; call < calls + MAX_CALLS; call++)
        if (call->context == context) call->context = 0;
}
