/* The hooks that Envoy calls for an exchange, in its order. */
#include "module.h"

#include <stdlib.h>
#include <string.h>

static void filter_free(struct filter *filter)
{
    if (filter->scheduler)
        ENVOY_CALL(http_filter_scheduler_delete)(filter->scheduler);
    local_free(filter->local);
    for (int direction = REQUEST; direction <= RESPONSE; direction++) {
        buffer_free(&filter->ways[direction].in);
        buffer_free(&filter->ways[direction].out);
    }
    free(filter);
}

/* Envoy may destroy a filter while one of its own calls runs. */
static void leave(struct filter *filter)
{
    if (--filter->busy == 0 && filter->gone)
        filter_free(filter);
}

ENVOY_HOOK void *HOOK(http_filter_new)(const void *config, void *envoy);
void *HOOK(http_filter_new)(const void *config, void *envoy)
{
    struct filter *filter = calloc(1, sizeof *filter);
    if (!filter)
        return NULL;
    filter->envoy = envoy;
    filter->config = config;
    filter->inside = -1;
    chain_made(filter);
    return filter;
}

/* ---- one direction ----------------------------------------------------------------------------------------------- */

static int enter(struct filter *filter, enum direction direction, bool body)
{
    int before = filter->inside;
    chain_runs();
    filter->busy++;
    filter->inside = (int)direction;
    filter->inside_body = body;
    return before;
}

/* Ends a hook: what the other direction got meanwhile is seen to outside. */
static int done(struct filter *filter, enum direction direction, int before, int status)
{
    enum direction other = direction == REQUEST ? RESPONSE : REQUEST;
    filter->inside = before;
    filter->inside_body = false;
    if (!filter->over && filter->ways[other].stopped && may_go(filter, other))
        schedule(filter);
    pause_watch(filter);
    leave(filter);
    return status;
}

static int after_headers(struct filter *filter, enum direction direction)
{
    struct way *way = &filter->ways[direction];
    if (!flush(filter) && may_go(filter, direction)) {
        way->gone = true;
        return ENVOY_HEADERS_CONTINUE;
    }
    way->stopped = true;
    return ENVOY_HEADERS_STOP;
}

/* Envoy calls again when more comes. What it kept before the headers went holds back the sender if it is too much. */
static int stop_body(struct filter *filter, enum direction direction)
{
    struct way *way = &filter->ways[direction];
    way->stopped = true;
    if (!way->gone)
        chain_keeps(filter, direction, true);
    if (!body_keep(filter, direction))
        filter->close = true;
    (void)flush(filter);
    return way->gone ? ENVOY_DATA_STOP_NO_BUFFER : ENVOY_DATA_STOP_AND_WATERMARK;
}

static int on_body(struct filter *filter, enum direction direction, bool end)
{
    struct way *way = &filter->ways[direction];
    way->ending = way->ending || end;
    if (end)
        chain_ends(filter, direction);
    if (!filter->over && !filter->bypass && !way->event && way->headers_sent)
        advance(filter, direction);
    else if (!filter->over && !filter->bypass && way->event)
        submit_behind(filter, direction);
    if (flush(filter))
        return ENVOY_DATA_STOP_NO_BUFFER;
    bool nothing = !way->same && !way->out.len && !way->ending && !body_size(filter, direction);
    if (!may_go(filter, direction) || (nothing && !filter->bypass)) {
        set_aside(filter, direction);
        return stop_body(filter, direction);
    }
    if (!body_hand_over(filter, direction))
        filter->close = true;
    return flush(filter) ? ENVOY_DATA_STOP_NO_BUFFER : ENVOY_DATA_CONTINUE;
}

static int on_trailers(struct filter *filter, enum direction direction)
{
    struct way *way = &filter->ways[direction];
    bool goes_on = way->gone && !way->stopped;
    way->has_trailers = true;
    chain_ends(filter, direction);
    if (!filter->over && !filter->bypass && !way->event && way->headers_sent)
        advance(filter, direction);
    if (flush(filter) || !may_go(filter, direction)) {
        way->stopped = true;
        return ENVOY_TRAILERS_STOP;
    }
    if (goes_on && (way->out.len || way->in.len)) {
        /* Envoy, which is not stopped, would not send what it is given now. */
        way->stopped = true;
        schedule(filter);
        return ENVOY_TRAILERS_STOP;
    }
    if (!body_hand_over(filter, direction))
        filter->close = true;
    return flush(filter) ? ENVOY_TRAILERS_STOP : ENVOY_TRAILERS_CONTINUE;
}

/* ---- request ----------------------------------------------------------------------------------------------------- */

ENVOY_HOOK int HOOK(http_filter_request_headers)(void *envoy, void *module, bool end);
int HOOK(http_filter_request_headers)(void *envoy, void *module, bool end)
{
    struct filter *filter = module;
    struct way *way = &filter->ways[REQUEST];
    int before = enter(filter, REQUEST, false);
    const struct target *route = ENVOY_CALL(get_most_specific_route_config)(envoy);
    filter->target = route ? route : &filter->config->target;
    way->has_headers = true;
    way->ending = way->bodyless = end;
    filter->bypass = !filter->target->tenant[0];
    if (filter->bypass)
        return done(filter, REQUEST, before, ENVOY_HEADERS_CONTINUE);
    count(filter, COUNT_STREAMS);
    filter->link = link_of(filter->config, filter->target);
    if (!filter->link) {
        complain_of("a worker thread", "out of memory or threads");
        filter->local_refused = true;
    } else {
        chain_join(filter);
        if (end)
            chain_ends(filter, REQUEST);
        begin(filter);
    }
    return done(filter, REQUEST, before, after_headers(filter, REQUEST));
}

ENVOY_HOOK int HOOK(http_filter_request_body)(void *envoy, void *module, bool end);
int HOOK(http_filter_request_body)(void *envoy, void *module, bool end)
{
    struct filter *filter = module;
    (void)envoy;
    int before = enter(filter, REQUEST, true);
    return done(filter, REQUEST, before, on_body(filter, REQUEST, end));
}

ENVOY_HOOK int HOOK(http_filter_request_trailers)(void *envoy, void *module);
int HOOK(http_filter_request_trailers)(void *envoy, void *module)
{
    struct filter *filter = module;
    (void)envoy;
    int before = enter(filter, REQUEST, false);
    return done(filter, REQUEST, before, on_trailers(filter, REQUEST));
}

/* ---- response ---------------------------------------------------------------------------------------------------- */

ENVOY_HOOK int HOOK(http_filter_response_headers)(void *envoy, void *module, bool end);
int HOOK(http_filter_response_headers)(void *envoy, void *module, bool end)
{
    struct filter *filter = module;
    struct way *way = &filter->ways[RESPONSE];
    struct attributes found;
    (void)envoy;
    int before = enter(filter, RESPONSE, false);
    way->has_headers = true;
    way->ending = way->bodyless = end;
    /* A response before the plugin had the request, or of our own making, is none of its business. */
    if (!filter->stream)
        filter->bypass = true;
    if (filter->bypass || filter->over) {
        way->gone = true;
        return done(filter, RESPONSE, before, ENVOY_HEADERS_CONTINUE);
    }
    response_attributes(filter, &found);
    if (found.count)
        (void)sbx_stream_attributes(filter->stream, found.pairs, found.count, wall_ns());
    if (end)
        chain_ends(filter, RESPONSE);
    submit_headers(filter, RESPONSE, end);
    return done(filter, RESPONSE, before, after_headers(filter, RESPONSE));
}

ENVOY_HOOK int HOOK(http_filter_response_body)(void *envoy, void *module, bool end);
int HOOK(http_filter_response_body)(void *envoy, void *module, bool end)
{
    struct filter *filter = module;
    (void)envoy;
    int before = enter(filter, RESPONSE, true);
    bool ours = filter->over && !filter->ways[RESPONSE].headers_sent;
    return done(filter, RESPONSE, before, ours ? ENVOY_DATA_CONTINUE : on_body(filter, RESPONSE, end));
}

ENVOY_HOOK int HOOK(http_filter_response_trailers)(void *envoy, void *module);
int HOOK(http_filter_response_trailers)(void *envoy, void *module)
{
    struct filter *filter = module;
    (void)envoy;
    int before = enter(filter, RESPONSE, false);
    bool ours = filter->over && !filter->ways[RESPONSE].headers_sent;
    return done(filter, RESPONSE, before, ours ? ENVOY_TRAILERS_CONTINUE : on_trailers(filter, RESPONSE));
}

/* ---- end --------------------------------------------------------------------------------------------------------- */

ENVOY_HOOK void HOOK(http_filter_scheduled)(void *envoy, void *module, uint64_t event);
void HOOK(http_filter_scheduled)(void *envoy, void *module, uint64_t event)
{
    struct filter *filter = module;
    (void)envoy;
    (void)event;
    filter->busy++;
    filter->scheduled = false;
    resume(filter);
    leave(filter);
}

ENVOY_HOOK void HOOK(http_filter_destroy)(void *module);
void HOOK(http_filter_destroy)(void *module)
{
    struct filter *filter = module;
    struct way *request = &filter->ways[REQUEST], *response = &filter->ways[RESPONSE];
    stop_waiting(filter);
    sbx_event_free(request->event);
    sbx_event_free(response->event);
    sbx_event_free(request->queued);
    sbx_event_free(response->queued);
    request->event = request->queued = response->event = response->queued = NULL;
    if (filter->stream) {
        bool whole = response->has_headers && (response->ending || response->has_trailers);
        sbx_stream_close(filter->stream, !whole, wall_ns());
        filter->stream = NULL;
    }
    chain_runs();
    chain_leave(filter);
    if (filter->link)
        (void)forget_wake(filter);
    if (filter->lane)
        lane_touched(filter->lane);
    filter_leave(filter);
    filter->gone = filter->over = true;
    filter->busy++;
    leave(filter);
}
