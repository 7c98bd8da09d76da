/*
 * Local responses: proxy_send_local_response, and the 413 or 500 of a body that is over its limit.
 *
 * As in Envoy the answer is sent after the callback, and travels through the response path of the very plugin that
 * made it if no response had begun: proxy_on_response_headers and proxy_on_response_body see it and may change it.
 */
#include "stream.h"

#define FLAG_RESPONSE_HAD_BEGUN 1u
#define PAYLOAD_HEADER 24u

static bool status_in_range(u32 status)
{
    return status >= 100 && status <= 999;
}

static void format_number(u8 *end, u32 digits, u32 value)
{
    for (u32 i = 0; i < digits; i++, value /= 10)
        *--end = (u8)('0' + value % 10);
}

static struct bytes number_text(u8 *buffer, u32 size, u32 value)
{
    u32 digits = 1;
    for (u32 rest = value; rest >= 10; rest /= 10)
        digits++;
    format_number(buffer + size, digits, value);
    return (struct bytes){buffer + size - digits, digits};
}

void local_response_free(struct stream *stream)
{
    heap_free(stream->local.data);
    stream->local.data = NULL;
}

/* Keeps the parts in one block and queues the answer. False: no memory. */
static bool keep(struct stream *stream, u32 status, i32 grpc_status, u32 details_len, u32 headers_len, u32 body_len)
{
    u8 *data = heap_alloc(details_len + headers_len + body_len + 1);
    if (!data)
        return false;
    stream->local = (struct local_response){
        .data = data,
        .details_len = details_len,
        .headers_len = headers_len,
        .body_len = body_len,
        .status = status,
        .grpc_status = grpc_status,
        .direct = stream->direction[RESPONSE].headers_seen,
    };
    stream->local_sent = true;
    return true;
}

bool local_response_generate(struct stream *stream, u32 status, struct bytes details, struct bytes body)
{
    if (stream->local_sent || stream->over || !keep(stream, status, -1, details.len, 0, body.len))
        return false;
    memcpy(stream->local.data, details.at, details.len);
    memcpy(stream->local.data + details.len, body.at, body.len);
    return true;
}

/* The headers the plugin sees: :status, content-length and content-type for a body, then those it added. */
static bool build_headers(const struct local_response *local, struct map *map)
{
    u8 buffer[16];
    struct bytes key, value;
    struct pairs_cursor cursor;
    struct bytes added = {local->data + local->details_len, local->headers_len};
    bool typed = false;
    map_clear(map);
    map->present = true;
    if (!map_add(map, TEXT(":status"), number_text(buffer, sizeof buffer, local->status)))
        return false;
    for (pairs_open(added, &cursor); pairs_next(&cursor, &key, &value);)
        typed |= bytes_equal(key, TEXT("content-type"));
    if (local->body_len && !map_add(map, TEXT("content-length"), number_text(buffer, sizeof buffer, local->body_len)))
        return false;
    if (local->body_len && !typed && !map_add(map, TEXT("content-type"), TEXT("text/plain")))
        return false;
    for (pairs_open(added, &cursor); pairs_next(&cursor, &key, &value);) {
        bool pseudo = key.len && key.at[0] == ':';
        if (pseudo || (local->body_len && bytes_equal(key, TEXT("content-length"))))
            continue;
        if (!map_add(map, key, value))
            break; /* the map is full: what the plugin added last is left out */
    }
    return true;
}

/* The status as the plugin's own callbacks left it. */
static u32 final_status(const struct map *map, u32 status)
{
    i32 at = map_find(map, TEXT(":status"), 0);
    if (at < 0)
        return status;
    struct bytes text = map_value(map, (u32)at);
    u32 number = 0;
    for (u32 i = 0; i < text.len; i++) {
        if (text.len > 3 || text.at[i] < '0' || text.at[i] > '9')
            return status;
        number = number * 10 + text.at[i] - '0';
    }
    return status_in_range(number) ? number : status;
}

/* Send the answer: the response's headers as they are now, without :status, and this body. */
void local_response_finish(struct stream *stream, struct bytes body)
{
    struct local_response *local = &stream->local;
    struct map *map = &stream->direction[RESPONSE].headers;
    u32 status = final_status(map, local->status);
    map_remove(map, TEXT(":status"), 0);
    u32 headers_len = pairs_size(map), at = PAYLOAD_HEADER;
    u64 len = (u64)PAYLOAD_HEADER + local->details_len + headers_len + body.len;
    u8 *payload = len <= UINT32_MAX ? heap_alloc((u32)len) : NULL;
    if (!payload)
        violate(VIOLATION_HEAP);
    store_u32(payload, status);
    store_u32(payload + 4, (u32)local->grpc_status);
    store_u32(payload + 8, local->details_len);
    store_u32(payload + 12, headers_len);
    store_u32(payload + 16, body.len);
    store_u32(payload + 20, local->direct ? FLAG_RESPONSE_HAD_BEGUN : 0);
    memcpy(payload + at, local->data, local->details_len);
    at += local->details_len;
    pairs_write(map, payload + at);
    at += headers_len;
    if (body.len)
        memcpy(payload + at, body.at, body.len);
    ring_put_bytes(COMPLETE_LOCAL_RESPONSE, 0, stream->id, 0, (struct bytes){payload, (u32)len});
    heap_free(payload);
    stream->over = true;
    stream->answering = false;
}

/* Show the answer to the plugin as a response of its own stream. */
static void carry_through_response(struct stream *stream)
{
    struct local_response *local = &stream->local;
    struct direction *direction = &stream->direction[RESPONSE];
    struct bytes body = {local->data + local->details_len + local->headers_len, local->body_len};
    stream->answering = true;
    direction->headers_seen = direction->ended = true;
    direction->ended_in_headers = body.len == 0;
    if (body.len && !body_append(&direction->body, body))
        violate(VIOLATION_HEAP);
    direction->body_bytes_seen = body.len;
    direction->ended_in_body = body.len != 0;
    direction->body.queued = body.len != 0;
    show_headers(stream, RESPONSE, body.len == 0);
    if (stream->over || !body.len || direction->hold == HOLD_ALL)
        return;
    direction->body.queued = false;
    show_body(stream, RESPONSE);
}

void local_response_run(struct stream *stream)
{
    struct local_response *local = &stream->local;
    struct direction *direction = &stream->direction[RESPONSE];
    if (stream->over) {
        note(stream, NOTE_LOCAL_RESPONSE_IGNORED);
        return;
    }
    if (direction->headers_released) {
        note(stream, NOTE_LOCAL_RESPONSE_TOO_LATE);
        stream_reset(stream, STREAM_HTTP_RESPONSE);
        return;
    }
    if (!build_headers(local, &direction->headers))
        violate(VIOLATION_HEAP);
    if (local->direct)
        local_response_finish(stream,
                              (struct bytes){local->data + local->details_len + local->headers_len, local->body_len});
    else
        carry_through_response(stream);
}

/* Reads the added headers into the block's middle and gives their names lower case. */
static u32 read_headers(struct local_response *local, u32 address)
{
    struct pairs_cursor cursor;
    struct bytes key, value;
    struct bytes headers = {local->data + local->details_len, local->headers_len};
    guest_read(address, local->data + local->details_len, local->headers_len);
    if (!pairs_open(headers, &cursor))
        return STATUS_BAD_ARGUMENT;
    while (pairs_next(&cursor, &key, &value))
        for (u8 *at = local->data + (key.at - local->data), *end = at + key.len; at < end; at++)
            if (*at >= 'A' && *at <= 'Z')
                *at |= 0x20;
    return STATUS_OK;
}

u32 EXPORT(proxy_send_local_response)(u32 status, u32 details, u32 details_len, u32 body, u32 body_len, u32 headers,
                                      u32 headers_len, u32 grpc_status)
{
    host_call(IN_CALLBACKS);
    if (!guest_ok(details, details_len) || !guest_ok(body, body_len) || !guest_ok(headers, headers_len))
        return STATUS_INVALID_MEMORY_ACCESS;
    struct stream *stream = acting_stream();
    if (!stream || stream->tcp)
        return STATUS_OK;
    if (stream->local_sent || stream->over) {
        note(stream, NOTE_LOCAL_RESPONSE_IGNORED);
        return STATUS_OK;
    }
    if (!status_in_range(status) || headers_len > MAX_PAIRS_BYTES || body_len > vm.config.limits.local_response_bytes)
        return STATUS_BAD_ARGUMENT;
    if (details_len > MAX_DETAILS_BYTES)
        details_len = MAX_DETAILS_BYTES;
    i32 grpc = (i32)grpc_status >= 0 && (i32)grpc_status <= 16 ? (i32)grpc_status : -1;
    if (!keep(stream, status, grpc, details_len, headers_len, body_len))
        return STATUS_INTERNAL_FAILURE;
    struct local_response *local = &stream->local;
    u32 result = read_headers(local, headers);
    if (result != STATUS_OK) {
        local_response_free(stream);
        stream->local_sent = false;
        return result;
    }
    guest_read(details, local->data, details_len);
    guest_read(body, local->data + details_len + headers_len, body_len);
    defer(stream, DEFER_LOCAL_RESPONSE, 0);
    return STATUS_OK;
}
