// Rate limiter: a token bucket for each value of a request header, in shared data, so that all VMs of the plugin count
// together and exactly. A request takes a token; one that finds none is answered with 429 and `retry-after`.
//
// Configuration (each optional):
//   {"header": "x-api-key",     whose values have a bucket each; requests without it share one
//    "burst": 100,              tokens that a bucket holds; it begins full
//    "per_second": 50,          tokens that come back in a second; 0: none
//    "buckets": 4096,           bounds the memory: values whose hashes meet in a bucket share it
//    "status": 429,
//    "open": 0}                 1: requests pass while shared data cannot be written
//
// Metrics: `rate_limiter.allowed`, `rate_limiter.refused`, `rate_limiter.failed` (shared data).
#include "shared_record.h"

struct bucket {
    uint64_t missing;    // billionths of a token that the bucket lacks; zero, as at first: it is full
    uint64_t updated_ns; // when that was so
};

struct request {
    uint64_t now_ns;
    bool allowed;
    uint64_t wait_ns; // until there is a token again
};

static struct setting_text header_name = {9, "x-api-key"};
static uint64_t burst = 100, per_second = 50, buckets = 4096, refusal = 429, open;
static uint32_t allowed_metric, refused_metric, failed_metric;

void WASM_EXPORT(proxy_abi_version_0_2_1)(void) {}

static const struct setting settings[] = {
    {.name = {TEXT("header")}, .text = &header_name},
    {.name = {TEXT("burst")}, .number = &burst, .least = 1, .most = 1000000000},
    {.name = {TEXT("per_second")}, .number = &per_second, .most = 1000000000},
    {.name = {TEXT("buckets")}, .number = &buckets, .least = 1, .most = 1000000},
    {.name = {TEXT("status")}, .number = &refusal, .least = 400, .most = 599},
    {.name = {TEXT("open")}, .number = &open, .most = 1},
};

uint32_t WASM_EXPORT(proxy_on_configure)(uint32_t context, uint32_t size) {
    (void)context;
    arena_reset();
    if (!configure(size, settings, sizeof settings / sizeof *settings)) return 0;
    uint32_t failed = proxy_define_metric(METRIC_COUNTER, TEXT("rate_limiter.allowed"), &allowed_metric);
    failed |= proxy_define_metric(METRIC_COUNTER, TEXT("rate_limiter.refused"), &refused_metric);
    failed |= proxy_define_metric(METRIC_COUNTER, TEXT("rate_limiter.failed"), &failed_metric);
    return failed == STATUS_OK;
}

// What has come back since the last change. A billionth of a token comes `per_second` times in a nanosecond. VMs may
// read the clock a moment apart, so time can seem to go back: nothing comes back then.
static void refill(struct bucket *bucket, uint64_t now) {
    if (now <= bucket->updated_ns) return;
    uint64_t elapsed = now - bucket->updated_ns;
    bucket->updated_ns = now;
    // The bucket is full again before the product could be too large.
    if (per_second && elapsed >= bucket->missing / per_second + 1)
        bucket->missing = 0;
    else
        bucket->missing -= elapsed * per_second;
}

static bool take_token(void *record, void *argument) {
    struct bucket *bucket = record;
    struct request *request = argument;
    refill(bucket, request->now_ns);
    request->allowed = bucket->missing + NS_PER_SECOND <= burst * NS_PER_SECOND;
    if (request->allowed) {
        bucket->missing += NS_PER_SECOND;
        return true;
    }
    uint64_t lacking = bucket->missing + NS_PER_SECOND - burst * NS_PER_SECOND;
    request->wait_ns = per_second ? (lacking + per_second - 1) / per_second : UINT64_MAX;
    return false; // nobody needs to know of a request that was refused
}

// `rate:` and the number of the bucket: FNV-1a of the value.
static struct text bucket_key(char buffer[5 + NUMBER_DIGITS], struct text value) {
    uint64_t hash = 14695981039346656037ull;
    for (size_t i = 0; i < value.size; i++) hash = (hash ^ (unsigned char)value.at[i]) * 1099511628211ull;
    char digits[NUMBER_DIGITS];
    char *end = put_bytes(put_bytes(buffer, TEXT("rate:")), SPREAD(number_text(digits, hash % buckets)));
    return (struct text){buffer, (size_t)(end - buffer)};
}

static void refuse(uint64_t wait_ns) {
    char digits[NUMBER_DIGITS];
    struct header_list headers = {.count = 0};
    if (wait_ns != UINT64_MAX) {
        uint64_t seconds = (wait_ns + NS_PER_SECOND - 1) / NS_PER_SECOND;
        list_header(&headers, LITERAL("retry-after"), number_text(digits, seconds));
    }
    answer((uint32_t)refusal, LITERAL("rate_limited"), &headers, LITERAL("Too many requests.\n"));
}

uint32_t WASM_EXPORT(proxy_on_request_headers)(uint32_t context, uint32_t count, uint32_t end_of_stream) {
    (void)context, (void)count, (void)end_of_stream;
    char buffer[5 + NUMBER_DIGITS];
    struct text value = LITERAL("");
    struct bucket bucket;
    arena_reset();
    header(REQUEST_HEADERS, setting_value(&header_name), &value);
    struct text key = bucket_key(buffer, value);
    struct request request = {.now_ns = now_ns()};
    if (!update_record(key, &bucket, sizeof bucket, take_token, &request)) {
        proxy_increment_metric(failed_metric, 1);
        request = (struct request){.allowed = open, .wait_ns = NS_PER_SECOND};
    }
    if (request.allowed) {
        proxy_increment_metric(allowed_metric, 1);
        return ACTION_CONTINUE;
    }
    proxy_increment_metric(refused_metric, 1);
    refuse(request.wait_ns);
    return ACTION_PAUSE;
}
