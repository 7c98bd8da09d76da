// Fault injection: answers some requests with an error and lets some wait, to see how clients and services bear it.
//
// Configuration (each optional):
//   {"abort_percent": 0,        of the requests; spread evenly, so of 100 exactly as many
//    "abort_status": 503,
//    "delay_percent": 0,        of those that are not aborted
//    "delay_ms": 100,
//    "only_header": ""}         if given, only requests that have this header
//
// A delayed stream is paused and continued from a timer, which runs only while one waits. The policy's `time_per_pause`
// must be longer than the delay. No more than 4096 wait at a time; more pass at once.
//
// Metrics: `fault.aborted`, `fault.delayed`.
#include "stream_table.h"

enum { TICK_MS = 5, REQUEST_STREAM = 0 };

static uint64_t abort_percent, abort_status = 503, delay_percent, delay_ms = 100;
static struct setting_text only_header;
static uint64_t abort_sum, delay_sum; // hundredths of a fault that are due
static uint32_t waiting;
static uint32_t aborted_metric, delayed_metric;

void WASM_EXPORT(proxy_abi_version_0_2_1)(void) {}

static const struct setting settings[] = {
    {.name = {TEXT("abort_percent")}, .number = &abort_percent, .most = 100},
    {.name = {TEXT("abort_status")}, .number = &abort_status, .least = 400, .most = 599},
    {.name = {TEXT("delay_percent")}, .number = &delay_percent, .most = 100},
    {.name = {TEXT("delay_ms")}, .number = &delay_ms, .least = 1, .most = 60000},
    {.name = {TEXT("only_header")}, .text = &only_header},
};

uint32_t WASM_EXPORT(proxy_on_configure)(uint32_t context, uint32_t size) {
    (void)context;
    arena_reset();
    if (!configure(size, settings, sizeof settings / sizeof *settings)) return 0;
    uint32_t failed = proxy_define_metric(METRIC_COUNTER, TEXT("fault.aborted"), &aborted_metric);
    failed |= proxy_define_metric(METRIC_COUNTER, TEXT("fault.delayed"), &delayed_metric);
    return failed == STATUS_OK;
}

static bool due(uint64_t *sum, uint64_t percent) {
    *sum += percent;
    if (*sum < 100) return false;
    *sum -= 100;
    return true;
}

static void abort_request(void) {
    struct header_list headers = {.count = 0};
    proxy_increment_metric(aborted_metric, 1);
    answer((uint32_t)abort_status, LITERAL("fault_injected"), &headers, LITERAL("Fault injected.\n"));
}

static bool delay(uint32_t context) {
    struct stream *stream = add_stream(context);
    if (!stream) return false;
    stream->until_ns = now_ns() + delay_ms * NS_PER_MS;
    if (waiting++ == 0) proxy_set_tick_period_milliseconds(TICK_MS);
    proxy_increment_metric(delayed_metric, 1);
    return true;
}

uint32_t WASM_EXPORT(proxy_on_request_headers)(uint32_t context, uint32_t count, uint32_t end_of_stream) {
    (void)count, (void)end_of_stream;
    struct text value;
    arena_reset();
    if (only_header.size && !header(REQUEST_HEADERS, setting_value(&only_header), &value)) return ACTION_CONTINUE;
    if (due(&abort_sum, abort_percent)) {
        abort_request();
        return ACTION_PAUSE;
    }
    return due(&delay_sum, delay_percent) && delay(context) ? ACTION_PAUSE : ACTION_CONTINUE;
}

static void forget(struct stream *stream) {
    stream->context = 0;
    if (--waiting == 0) proxy_set_tick_period_milliseconds(0);
}

void WASM_EXPORT(proxy_on_tick)(uint32_t context) {
    (void)context;
    uint64_t now = now_ns();
    for (struct stream *stream = streams; waiting && stream < streams + MAX_STREAMS; stream++) {
        if (stream->context == 0 || stream->until_ns > now) continue;
        if (proxy_set_effective_context(stream->context) == STATUS_OK) proxy_continue_stream(REQUEST_STREAM);
        forget(stream);
    }
}

void WASM_EXPORT(proxy_on_delete)(uint32_t context) {
    struct stream *stream = find_stream(context);
    if (stream) forget(stream);
}
