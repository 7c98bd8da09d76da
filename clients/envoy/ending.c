/* How an exchange ends before its time: a local response, a reset, or the failure policy's answer. */
#include "module.h"

#include <stdlib.h>
#include <string.h>

enum { FEW_HEADERS = 64, FAILURE_STATUS = 503 };

static void drop_event(struct way *way)
{
    sbx_event_free(way->event);
    sbx_event_free(way->queued);
    way->event = way->queued = NULL;
    way->concluded = 0;
}

static void answer(struct filter *filter, uint32_t status, const char *details)
{
    filter->over = true;
    ENVOY_CALL(http_send_response)(filter->envoy, status, NULL, 0, (struct envoy_bytes){"", 0},
                                   (struct envoy_bytes){details, strlen(details)});
}

static void reset(struct filter *filter, const char *details)
{
    filter->over = true;
    count(filter, COUNT_RESET);
    ENVOY_CALL(http_filter_reset_stream)(filter->envoy, ENVOY_LOCAL_RESET,
                                         (struct envoy_bytes){details, strlen(details)});
}

static bool is_grpc(void *envoy)
{
    static const char prefix[] = "application/grpc";
    struct envoy_bytes value = {NULL, 0};
    return ENVOY_CALL(http_get_header)(envoy, ENVOY_REQUEST_HEADERS, (struct envoy_bytes){"content-type", 12}, &value, 0,
                                       NULL) &&
           value.len >= sizeof prefix - 1 && !memcmp(value.at, prefix, sizeof prefix - 1);
}

static void send_local(struct filter *filter)
{
    const sbx_local_response *local = filter->local;
    struct envoy_header few[FEW_HEADERS], *headers = few;
    size_t count_of = local->header_count;
    char grpc[12];
    if (count_of + 1 > FEW_HEADERS)
        headers = calloc(count_of + 1, sizeof *headers);
    if (!headers) {
        answer(filter, FAILURE_STATUS, "sandboxd_no_memory");
        return;
    }
    for (size_t i = 0; i < count_of; i++) {
        const sbx_pair *pair = &local->headers[i];
        headers[i] = (struct envoy_header){(const char *)pair->name.data, pair->name.len,
                                           (const char *)pair->value.data, pair->value.len};
    }
    if (local->grpc_status >= 0 && is_grpc(filter->envoy)) {
        size_t len = 0;
        if (local->grpc_status >= 10)
            grpc[len++] = (char)('0' + local->grpc_status / 10);
        grpc[len++] = (char)('0' + local->grpc_status % 10);
        headers[count_of++] = (struct envoy_header){"grpc-status", 11, grpc, len};
    }
    ENVOY_CALL(http_send_response)(filter->envoy, local->status, headers, count_of,
                                   (struct envoy_bytes){(const char *)local->body.data, local->body.len},
                                   (struct envoy_bytes){(const char *)local->details.data, local->details.len});
    if (headers != few)
        free(headers);
}

/* Does what ends the exchange, if there is such a thing. True: it is over. */
bool flush(struct filter *filter)
{
    if (filter->over)
        return true;
    /* What the plugin took for begun may still wait here: then the answer takes its place, as in Envoy's own filter. */
    bool begun = filter->ways[RESPONSE].gone;
    if (filter->close || (filter->local && begun) || (filter->local_refused && begun)) {
        reset(filter, filter->close ? "sandboxd_closed_by_plugin" : "sandboxd_answered_too_late");
    } else if (filter->local) {
        filter->over = true;
        count(filter, COUNT_LOCAL_RESPONSES);
        send_local(filter);
    } else if (filter->local_refused) {
        count(filter, COUNT_REFUSED);
        answer(filter, 500, "sandboxd_refused_response");
    }
    return filter->over;
}

static enum sbx_phase phase_of(const struct filter *filter, enum direction direction)
{
    const struct way *way = &filter->ways[direction];
    if (way->trailers_sent)
        return direction == REQUEST ? SBX_PHASE_REQUEST_TRAILERS : SBX_PHASE_RESPONSE_TRAILERS;
    if (way->headers_go)
        return direction == REQUEST ? SBX_PHASE_REQUEST_BODY : SBX_PHASE_RESPONSE_BODY;
    return direction == REQUEST ? SBX_PHASE_REQUEST_HEADERS : SBX_PHASE_RESPONSE_HEADERS;
}

static void go_without(struct filter *filter)
{
    filter->bypass = true;
    count(filter, COUNT_FAILED_OPEN);
    for (int direction = REQUEST; direction <= RESPONSE; direction++) {
        struct way *way = &filter->ways[direction];
        drop_event(way);
        way->submitted = 0;
        way->same = false;
        way->headers_go = way->end_go = way->trailers_go = true;
    }
    stop_waiting(filter);
}

/* Bytes that Envoy does not have any more: the VM's, or libsandboxd's until the VM lets them go. */
static bool holds_bytes(const struct filter *filter, enum direction direction)
{
    enum sbx_kind kind = direction == REQUEST ? SBX_REQUEST_BODY : SBX_RESPONSE_BODY;
    return filter->ways[direction].held || (filter->stream && sbx_stream_kept(filter->stream, kind));
}

void exchange_fail(struct filter *filter, enum direction direction, enum sbx_cause cause)
{
    bool begun = filter->ways[RESPONSE].gone;
    if (filter->over || filter->bypass)
        return;
    const sbx_policy *policy = filter->lane ? sbx_channel_policy(filter->lane->channel) : filter->link->policy;
    sbx_failure failure = sbx_failure_decide(policy, phase_of(filter, direction), cause, begun);
    if (failure.action == SBX_CONTINUE && !holds_bytes(filter, REQUEST) && !holds_bytes(filter, RESPONSE)) {
        go_without(filter);
        return;
    }
    count(filter, COUNT_FAILED_CLOSED);
    if (failure.action == SBX_RESET || begun)
        reset(filter, failure.details);
    else
        answer(filter, failure.action == SBX_RESPOND ? failure.status : FAILURE_STATUS, failure.details);
}

void fail_away(struct filter *filter)
{
    if (filter->config->fail_open) {
        go_without(filter);
        return;
    }
    count(filter, COUNT_FAILED_CLOSED);
    answer(filter, FAILURE_STATUS, "sandboxd_daemon_away");
}

static enum sbx_cause cause_of(int status)
{
    switch (status) {
    case SBX_TIMEOUT: return SBX_CAUSE_TIMEOUT;
    case SBX_DETACHED: return SBX_CAUSE_WORKER_GONE;
    case SBX_LIMIT:
    case SBX_FULL:
    case SBX_NO_MEMORY: return SBX_CAUSE_LIMIT;
    case SBX_BROKEN:
    case SBX_INVALID: return SBX_CAUSE_PROTOCOL;
    default: return SBX_CAUSE_TRAP;
    }
}

void submission_fail(struct filter *filter, enum direction direction, int status)
{
    exchange_fail(filter, direction, status == SBX_DOWN ? SBX_CAUSE_VM_DOWN : cause_of(status));
}

enum sbx_cause event_cause(const struct filter *filter, int status)
{
    return status == SBX_DOWN && filter->lane ? sbx_channel_down_cause(filter->lane->channel) : cause_of(status);
}
