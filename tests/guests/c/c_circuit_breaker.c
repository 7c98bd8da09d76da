// Circuit breaker: counts what the upstream answers, in shared data, for all VMs of the plugin together. When too much
// fails within a window it opens: requests are answered with 503 at once, and the upstream has time to recover. After a
// while it is half open: a few requests try. If all succeed it closes, if one fails it opens again.
//
// Configuration (each optional):
//   {"name": "default",         breakers of one name are one
//    "window_ms": 10000,        failures are counted within windows of this length
//    "requests": 20,            fewer in a window never open it
//    "failure_percent": 50,     as many of them, or more, do
//    "open_ms": 5000,
//    "probes": 3,               requests that try
//    "failure_status": 500,     a response of this status or above is a failure
//    "status": 503}             what is answered while it is open
//
// A request without a response says nothing, since clients can end those; Envoy answers for an upstream that is away
// or too slow, with a status. If shared data cannot be used, requests pass: a breaker saves load, it guards nothing.
//
// Metrics: `circuit_breaker.opened`, `circuit_breaker.refused`.
#include "shared_record.h"
#include "stream_table.h"

enum state { CLOSED = 0, OPEN = 1, HALF_OPEN = 2 };

struct breaker {
    uint64_t since_ns; // begin of the window, or of the present state
    uint32_t state;
    uint32_t requests, failures; // closed: of this window
    uint32_t trying, succeeded;  // half open: begun, and well done
};

static struct setting_text breaker_name = {7, "default"};
static uint64_t window_ms = 10000, requests = 20, failure_percent = 50, open_ms = 5000, probes = 3;
static uint64_t failure_status = 500, refusal = 503;
static uint32_t opened_metric, refused_metric;

void WASM_EXPORT(proxy_abi_version_0_2_1)(void) {}

static const struct setting settings[] = {
    {.name = {TEXT("name")}, .text = &breaker_name},
    {.name = {TEXT("window_ms")}, .number = &window_ms, .least = 1, .most = 3600000},
    {.name = {TEXT("requests")}, .number = &requests, .least = 1, .most = 1000000},
    {.name = {TEXT("failure_percent")}, .number = &failure_percent, .least = 1, .most = 100},
    {.name = {TEXT("open_ms")}, .number = &open_ms, .least = 1, .most = 3600000},
    {.name = {TEXT("probes")}, .number = &probes, .least = 1, .most = 1000},
    {.name = {TEXT("failure_status")}, .number = &failure_status, .least = 400, .most = 599},
    {.name = {TEXT("status")}, .number = &refusal, .least = 400, .most = 599},
};

uint32_t WASM_EXPORT(proxy_on_configure)(uint32_t context, uint32_t size) {
    (void)context;
    arena_reset();
    if (!configure(size, settings, sizeof settings / sizeof *settings)) return 0;
    uint32_t failed = proxy_define_metric(METRIC_COUNTER, TEXT("circuit_breaker.opened"), &opened_metric);
    failed |= proxy_define_metric(METRIC_COUNTER, TEXT("circuit_breaker.refused"), &refused_metric);
    return failed == STATUS_OK;
}

static struct text breaker_key(void) {
    static char buffer[8 + MAX_SETTING_TEXT];
    char *end = put_bytes(put_bytes(buffer, TEXT("breaker:")), SPREAD(setting_value(&breaker_name)));
    return (struct text){buffer, (size_t)(end - buffer)};
}

// ---- changes

struct admission {
    uint64_t now_ns;
    bool allowed, probe;
};

// Whether a request may pass, and as what.
static bool admit(void *record, void *argument) {
    struct breaker *breaker = record;
    struct admission *admission = argument;
    admission->allowed = breaker->state == CLOSED;
    admission->probe = false;
    if (breaker->state == CLOSED) return false;
    bool waited = admission->now_ns >= breaker->since_ns + open_ms * NS_PER_MS;
    // Probes that never ended, because their VM did, shall not keep it half open for ever.
    bool lost = breaker->state == HALF_OPEN && waited;
    if (lost || (breaker->state == OPEN && waited))
        *breaker = (struct breaker){.state = HALF_OPEN, .since_ns = admission->now_ns};
    if (breaker->state == OPEN || breaker->trying >= probes) return false;
    breaker->trying++;
    admission->allowed = admission->probe = true;
    return true;
}

struct outcome {
    uint64_t now_ns;
    bool probe, failed, without_response;
    bool opened;
};

static void open_breaker(struct breaker *breaker, struct outcome *outcome) {
    *breaker = (struct breaker){.state = OPEN, .since_ns = outcome->now_ns};
    outcome->opened = true;
}

static bool count_probe(struct breaker *breaker, struct outcome *outcome) {
    if (breaker->state != HALF_OPEN) return false;
    if (outcome->without_response) {
        if (breaker->trying > breaker->succeeded) breaker->trying--;
    } else if (outcome->failed) {
        open_breaker(breaker, outcome);
    } else if (++breaker->succeeded >= probes) {
        *breaker = (struct breaker){.state = CLOSED, .since_ns = outcome->now_ns};
    }
    return true;
}

static bool count(void *record, void *argument) {
    struct breaker *breaker = record;
    struct outcome *outcome = argument;
    outcome->opened = false;
    if (outcome->probe) return count_probe(breaker, outcome);
    if (breaker->state != CLOSED || outcome->without_response) return false;
    if (outcome->now_ns >= breaker->since_ns + window_ms * NS_PER_MS)
        *breaker = (struct breaker){.since_ns = outcome->now_ns};
    breaker->requests++;
    breaker->failures += outcome->failed;
    if (breaker->requests >= requests && breaker->failures * 100ull >= breaker->requests * failure_percent)
        open_breaker(breaker, outcome);
    return true;
}

// ---- streams: those in the table have passed and are not counted yet

uint32_t WASM_EXPORT(proxy_on_request_headers)(uint32_t context, uint32_t number, uint32_t end_of_stream) {
    (void)number, (void)end_of_stream;
    struct breaker breaker;
    struct admission admission = {.now_ns = now_ns()};
    bool known = update_record(breaker_key(), &breaker, sizeof breaker, admit, &admission);
    if (known && !admission.allowed) {
        struct header_list headers = {.count = 0};
        proxy_increment_metric(refused_metric, 1);
        answer((uint32_t)refusal, LITERAL("circuit_open"), &headers, LITERAL("The service is recovering.\n"));
        return ACTION_PAUSE;
    }
    struct stream *stream = add_stream(context);
    if (stream) stream->marked = known && admission.probe;
    return ACTION_CONTINUE;
}

static void finish(struct stream *stream, bool failed, bool without_response) {
    struct breaker breaker;
    struct outcome outcome = {now_ns(), stream->marked, failed, without_response, false};
    stream->context = 0;
    if (update_record(breaker_key(), &breaker, sizeof breaker, count, &outcome) && outcome.opened)
        proxy_increment_metric(opened_metric, 1);
}

uint32_t WASM_EXPORT(proxy_on_response_headers)(uint32_t context, uint32_t number, uint32_t end_of_stream) {
    (void)number, (void)end_of_stream;
    struct stream *stream = find_stream(context);
    struct text text;
    uint64_t status = 0;
    arena_reset();
    if (!stream) return ACTION_CONTINUE; // the filter's own answer
    bool failed = !header(RESPONSE_HEADERS, LITERAL(":status"), &text) || !text_number(text, &status) ||
                  status >= failure_status;
    finish(stream, failed, false);
    return ACTION_CONTINUE;
}

void WASM_EXPORT(proxy_on_delete)(uint32_t context) {
    struct stream *stream = find_stream(context);
    if (stream) finish(stream, false, true);
}
