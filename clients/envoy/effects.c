/* What the plugin did, applied to Envoy's exchange. */
#include "module.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct envoy_bytes bytes_of(sbx_bytes bytes)
{
    /* A null pointer would remove the header. */
    return (struct envoy_bytes){bytes.len ? (const char *)bytes.data : "", bytes.len};
}

void count(struct filter *filter, enum counter counter)
{
    ENVOY_CALL(http_filter_increment_counter)(filter->envoy, filter->config->counters[counter], NULL, 0, 1);
}

static int map_of(uint32_t kind)
{
    switch (kind) {
    case SBX_REQUEST_HEADERS: return ENVOY_REQUEST_HEADERS;
    case SBX_REQUEST_TRAILERS: return ENVOY_REQUEST_TRAILERS;
    case SBX_RESPONSE_HEADERS: return ENVOY_RESPONSE_HEADERS;
    default: return ENVOY_RESPONSE_TRAILERS;
    }
}

/* An empty value is a removal to Envoy, whichever way it is written. */
static void apply_changes(struct filter *filter, int map, const sbx_changes *changes)
{
    const struct envoy_bytes none = {NULL, 0};
    for (size_t i = 0; i < changes->removed_count; i++)
        ENVOY_CALL(http_set_header)(filter->envoy, map, bytes_of(changes->removed[i]), none);
    for (size_t i = 0; i < changes->set_count; i++) {
        const sbx_set *set = &changes->set[i];
        ENVOY_CALL(http_set_header)(filter->envoy, map, bytes_of(set->name), bytes_of(set->values[0]));
        for (size_t j = 1; j < set->count; j++)
            ENVOY_CALL(http_add_header)(filter->envoy, map, bytes_of(set->name), bytes_of(set->values[j]));
    }
    for (size_t i = 0; i < changes->added_count; i++)
        ENVOY_CALL(http_add_header)(filter->envoy, map, bytes_of(changes->added[i].name),
                                    bytes_of(changes->added[i].value));
}

void local_free(sbx_local_response *local)
{
    if (!local)
        return;
    for (size_t i = 0; i < local->header_count; i++)
        free((void *)(uintptr_t)local->headers[i].name.data);
    free((void *)(uintptr_t)local->headers);
    free((void *)(uintptr_t)local->details.data);
    free((void *)(uintptr_t)local->body.data);
    free(local);
}

static bool copy_bytes(sbx_bytes *into, sbx_bytes from)
{
    uint8_t *at = malloc(from.len + 1);
    if (!at)
        return false;
    if (from.len)
        memcpy(at, from.data, from.len);
    *into = (sbx_bytes){at, from.len};
    return true;
}

static bool copy_pair(sbx_pair *into, const sbx_pair *from)
{
    uint8_t *at = malloc(from->name.len + from->value.len + 1);
    if (!at)
        return false;
    memcpy(at, from->name.data, from->name.len);
    if (from->value.len)
        memcpy(at + from->name.len, from->value.data, from->value.len);
    *into = (sbx_pair){{at, from->name.len}, {at + from->name.len, from->value.len}};
    return true;
}

static sbx_local_response *local_copy(const sbx_local_response *from)
{
    sbx_local_response *local = calloc(1, sizeof *local);
    sbx_pair *headers = calloc(from->header_count + 1, sizeof *headers);
    if (!local || !headers) {
        free(local);
        free(headers);
        return NULL;
    }
    local->status = from->status;
    local->grpc_status = from->grpc_status;
    local->already_begun = from->already_begun;
    local->headers = headers;
    bool well = copy_bytes(&local->details, from->details) && copy_bytes(&local->body, from->body);
    for (size_t i = 0; well && i < from->header_count; i++) {
        well = copy_pair(&headers[i], &from->headers[i]);
        local->header_count += well;
    }
    if (well)
        return local;
    local_free(local);
    return NULL;
}

static void take_local(struct filter *filter, const sbx_effect *effect)
{
    if (filter->local || filter->local_refused)
        return;
    if (!effect->refused && effect->local)
        filter->local = local_copy(effect->local);
    filter->local_refused = filter->local == NULL;
}

/* Dynamic metadata: the property's segments joined by dots, under the plugin's own namespace. */
static void take_property(struct filter *filter, const sbx_pair *property)
{
    char space[2 * NAME_MAX_BYTES + 16], key[512];
    sbx_bytes path = property->name;
    int len = snprintf(space, sizeof space, "sandboxd.%s.%s", filter->target->tenant, filter->target->plugin);
    if (path.len > sizeof key || len < 0)
        return;
    for (size_t i = 0; i < path.len; i++)
        key[i] = path.data[i] ? (char)path.data[i] : '.';
    ENVOY_CALL(http_set_dynamic_metadata_string)(filter->envoy, (struct envoy_bytes){space, (size_t)len},
                                                 (struct envoy_bytes){key, path.len}, bytes_of(property->value));
}

static void take_body(struct filter *filter, enum direction direction, const sbx_effect *effect)
{
    struct way *way = &filter->ways[direction];
    bool well = true;
    /* An honest VM lets the headers go first, and nothing that it was not shown. */
    if (effect->refused || !way->headers_go || !way->shown) {
        filter->local_refused = true;
        return;
    }
    way->shown = false;
    way->held = 0;
    if (!(effect->flags & SBX_AS_SUBMITTED)) {
        set_aside(filter, direction);
        well = buffer_add(&way->out, effect->data.data, effect->data.len);
    } else if (way->out.len) {
        well = body_let_go(filter, direction, way->submitted);
        way->submitted = 0;
    } else {
        way->same = true;
    }
    if (!well)
        filter->close = true;
    if (effect->flags & SBX_END_OF_STREAM)
        way->end_go = true;
}

static void take_map(struct filter *filter, const sbx_effect *effect)
{
    bool trailers = effect->kind == SBX_REQUEST_TRAILERS || effect->kind == SBX_RESPONSE_TRAILERS;
    struct way *way = &filter->ways[effect->kind >= SBX_RESPONSE_HEADERS];
    if (effect->changes && (trailers ? way->has_trailers : !way->gone)) {
        apply_changes(filter, map_of(effect->kind), effect->changes);
        if (effect->kind == SBX_REQUEST_HEADERS) /* what the route was chosen by: as Envoy's own filter does */
            ENVOY_CALL(http_clear_route_cache)(filter->envoy);
    }
    if (trailers)
        way->trailers_go = true;
    else
        way->headers_go = true;
    if (trailers || (effect->flags & SBX_END_OF_STREAM))
        way->end_go = true;
}

void take_effect(struct filter *filter, const sbx_effect *effect)
{
    switch (effect->kind) {
    case SBX_REQUEST_HEADERS:
    case SBX_REQUEST_TRAILERS:
    case SBX_RESPONSE_HEADERS:
    case SBX_RESPONSE_TRAILERS: take_map(filter, effect); return;
    case SBX_REQUEST_BODY: take_body(filter, REQUEST, effect); return;
    case SBX_RESPONSE_BODY: take_body(filter, RESPONSE, effect); return;
    case SBX_LOCAL_RESPONSE: take_local(filter, effect); return;
    case SBX_PROPERTY_SET:
        if (!effect->refused)
            take_property(filter, &effect->property);
        return;
    case SBX_CLEAR_ROUTE_CACHE: ENVOY_CALL(http_clear_route_cache)(filter->envoy); return;
    case SBX_CLOSE_STREAM: filter->close = true; return;
    default: return;
    }
}

void take_late(void *user, sbx_stream *stream, const sbx_effect *effect)
{
    struct filter *filter = sbx_stream_user(stream);
    (void)user;
    if (!filter || filter->over || filter->bypass)
        return;
    if (conclude_ended(filter, REQUEST) && conclude_ended(filter, RESPONSE))
        take_effect(filter, effect);
    schedule(filter);
}

void take_notice(void *user, const sbx_notice *notice)
{
    static const int levels[] = {0, 1, 2, 3, 4, 5};
    struct lane *lane = user;
    char text[700];
    if (notice->kind == SBX_VM_STARTED)
        lane->restarted = true;
    if (notice->kind == SBX_NOTE && notice->arg == SBX_PROPERTY_MISSING)
        attribute_asked(lane->link, notice->data);
    if (notice->kind != SBX_LOG || notice->arg > 5)
        return;
    size_t len = notice->data.len < 512 ? notice->data.len : 512;
    char shown[513];
    for (size_t i = 0; i < len; i++)
        shown[i] = notice->data.data[i] >= 0x20 && notice->data.data[i] < 0x7f ? (char)notice->data.data[i] : '?';
    shown[len] = 0;
    int wrote = snprintf(text, sizeof text, "%s/%s: %s", lane->link->target.tenant, lane->link->target.plugin, shown);
    size_t size = wrote < 0 ? 0 : (size_t)wrote < sizeof text ? (size_t)wrote : sizeof text - 1;
    ENVOY_CALL(log)(levels[notice->arg], (struct envoy_bytes){text, size});
}
