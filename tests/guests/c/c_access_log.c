// Half of an access log that is shipped out of the streams' way: puts the path of each request into the shared queue
// `access` once the stream is over, for the service that has registered it (c_log_shipper). Counts what it could not
// hand over, with the queue full or nobody there, in the counter `access_log.lost`.
#include "proxy_wasm.h"

enum { COUNTER = 0 };

static uint32_t queue, lost_metric;

void WASM_EXPORT(proxy_abi_version_0_2_1)(void) {}

uint32_t WASM_EXPORT(proxy_on_configure)(uint32_t context, uint32_t size) {
    (void)context, (void)size;
    return proxy_define_metric(COUNTER, TEXT("access_log.lost"), &lost_metric) == STATUS_OK;
}

static bool ship(const char *line, size_t size) {
    // The service may have started after this filter, so its queue is looked for until it is there.
    if (queue == 0 && proxy_resolve_shared_queue(NULL, 0, TEXT("access"), &queue) != STATUS_OK) {
        queue = 0;
        return false;
    }
    return proxy_enqueue_shared_queue(queue, line, size) == STATUS_OK;
}

void WASM_EXPORT(proxy_on_log)(uint32_t context) {
    (void)context;
    char *path = NULL;
    size_t size = 0;
    arena_reset();
    if (proxy_get_header_map_value(REQUEST_HEADERS, TEXT(":path"), &path, &size) != STATUS_OK) return;
    if (!ship(path, size)) proxy_increment_metric(lost_metric, 1);
}
