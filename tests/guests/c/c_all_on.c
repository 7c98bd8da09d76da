// The soak's guest: everything at once that a plugin can keep busy with. For each request it adds one to a number in
// shared data, enqueues that number and counts it in metrics; its timer ticks every 20 ms; whatever is in the queue it
// takes out when it is told. Marks requests and responses with `x-wasm-processed: Yes`, and responses with what it has
// seen: `x-requests` (the number), `x-ticks` and `x-dequeued` (of this VM).
#include "proxy_wasm.h"

enum { COUNTER = 0, GAUGE = 1, HISTOGRAM = 2 };
enum { STATUS_CAS_MISMATCH = 8 };
enum { TICK_MS = 20, TRIES = 16, AT_ONCE = 64 };

static uint32_t requests_metric, ticks_metric, size_metric, queue;
static uint64_t ticks, dequeued;

void WASM_EXPORT(proxy_abi_version_0_2_1)(void) {}

uint32_t WASM_EXPORT(proxy_on_configure)(uint32_t context, uint32_t size) {
    (void)context, (void)size;
    uint32_t failed = proxy_set_tick_period_milliseconds(TICK_MS);
    failed |= proxy_define_metric(COUNTER, TEXT("all_on.requests"), &requests_metric);
    failed |= proxy_define_metric(GAUGE, TEXT("all_on.ticks"), &ticks_metric);
    failed |= proxy_define_metric(HISTOGRAM, TEXT("all_on.number"), &size_metric);
    failed |= proxy_register_shared_queue(TEXT("all_on"), &queue);
    return failed == STATUS_OK;
}

static void drain(void) {
    for (int count = 0; count < AT_ONCE; count++) {
        char *item = NULL;
        size_t size = 0;
        arena_reset();
        if (proxy_dequeue_shared_queue(queue, &item, &size) != STATUS_OK) return;
        dequeued += size == sizeof(uint64_t);
    }
}

void WASM_EXPORT(proxy_on_tick)(uint32_t context) {
    (void)context;
    ticks++;
    proxy_record_metric(ticks_metric, ticks);
    drain();
}

void WASM_EXPORT(proxy_on_queue_ready)(uint32_t context, uint32_t ready) {
    (void)context;
    if (ready == queue) drain();
}

// The number of this request among all VMs; 0 if others were always faster.
static uint64_t count_request(void) {
    for (int attempt = 0; attempt < TRIES; attempt++) {
        char *value = NULL;
        size_t size = 0;
        uint32_t cas = 0;
        uint64_t number = 0;
        uint32_t status = proxy_get_shared_data(TEXT("requests"), &value, &size, &cas);
        if (status == STATUS_OK && size == sizeof number) __builtin_memcpy(&number, value, sizeof number);
        number++;
        status = proxy_set_shared_data(TEXT("requests"), (const char *)&number, sizeof number, cas);
        if (status == STATUS_OK) return number;
        if (status != STATUS_CAS_MISMATCH) break;
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
    proxy_replace_header_map_value(RESPONSE_HEADERS, name, name_size, text + at, sizeof text - at);
}

static uint64_t last_number;

uint32_t WASM_EXPORT(proxy_on_request_headers)(uint32_t context, uint32_t count, uint32_t end_of_stream) {
    (void)context, (void)count, (void)end_of_stream;
    arena_reset();
    last_number = count_request();
    // A full queue is no matter: the timer empties it.
    proxy_enqueue_shared_queue(queue, (const char *)&last_number, sizeof last_number);
    proxy_increment_metric(requests_metric, 1);
    proxy_record_metric(size_metric, last_number);
    proxy_replace_header_map_value(REQUEST_HEADERS, TEXT("x-wasm-processed"), TEXT("Yes"));
    return ACTION_CONTINUE;
}

uint32_t WASM_EXPORT(proxy_on_response_headers)(uint32_t context, uint32_t count, uint32_t end_of_stream) {
    (void)context, (void)count, (void)end_of_stream;
    arena_reset();
    proxy_replace_header_map_value(RESPONSE_HEADERS, TEXT("x-wasm-processed"), TEXT("Yes"));
    set_number(TEXT("x-requests"), last_number);
    set_number(TEXT("x-ticks"), ticks);
    set_number(TEXT("x-dequeued"), dequeued);
    return ACTION_CONTINUE;
}
