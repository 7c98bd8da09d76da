/*
 * Callouts: what a request of the guest has to be, which ones are in flight, and HTTP calls. gRPC: grpc.c. What comes
 * back: callout_answers.c.
 *
 * A request is checked for form, counted, and put into the outbox; whether it is allowed, and everything that has to do
 * with a network, is decided outside. Callouts belong to the root context. The low two bits of an id tell the kind; ids
 * are never used twice by a VM.
 */
#include "callouts.h"

#define KIND_BITS 2
#define MAX_TIMEOUT_MS 0x7fffffffu

STATE static struct {
    struct table in_flight; /* by id */
    u32 numbers[3];         /* the last one given to each kind */
} calls;

/* ---- upstreams --------------------------------------------------------------------------------------------------- */

bool upstream_find(struct bytes name, struct bytes *found)
{
    struct pairs_cursor cursor;
    struct bytes nothing;
    if (!name.len || !pairs_open(vm.config.upstreams, &cursor))
        return false;
    while (pairs_next(&cursor, found, &nothing))
        if (bytes_equal(*found, name))
            return true;
    return false;
}

/* ---- requests ---------------------------------------------------------------------------------------------------- */

bool callout_parts_ok(const struct part *parts, u32 count)
{
    for (u32 i = 0; i < count; i++)
        if (!guest_ok(parts[i].at, parts[i].len))
            return false;
    return true;
}

bool callout_small_enough(const struct part *parts, u32 count)
{
    u64 sum = 0;
    for (u32 i = 0; i < count; i++)
        sum += parts[i].len;
    return sum <= vm.config.limits.callout_bytes;
}

bool callout_is_map(struct bytes encoded)
{
    struct pairs_cursor cursor;
    return pairs_open(encoded, &cursor);
}

u32 callout_fresh_id(enum call_kind kind)
{
    u32 id;
    do {
        calls.numbers[kind] = (calls.numbers[kind] + 1) & (UINT32_MAX >> KIND_BITS);
        id = calls.numbers[kind] << KIND_BITS | kind;
    } while (!calls.numbers[kind] || table_get(&calls.in_flight, id));
    return id;
}

void callout_tell_unknown(enum outbox_kind kind, struct bytes name)
{
    u32 lens[OUT_PARTS] = {name.len};
    u32 id = callout_fresh_id(kind == OUT_HTTP_CALL ? HTTP_CALL : GRPC_CALL);
    struct message *message = outbox_make(kind, id, 0, lens);
    if (!message)
        return;
    if (name.len)
        memcpy(outbox_parts(message), name.at, name.len);
    outbox_send(message);
}

struct callout *callout_find(u32 id)
{
    return table_get(&calls.in_flight, id);
}

static bool remember(u32 id)
{
    struct callout *callout = heap_alloc(sizeof *callout);
    if (!callout)
        return false;
    *callout = (struct callout){0};
    if (table_put(&calls.in_flight, id, callout))
        return true;
    heap_free(callout);
    return false;
}

void callout_forget(u32 id)
{
    heap_free(callout_find(id));
    table_remove(&calls.in_flight, id);
}

struct message *callout_compose(enum outbox_kind kind, u32 id, u32 argument, struct bytes upstream,
                               const struct part *parts, u32 count, struct bytes *copies)
{
    u32 lens[OUT_PARTS] = {upstream.len};
    for (u32 i = 0; i < count; i++)
        lens[i + 1] = parts[i].len;
    struct message *message = outbox_make(kind, id, argument, lens);
    if (!message)
        return NULL;
    u8 *to = outbox_parts(message);
    if (upstream.len)
        memcpy(to, upstream.at, upstream.len);
    to += upstream.len;
    for (u32 i = 0; i < count; i++) {
        guest_read(parts[i].at, to, parts[i].len);
        copies[i] = (struct bytes){to, parts[i].len};
        to += parts[i].len;
    }
    return message;
}

bool callout_room(void)
{
    return calls.in_flight.count < vm.config.limits.callouts;
}

u32 callout_start(struct message *message, u32 id, u32 id_out)
{
    if (!remember(id)) {
        heap_free(message);
        return STATUS_INTERNAL_FAILURE;
    }
    outbox_send(message);
    guest_write_u32(id_out, id);
    return STATUS_OK;
}

/* ---- HTTP calls -------------------------------------------------------------------------------------------------- */

static bool names_target(struct bytes headers)
{
    struct pairs_cursor cursor;
    struct bytes key, value;
    bool method = false, path = false, authority = false;
    if (!pairs_open(headers, &cursor))
        return false;
    while (pairs_next(&cursor, &key, &value)) {
        method |= bytes_equal(key, TEXT(":method"));
        path |= bytes_equal(key, TEXT(":path"));
        authority |= bytes_equal(key, TEXT(":authority")) || bytes_equal(key, TEXT("host"));
    }
    return method && path && authority;
}

static u32 http_call(struct bytes upstream, const struct part parts[3], u32 timeout_ms, u32 id_out)
{
    struct bytes copies[3];
    if (!callout_small_enough(parts, 3) || !callout_room())
        return STATUS_INTERNAL_FAILURE;
    u32 id = callout_fresh_id(HTTP_CALL);
    struct message *message = callout_compose(OUT_HTTP_CALL, id, timeout_ms, upstream, parts, 3, copies);
    if (!message)
        return STATUS_INTERNAL_FAILURE;
    if (!names_target(copies[0]) || !callout_is_map(copies[2])) {
        heap_free(message);
        return STATUS_BAD_ARGUMENT;
    }
    return callout_start(message, id, id_out);
}

u32 EXPORT(proxy_http_call)(u32 upstream, u32 upstream_len, u32 headers, u32 headers_len, u32 body, u32 body_len,
                            u32 trailers, u32 trailers_len, u32 timeout_ms, u32 call_id_out)
{
    struct part parts[3] = {{headers, headers_len}, {body, body_len}, {trailers, trailers_len}};
    struct bytes found;
    host_call(IN_CALLBACKS);
    if (!guest_ok(upstream, upstream_len) || !callout_parts_ok(parts, 3) || !guest_ok(call_id_out, 4))
        return STATUS_INVALID_MEMORY_ACCESS;
    if (timeout_ms > MAX_TIMEOUT_MS || upstream_len > MAX_UPSTREAM_BYTES)
        return STATUS_BAD_ARGUMENT;
    guest_read(upstream, scratch, upstream_len);
    if (!upstream_find((struct bytes){scratch, upstream_len}, &found)) {
        callout_tell_unknown(OUT_HTTP_CALL, (struct bytes){scratch, upstream_len});
        return STATUS_BAD_ARGUMENT;
    }
    return http_call(found, parts, timeout_ms, call_id_out);
}
