/*
 * Properties that follow from a stream's header maps, as Envoy computes them: request.path, request.headers.x,
 * response.code and so on. They show the maps as they are now, with the guest's own changes.
 */
#include "stream.h"

/* Takes the first segment off a path. */
static bool path_segment(struct bytes *path, struct bytes *segment)
{
    if (!path->len)
        return false;
    u32 len = 0;
    while (len < path->len && path->at[len] != 0)
        len++;
    *segment = (struct bytes){path->at, len};
    u32 taken = len < path->len ? len + 1 : len;
    path->at += taken;
    path->len -= taken;
    return true;
}

static bool header(const struct map *map, struct bytes name, struct bytes *value)
{
    i32 at = map_find(map, name, 0);
    if (at < 0)
        return false;
    *value = map_value(map, (u32)at);
    return true;
}

static bool parse_number(struct bytes text, u64 *number)
{
    *number = 0;
    if (!text.len || text.len > 18)
        return false;
    for (u32 i = 0; i < text.len; i++) {
        if (text.at[i] < '0' || text.at[i] > '9')
            return false;
        *number = *number * 10 + text.at[i] - '0';
    }
    return true;
}

static enum derived number(struct derived_value *value, u64 what)
{
    store_u64((u8 *)&value->number, what);
    value->bytes = (struct bytes){(const u8 *)&value->number, 8};
    return DERIVED_VALUE;
}

static enum derived header_number(const struct map *map, struct bytes name, struct derived_value *value)
{
    struct bytes text;
    u64 what;
    return header(map, name, &text) && parse_number(text, &what) ? number(value, what) : DERIVED_NONE;
}

static enum derived header_text(const struct map *map, struct bytes name, struct derived_value *value)
{
    return header(map, name, &value->bytes) ? DERIVED_VALUE : DERIVED_NONE;
}

/* ---- whole maps and single headers ------------------------------------------------------------------------------- */

/* All values of a name joined by commas; a block is only made if there are several. */
static bool joined(const struct map *map, struct bytes name, struct bytes *text, u8 **block)
{
    i32 first = map_find(map, name, 0);
    *block = NULL;
    if (first < 0)
        return false;
    *text = map_value(map, (u32)first);
    i32 next = map_find(map, name, (u32)first + 1);
    if (next < 0)
        return true;
    u32 len = text->len;
    for (i32 at = next; at >= 0; at = map_find(map, name, (u32)at + 1))
        len += 1 + map_value(map, (u32)at).len;
    u8 *to = *block = heap_alloc(len);
    if (!to)
        return false;
    for (i32 at = first; at >= 0; at = map_find(map, name, (u32)at + 1)) {
        struct bytes value = map_value(map, (u32)at);
        if (at != first)
            *to++ = ',';
        memcpy(to, value.at, value.len);
        to += value.len;
    }
    *text = (struct bytes){*block, len};
    return true;
}

static enum derived one_header(const struct map *map, struct bytes name, struct derived_value *value)
{
    u8 lower[256];
    if (name.len > sizeof lower)
        return DERIVED_NONE;
    for (u32 i = 0; i < name.len; i++)
        lower[i] = name.at[i] >= 'A' && name.at[i] <= 'Z' ? name.at[i] | 0x20 : name.at[i];
    name.at = lower;
    return joined(map, name, &value->bytes, &value->block) ? DERIVED_VALUE : DERIVED_NONE;
}

/* A header that the policy denies by its own path is left out of the whole map too. */
static bool header_denied(struct bytes map_path, struct bytes name)
{
    u8 path[512];
    if (!vm.config.denied_properties.len || map_path.len + 1 + name.len > sizeof path)
        return false;
    memcpy(path, map_path.at, map_path.len);
    path[map_path.len] = 0;
    memcpy(path + map_path.len + 1, name.at, name.len);
    return property_denied((struct bytes){path, map_path.len + 1 + name.len});
}

static bool collect(const struct map *map, struct bytes map_path, struct map *to)
{
    for (u32 i = 0; i < map->count; i++) {
        struct bytes text, name = map_key(map, i);
        u8 *block;
        if (map_find(to, name, 0) >= 0 || header_denied(map_path, name))
            continue;
        if (!joined(map, name, &text, &block))
            return false;
        bool added = map_add(to, name, text);
        heap_free(block);
        if (!added)
            return false;
    }
    return true;
}

/* The map as pairs, every name once. */
static enum derived whole_map(const struct map *map, struct bytes map_path, struct derived_value *value)
{
    struct map unique = {0};
    if (!collect(map, map_path, &unique)) {
        map_free(&unique);
        return DERIVED_UNSERIALIZABLE;
    }
    u32 size = pairs_size(&unique);
    value->block = heap_alloc(size);
    if (value->block)
        pairs_write(&unique, value->block);
    map_free(&unique);
    value->bytes = (struct bytes){value->block, size};
    return value->block ? DERIVED_VALUE : DERIVED_UNSERIALIZABLE;
}

static enum derived from_map(const struct map *map, struct bytes map_path, struct bytes rest,
                             struct derived_value *value)
{
    struct bytes name;
    if (!map->present)
        return DERIVED_NONE;
    if (!path_segment(&rest, &name))
        return whole_map(map, map_path, value);
    return rest.len ? DERIVED_NONE : one_header(map, name, value);
}

/* ---- request ----------------------------------------------------------------------------------------------------- */

static const struct {
    struct bytes field, header;
} request_texts[] = {
    {{(const u8 *)"path", 4}, {(const u8 *)":path", 5}},
    {{(const u8 *)"host", 4}, {(const u8 *)":authority", 10}},
    {{(const u8 *)"scheme", 6}, {(const u8 *)":scheme", 7}},
    {{(const u8 *)"method", 6}, {(const u8 *)":method", 7}},
    {{(const u8 *)"referer", 7}, {(const u8 *)"referer", 7}},
    {{(const u8 *)"useragent", 9}, {(const u8 *)"user-agent", 10}},
    {{(const u8 *)"id", 2}, {(const u8 *)"x-request-id", 12}},
};

static u32 find_byte(struct bytes text, u8 byte)
{
    u32 at = 0;
    while (at < text.len && text.at[at] != byte)
        at++;
    return at;
}

/* The path up to the question mark, or the query after it without a fragment. */
static enum derived path_part(const struct map *headers, bool query, struct derived_value *value)
{
    struct bytes path;
    if (!header(headers, TEXT(":path"), &path))
        return DERIVED_NONE;
    u32 mark = find_byte(path, '?');
    if (!query) {
        value->bytes = (struct bytes){path.at, mark};
        return DERIVED_VALUE;
    }
    u32 start = mark < path.len ? mark + 1 : path.len;
    value->bytes = (struct bytes){path.at + start, path.len - start};
    value->bytes.len = find_byte(value->bytes, '#');
    return DERIVED_VALUE;
}

static enum derived from_request(const struct direction *request, struct bytes field, struct derived_value *value)
{
    const struct map *headers = &request->headers;
    for (u32 i = 0; i < sizeof request_texts / sizeof *request_texts; i++)
        if (bytes_equal(field, request_texts[i].field))
            return header_text(headers, request_texts[i].header, value);
    if (bytes_equal(field, TEXT("url_path")))
        return path_part(headers, false, value);
    if (bytes_equal(field, TEXT("query")))
        return path_part(headers, true, value);
    if (bytes_equal(field, TEXT("size"))) {
        enum derived announced = header_number(headers, TEXT("content-length"), value);
        return announced == DERIVED_NONE ? number(value, request->body_bytes_seen) : announced;
    }
    if (bytes_equal(field, TEXT("total_size")))
        return number(value, request->body_bytes_seen + headers->live + request->trailers.live);
    return DERIVED_NONE;
}

/* ---- response ---------------------------------------------------------------------------------------------------- */

static enum derived from_response(const struct direction *response, struct bytes field, struct derived_value *value)
{
    const struct map *headers = &response->headers;
    if (bytes_equal(field, TEXT("code")))
        return header_number(headers, TEXT(":status"), value);
    if (bytes_equal(field, TEXT("size")))
        return number(value, response->body_bytes_seen);
    if (bytes_equal(field, TEXT("total_size")))
        return number(value, response->body_bytes_seen + headers->live + response->trailers.live);
    if (bytes_equal(field, TEXT("grpc_status"))) {
        enum derived trailed = header_number(&response->trailers, TEXT("grpc-status"), value);
        return trailed == DERIVED_NONE ? header_number(headers, TEXT("grpc-status"), value) : trailed;
    }
    return DERIVED_NONE;
}

enum derived property_derive(struct stream *stream, struct bytes path, struct derived_value *value)
{
    struct bytes object, field, rest = path;
    path_segment(&rest, &object);
    bool request = bytes_equal(object, TEXT("request"));
    if (!request && !bytes_equal(object, TEXT("response")))
        return DERIVED_NONE;
    const struct direction *direction = &stream->direction[request ? REQUEST : RESPONSE];
    if (!direction->headers.present || !path_segment(&rest, &field))
        return DERIVED_NONE;
    struct bytes map_path = {path.at, object.len + 1 + field.len};
    if (bytes_equal(field, TEXT("headers")))
        return from_map(&direction->headers, map_path, rest, value);
    if (!request && bytes_equal(field, TEXT("trailers")))
        return from_map(&direction->trailers, map_path, rest, value);
    if (rest.len)
        return DERIVED_NONE;
    return request ? from_request(direction, field, value) : from_response(direction, field, value);
}
