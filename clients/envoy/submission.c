/* What goes to the plugin: header maps, bodies and trailers, in their order, one event of a direction after the other. */
#include "module.h"

#include <stdlib.h>

enum { FEW_HEADERS = 64 };

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

bool hears_of_body(const struct filter *filter, enum direction direction)
{
    return needs(filter, SBX_NEEDS_REQUEST_BODY | SBX_HAS_REQUEST_BODY_CALLBACK,
                 SBX_NEEDS_RESPONSE_BODY | SBX_HAS_RESPONSE_BODY_CALLBACK, direction);
}

static bool needs_trailers(const struct filter *filter, enum direction direction)
{
    return needs(filter, SBX_NEEDS_REQUEST_TRAILERS | SBX_HAS_REQUEST_TRAILERS_CALLBACK,
                 SBX_NEEDS_RESPONSE_TRAILERS | SBX_HAS_RESPONSE_TRAILERS_CALLBACK, direction);
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
        event_run(filter, direction, event);
    else
        submission_fail(filter, direction, status);
}

/* Hands what has no verdict of a body to the plugin; it stays where it is until the verdict. */
static int give_body(struct filter *filter, enum direction direction, sbx_event **event)
{
    struct way *way = &filter->ways[direction];
    enum sbx_kind kind = body_kind(direction);
    bool end = way->ending && !way->has_trailers;
    int status;
    way->end_sent = end;
    way->submitted = body_size(filter, direction);
    if (!hears_of_body(filter, direction))
        return sbx_submit_nothing(filter->stream, kind, end, wall_ns(), filter, event);
    struct pieces pieces;
    status = !body_pieces(filter, direction, &pieces)
                 ? SBX_NO_MEMORY
                 : sbx_submit_body(filter->stream, kind, pieces.list, pieces.count, end, wall_ns(), filter, event);
    pieces_free(&pieces);
    return status;
}

static void submit_body(struct filter *filter, enum direction direction)
{
    sbx_event *event = NULL;
    int status = give_body(filter, direction, &event);
    if (status == SBX_OK)
        event_run(filter, direction, event);
    else
        submission_fail(filter, direction, status);
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
        submission_fail(filter, direction, status);
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
