// The other half: a service. It registers the shared queue `access` and logs `shipped <line>` for each line that it is
// told of, counts them (`shipper.lines`, `shipper.bytes`) and its ticks, one each 10 ms (`shipper.ticks`). The line
// `/trap` makes it trap, so that one can watch it come back.
#include "proxy_wasm.h"

enum { COUNTER = 0, GAUGE = 1, HISTOGRAM = 2 };
enum { TICK_MS = 10, MAX_LINE = 256 };

static uint32_t queue, lines_metric, ticks_metric, bytes_metric;
static uint64_t ticks;

void WASM_EXPORT(proxy_abi_version_0_2_1)(void) {}

uint32_t WASM_EXPORT(proxy_on_configure)(uint32_t context, uint32_t size) {
    (void)context, (void)size;
    uint32_t failed = proxy_register_shared_queue(TEXT("access"), &queue);
    failed |= proxy_define_metric(COUNTER, TEXT("shipper.lines"), &lines_metric);
    failed |= proxy_define_metric(GAUGE, TEXT("shipper.ticks"), &ticks_metric);
    failed |= proxy_define_metric(HISTOGRAM, TEXT("shipper.bytes"), &bytes_metric);
    failed |= proxy_set_tick_period_milliseconds(TICK_MS);
    return failed == STATUS_OK;
}

void WASM_EXPORT(proxy_on_tick)(uint32_t context) {
    (void)context;
    proxy_record_metric(ticks_metric, ++ticks);
}

static bool is_trap(const char *line, size_t size) {
    static const char trap[] = "/trap";
    size_t same = 0;
    while (same < size && same < sizeof trap - 1 && line[same] == trap[same]) same++;
    return same == size && same == sizeof trap - 1;
}

static void ship(const char *line, size_t size) {
    char text[MAX_LINE + 8] = "shipped ";
    size_t kept = size < MAX_LINE ? size : MAX_LINE;
    __builtin_memcpy(text + 8, line, kept);
    proxy_log(LOG_INFO, text, 8 + kept);
    proxy_increment_metric(lines_metric, 1);
    proxy_record_metric(bytes_metric, size);
}

void WASM_EXPORT(proxy_on_queue_ready)(uint32_t context, uint32_t ready) {
    (void)context;
    char *line = NULL;
    size_t size = 0;
    arena_reset();
    // Told once for each line: another VM may have taken it.
    if (ready != queue || proxy_dequeue_shared_queue(queue, &line, &size) != STATUS_OK) return;
    if (is_trap(line, size)) __builtin_trap();
    ship(line, size);
}
