/* The course of an exchange: events go to the plugin, verdicts come back, and Envoy goes on or waits. */
#include "module.h"

#include <stdlib.h>
#include <string.h>

enum { FEW_HEADERS = 64, FAILURE_STATUS = 503 };

static enum sbx_kind headers_kind(enum direction direction)
{
    return direction == REQUEST ? SBX_REQUEST_HEADERS : SBX_RESPONSE_HEADERS;
}

static enum sbx_kind body_kind(enum direction direction)
{
    return direction == REQUEST ? SBX_REQUEST_BODY : SBX_RESPONSE_BODY;
}

static enum sbx_kind trailers_kind(enum direction direction)
{
    return direction == REQUEST ? SBX_REQUEST_TRAILERS : SBX_RESPONSE_TRAILERS;
}

static bool needs(const struct filter *filter, uint32_t request, uint32_t response, enum direction direction)
{
    uint32_t bits = sbx_policy_needs(sbx_channel_policy(filter->lane->channel));
    return bits & (direction == REQUEST ? request : response);
}

static bool needs_body(const struct filter *filter, enum direction direction)
{
    return needs(filter, SBX_NEEDS_REQUEST_BODY, SBX_NEEDS_RESPONSE_BODY, direction);
}

/* Whether the plugin is called for a body, read it or not. */
static bool hears_of_body(const struct filter *filter, enum direction direction)
{
    return needs(filter, SBX_NEEDS_REQUEST_BODY | SBX_HAS_REQUEST_BODY_CALLBACK,
                 SBX_NEEDS_RESPONSE_BODY | SBX_HAS_RESPONSE_BODY_CALLBACK, direction);
}

static bool needs_trailers(const struct filter *filter, enum direction direction)
{
    return needs(filter, SBX_NEEDS_REQUEST_TRAILERS | SBX_HAS_REQUEST_TRAILERS_CALLBACK,
                 SBX_NEEDS_RESPONSE_TRAILERS | SBX_HAS_RESPONSE_TRAILERS_CALLBACK, direction);
}

static void drop_event(struct way *way)
{
    sbx_event_free(way->event);
    sbx_event_free(way->queued);
    way->event = way->queued = NULL;
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

void exchange_fail(struct filter *filter, enum direction direction, enum sbx_cause cause)
{
    bool begun = filter->ways[RESPONSE].gone;
    if (filter->over || filter->bypass)
        return;
    const sbx_policy *policy = filter->lane ? sbx_channel_policy(filter->lane->channel) : filter->link->policy;
    sbx_failure failure = sbx_failure_decide(policy, phase_of(filter, direction), cause, begun);
    bool lost = filter->ways[REQUEST].held || filter->ways[RESPONSE].held;
    if (failure.action == SBX_CONTINUE && !lost) {
        go_without(filter);
        return;
    }
    count(filter, COUNT_FAILED_CLOSED);
    if (failure.action == SBX_RESET || begun)
        reset(filter, failure.details);
    else
        answer(filter, failure.action == SBX_RESPOND ? failure.status : FAILURE_STATUS, failure.details);
}

static void fail_away(struct filter *filter)
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

static void conclude_verdict(struct filter *filter, enum direction direction, enum sbx_kind kind,
                             const sbx_verdict *verdict)
{
    struct way *way = &filter->ways[direction];
    uint32_t stopped = direction == REQUEST ? SBX_REQUEST_ALL_STOPPED : SBX_RESPONSE_ALL_STOPPED;
    bool is_body = kind == body_kind(direction);
    if (is_body)
        way->held += way->submitted;
    for (size_t i = 0; i < verdict->effect_count; i++)
        take_effect(filter, &verdict->effects[i]);
    for (size_t i = 0; i < verdict->notice_count; i++)
        take_notice(filter->lane, &verdict->notices[i]);
    for (size_t i = 0; i < verdict->refusal_count; i++)
        count(filter, COUNT_REFUSED);
    way->all_stopped = (verdict->state & stopped) != 0;
    if (is_body && !way->same) {
        body_drop(filter, direction, way->submitted);
        way->submitted = 0;
    }
}

/* The event ended. Its memory goes with it. */
static void conclude(struct filter *filter, enum direction direction, sbx_event *event, int status)
{
    enum sbx_kind kind = sbx_event_kind(event);
    const sbx_verdict *verdict = sbx_event_verdict(event);
    filter->ways[direction].event = NULL;
    if (status != SBX_OK || !verdict)
        exchange_fail(filter, direction, cause_of(status));
    else if (verdict->code == SBX_VERDICT_LIMIT)
        exchange_fail(filter, direction, SBX_CAUSE_LIMIT);
    else if (verdict->code == SBX_VERDICT_UNKNOWN_STREAM)
        exchange_fail(filter, direction, SBX_CAUSE_TRAP);
    else if (verdict->code == SBX_VERDICT_OUT_OF_ORDER)
        exchange_fail(filter, direction, SBX_CAUSE_PROTOCOL);
    else
        conclude_verdict(filter, direction, kind, verdict);
    sbx_event_free(event);
}

/* Looks for a verdict for as long as the budget allows; the filter waits if there is none. */
static void run(struct filter *filter, enum direction direction, sbx_event *event)
{
    int status = sbx_spin(event);
    if (status == SBX_AGAIN) {
        filter->ways[direction].event = event;
        count(filter, COUNT_LATER);
        wait_for_lane(filter);
        return;
    }
    count(filter, COUNT_AT_ONCE);
    conclude(filter, direction, event, status);
    if (filter->lane)
        lane_touched(filter->lane);
}

static void submit_map(struct filter *filter, enum direction direction, enum sbx_kind kind, int map, bool end)
{
    struct envoy_header few[FEW_HEADERS], *headers = few;
    sbx_pair few_pairs[FEW_HEADERS], *pairs = few_pairs;
    sbx_event *event = NULL;
    int status = SBX_NO_MEMORY;
    size_t size = ENVOY_CALL(http_get_headers_size)(filter->envoy, map);
    if (size > FEW_HEADERS) {
        headers = calloc(size, sizeof *headers);
        pairs = calloc(size, sizeof *pairs);
    }
    if (headers && pairs && (!size || ENVOY_CALL(http_get_headers)(filter->envoy, map, headers))) {
        for (size_t i = 0; i < size; i++)
            pairs[i] = (sbx_pair){{(const uint8_t *)headers[i].name, headers[i].name_len},
                                  {(const uint8_t *)headers[i].value, headers[i].value_len}};
        status = sbx_submit_headers(filter->stream, kind, pairs, size, end, wall_ns(), filter, &event);
    }
    if (size > FEW_HEADERS) {
        free(headers);
        free(pairs);
    }
    if (status == SBX_OK)
        run(filter, direction, event);
    else
        exchange_fail(filter, direction, status == SBX_DOWN ? SBX_CAUSE_VM_DOWN : cause_of(status));
}

/* Hands what Envoy has of a body to the plugin; Envoy keeps it until the verdict. */
static int give_body(struct filter *filter, enum direction direction, sbx_event **event)
{
    struct way *way = &filter->ways[direction];
    struct buffer all = {0};
    size_t size = body_size(filter, direction);
    bool end = way->ending && !way->has_trailers;
    int status = SBX_NO_MEMORY;
    if (!needs_body(filter, direction)) {
        status = sbx_submit_nothing(filter->stream, body_kind(direction), end, wall_ns(), filter, event);
    } else if (body_copy(filter, direction, 0, size, &all)) {
        sbx_bytes piece = {all.at, all.len};
        status = sbx_submit_body(filter->stream, body_kind(direction), &piece, size ? 1 : 0, end, wall_ns(), filter,
                                 event);
    }
    buffer_free(&all);
    way->end_sent = end;
    way->submitted = size;
    return status;
}

static void submit_body(struct filter *filter, enum direction direction)
{
    sbx_event *event = NULL;
    int status = give_body(filter, direction, &event);
    if (status == SBX_OK)
        run(filter, direction, event);
    else
        exchange_fail(filter, direction, status == SBX_DOWN ? SBX_CAUSE_VM_DOWN : cause_of(status));
}

/* The first piece of a body does not wait for the verdict on the headers: it comes with it. */
void submit_behind(struct filter *filter, enum direction direction)
{
    struct way *way = &filter->ways[direction];
    sbx_event *event = NULL;
    if (way->queued || way->end_sent || way->headers_go || sbx_event_kind(way->event) != headers_kind(direction) ||
        !hears_of_body(filter, direction) || !body_size(filter, direction))
        return;
    int status = give_body(filter, direction, &event);
    if (status == SBX_OK) {
        way->queued = event;
        lane_touched(filter->lane);
    } else {
        exchange_fail(filter, direction, status == SBX_DOWN ? SBX_CAUSE_VM_DOWN : cause_of(status));
    }
}

void submit_headers(struct filter *filter, enum direction direction, bool end)
{
    struct way *way = &filter->ways[direction];
    way->headers_sent = true;
    way->end_sent = end;
    submit_map(filter, direction, headers_kind(direction),
               direction == REQUEST ? ENVOY_REQUEST_HEADERS : ENVOY_RESPONSE_HEADERS, end);
}

/* What was let go as it is, but cannot go yet, makes room for what comes behind. */
void set_aside(struct filter *filter, enum direction direction)
{
    struct way *way = &filter->ways[direction];
    if (!way->same)
        return;
    way->same = false;
    if (!body_copy(filter, direction, 0, way->submitted, &way->out))
        filter->close = true;
    body_drop(filter, direction, way->submitted);
    way->submitted = 0;
}

static bool body_is_due(struct filter *filter, enum direction direction, size_t fresh)
{
    const struct way *way = &filter->ways[direction];
    if (way->end_sent || (!fresh && !way->ending))
        return false;
    return hears_of_body(filter, direction) || !way->headers_go;
}

/* Submits what has come since, until an event is outstanding or nothing is left. */
void advance(struct filter *filter, enum direction direction)
{
    struct way *way = &filter->ways[direction];
    while (!way->event && !filter->over && !filter->bypass && !filter->close && !filter->local &&
           !filter->local_refused && filter->stream && way->headers_sent) {
        size_t size = body_size(filter, direction);
        size_t fresh = size - (way->same && way->submitted < size ? way->submitted : way->same ? size : 0);
        if (way->all_stopped && !way->headers_go)
            return;
        if (body_is_due(filter, direction, fresh)) {
            set_aside(filter, direction);
            submit_body(filter, direction);
        } else if (way->has_trailers && !way->trailers_sent &&
                   (needs_trailers(filter, direction) || hears_of_body(filter, direction) || !way->headers_go)) {
            set_aside(filter, direction);
            way->trailers_sent = true;
            submit_map(filter, direction, trailers_kind(direction),
                       direction == REQUEST ? ENVOY_REQUEST_TRAILERS : ENVOY_RESPONSE_TRAILERS, true);
        } else {
            if (!way->end_sent && !hears_of_body(filter, direction))
                way->end_go = way->end_go || way->ending;
            if (way->has_trailers && !way->trailers_sent)
                way->trailers_go = true;
            return;
        }
    }
}

/* Whether everything that Envoy showed may go on. */
bool may_go(const struct filter *filter, enum direction direction)
{
    const struct way *way = &filter->ways[direction];
    if (filter->bypass)
        return true;
    if (way->event || !way->headers_go)
        return false;
    if (way->has_trailers)
        return way->trailers_go;
    return !way->ending || way->end_go || way->bodyless;
}

/* Lets Envoy go on in a direction where it waits. Not within a hook of that direction. */
void finish(struct filter *filter, enum direction direction)
{
    struct way *way = &filter->ways[direction];
    if (filter->over || !way->stopped || !may_go(filter, direction))
        return;
    if (way->out.len) {
        /* Anything that Envoy still holds stands behind it. */
        size_t rest = body_size(filter, direction);
        if (rest && body_copy(filter, direction, 0, rest, &way->out))
            body_drop(filter, direction, rest);
        body_put(filter, direction);
    }
    way->same = false;
    way->submitted = 0;
    way->stopped = false;
    way->gone = true;
    if (flush(filter))
        return;
    if (direction == REQUEST)
        ENVOY_CALL(http_filter_continue_decoding)(filter->envoy);
    else
        ENVOY_CALL(http_filter_continue_encoding)(filter->envoy);
}

static void open_stream(struct filter *filter)
{
    struct attributes found;
    filter_join(filter, filter->link->lane);
    request_attributes(filter, &found);
    int status = sbx_stream_open(filter->lane->channel, found.pairs, found.count, wall_ns(), filter, &filter->stream);
    if (status != SBX_OK) {
        filter->stream = NULL;
        exchange_fail(filter, REQUEST, status == SBX_DOWN ? SBX_CAUSE_VM_DOWN : cause_of(status));
        return;
    }
    submit_headers(filter, REQUEST, filter->ways[REQUEST].bodyless);
}

/* Finds a channel for an exchange that has none. */
void begin(struct filter *filter)
{
    enum link_state state = link_use(filter->link, filter->config);
    if (state == LINK_WAIT && (!filter->wait_until_ns || now_ns() < filter->wait_until_ns)) {
        if (!filter->wait_until_ns)
            filter->wait_until_ns = now_ns() + filter->config->attach_timeout_ns;
        wait_for_link(filter);
        return;
    }
    stop_waiting(filter);
    if (state == LINK_READY)
        open_stream(filter);
    else if (state == LINK_DOWN)
        exchange_fail(filter, REQUEST, SBX_CAUSE_VM_DOWN);
    else if (state == LINK_UNKNOWN)
        exchange_fail(filter, REQUEST, SBX_CAUSE_UNKNOWN_PLUGIN);
    else
        fail_away(filter);
}

static void look_at_event(struct filter *filter, enum direction direction)
{
    struct way *way = &filter->ways[direction];
    while (way->event && !filter->over) {
        sbx_event *event = way->event;
        int status = sbx_event_status(event);
        if (status == SBX_AGAIN)
            return;
        conclude(filter, direction, event, status);
        if (!way->event) {
            way->event = way->queued;
            way->queued = NULL;
        }
    }
}

void forget_wake(struct filter *filter)
{
    struct worker *worker = filter->link->worker;
    pthread_mutex_lock(&worker->lock);
    if (filter->link->woken == filter)
        filter->link->woken = NULL;
    if (filter->lane && filter->lane->woken == filter)
        filter->lane->woken = NULL;
    pthread_mutex_unlock(&worker->lock);
}

static void wake_others(struct link *link)
{
    for (struct filter *other = link->waiting; other; other = other->next_waiting)
        ENVOY_CALL(http_filter_scheduler_commit)(other->scheduler, 0);
}

/* Scheduled, outside any hook: looks at what came meanwhile. */
void resume(struct filter *filter)
{
    if (!filter->link)
        return;
    forget_wake(filter);
    if (filter->over) {
        /* It was woken for the others. */
        if (filter->lane)
            lane_poll(filter->lane, filter);
        return;
    }
    if (!filter->lane && !filter->bypass && filter->ways[REQUEST].has_headers) {
        begin(filter);
        if (!filter->waits_for_link)
            wake_others(filter->link);
    } else if (filter->lane) {
        lane_poll(filter->lane, filter);
    }
    look_at_event(filter, REQUEST);
    look_at_event(filter, RESPONSE);
    advance(filter, REQUEST);
    advance(filter, RESPONSE);
    if (!filter->ways[REQUEST].event && !filter->ways[RESPONSE].event && !filter->waits_for_link)
        stop_waiting(filter);
    if (flush(filter))
        return;
    finish(filter, REQUEST);
    if (!filter->gone)
        finish(filter, RESPONSE);
}
