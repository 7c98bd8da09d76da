/* The hooks that Envoy calls, in the order of an exchange. */
#include "module.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define HOOK(name) envoy_dynamic_module_on_##name

static void filter_free(struct filter *filter)
{
    if (filter->scheduler)
        ENVOY_CALL(http_filter_scheduler_delete)(filter->scheduler);
    local_free(filter->local);
    buffer_free(&filter->ways[REQUEST].out);
    buffer_free(&filter->ways[RESPONSE].out);
    free(filter);
}

/* Envoy may destroy a filter while one of its own calls runs. */
static void leave(struct filter *filter)
{
    if (--filter->busy == 0 && filter->gone)
        filter_free(filter);
}

ENVOY_HOOK const char *HOOK(program_init)(void);
const char *HOOK(program_init)(void)
{
    return ENVOY_ABI_VERSION;
}

static void complain(const char *what, const char *why)
{
    char text[400];
    int len = snprintf(text, sizeof text, "sandboxd: %s: %s", what, why);
    ENVOY_CALL(log)(ENVOY_LOG_ERROR, (struct envoy_bytes){text, len < 0 ? 0 : strlen(text)});
}

static bool define_counters(void *envoy, struct config *config)
{
    static const char *const names[COUNTERS] = {
        "sandboxd.streams",     "sandboxd.verdicts_at_once", "sandboxd.verdicts_later",   "sandboxd.failed_open",
        "sandboxd.failed_closed", "sandboxd.reset",          "sandboxd.local_responses", "sandboxd.refused",
    };
    for (size_t i = 0; i < COUNTERS; i++) {
        struct envoy_bytes name = {names[i], strlen(names[i])};
        if (ENVOY_CALL(http_filter_config_define_counter)(envoy, name, NULL, 0, &config->counters[i]))
            return false;
    }
    return true;
}

ENVOY_HOOK const void *HOOK(http_filter_config_new)(void *envoy, struct envoy_bytes name, struct envoy_bytes text);
const void *HOOK(http_filter_config_new)(void *envoy, struct envoy_bytes name, struct envoy_bytes text)
{
    char error[200];
    struct config *config = calloc(1, sizeof *config);
    (void)name;
    if (!config)
        return NULL;
    if (!config_parse(text.at, text.len, config, error, sizeof error)) {
        complain("filter_config", error);
    } else if (!define_counters(envoy, config)) {
        complain("filter_config", "Envoy takes no counters");
    } else {
        return config;
    }
    free(config);
    return NULL;
}

ENVOY_HOOK void HOOK(http_filter_config_destroy)(const void *config);
void HOOK(http_filter_config_destroy)(const void *config)
{
    free((void *)(uintptr_t)config);
}

ENVOY_HOOK const void *HOOK(http_filter_per_route_config_new)(struct envoy_bytes name, struct envoy_bytes text);
const void *HOOK(http_filter_per_route_config_new)(struct envoy_bytes name, struct envoy_bytes text)
{
    char error[200];
    struct target *target = calloc(1, sizeof *target);
    (void)name;
    if (!target)
        return NULL;
    if (target_parse(text.at, text.len, target, error, sizeof error))
        return target;
    complain("a route's filter_config", error);
    free(target);
    return NULL;
}

ENVOY_HOOK void HOOK(http_filter_per_route_config_destroy)(const void *target);
void HOOK(http_filter_per_route_config_destroy)(const void *target)
{
    free((void *)(uintptr_t)target);
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
    return filter;
}

/* ---- one direction ----------------------------------------------------------------------------------------------- */

static int enter(struct filter *filter, enum direction direction, bool body)
{
    int before = filter->inside;
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
    if (!filter->over && filter->ways[other].stopped && may_go(filter, other) && filter->scheduler)
        ENVOY_CALL(http_filter_scheduler_commit)(filter->scheduler, 0);
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

static int on_body(struct filter *filter, enum direction direction, bool end)
{
    struct way *way = &filter->ways[direction];
    way->ending = way->ending || end;
    if (!filter->over && !filter->bypass && !way->event && way->headers_sent)
        advance(filter, direction);
    else if (!filter->over && !filter->bypass && way->event)
        submit_behind(filter, direction);
    if (flush(filter))
        return ENVOY_DATA_STOP_AND_WATERMARK;
    bool nothing = !way->same && !way->out.len && !way->ending && !body_size(filter, direction);
    if (!may_go(filter, direction) || (nothing && !filter->bypass)) {
        set_aside(filter, direction);
        way->stopped = true;
        return ENVOY_DATA_STOP_AND_WATERMARK;
    }
    size_t size = body_size(filter, direction);
    int kept = direction == REQUEST ? ENVOY_BUFFERED_REQUEST : ENVOY_BUFFERED_RESPONSE;
    if (way->out.len || (size && ENVOY_CALL(http_get_body_size)(filter->envoy, kept))) {
        /* All of it is given back as what came now: what Envoy kept would stay behind if it does not wait. */
        if (!body_copy(filter, direction, 0, size, &way->out))
            filter->close = true;
        body_drop(filter, direction, size);
        body_put(filter, direction);
    }
    way->same = way->stopped = false;
    way->submitted = 0;
    way->gone = true;
    return flush(filter) ? ENVOY_DATA_STOP_AND_WATERMARK : ENVOY_DATA_CONTINUE;
}

static int on_trailers(struct filter *filter, enum direction direction)
{
    struct way *way = &filter->ways[direction];
    way->has_trailers = true;
    if (!filter->over && !filter->bypass && !way->event && way->headers_sent)
        advance(filter, direction);
    if (flush(filter) || !may_go(filter, direction)) {
        way->stopped = true;
        return ENVOY_TRAILERS_STOP;
    }
    if (way->out.len) {
        size_t rest = body_size(filter, direction);
        if (rest && body_copy(filter, direction, 0, rest, &way->out))
            body_drop(filter, direction, rest);
        body_put(filter, direction);
    }
    way->same = way->stopped = false;
    way->gone = true;
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
        complain("a worker thread", "out of memory or threads");
        filter->local_refused = true;
    } else {
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
    if (filter->link)
        forget_wake(filter);
    if (filter->lane)
        lane_touched(filter->lane);
    filter_leave(filter);
    filter->gone = filter->over = true;
    filter->busy++;
    leave(filter);
}
