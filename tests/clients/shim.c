/* Lets Python call what the library keeps to itself. Results are written to a buffer; -1: it is too small. */
#include "internal.h"

#include <stdlib.h>

#define EXPORT __attribute__((visibility("default")))

struct output {
    uint8_t *at;
    size_t left;
    bool over;
};

static void put(struct output *out, const void *data, size_t len)
{
    if (len > out->left) {
        out->over = true;
        return;
    }
    if (len)
        memcpy(out->at, data, len);
    out->at += len;
    out->left -= len;
}

static void put_number(struct output *out, uint32_t number)
{
    uint8_t bytes[4];
    put_u32(bytes, number);
    put(out, bytes, 4);
}

static void put_bytes(struct output *out, sbx_bytes bytes)
{
    put_number(out, (uint32_t)bytes.len);
    put(out, bytes.data, bytes.len);
}

static long written(const struct output *out, size_t size)
{
    return out->over ? -1 : (long)(size - out->left);
}

EXPORT void shim_blake2b(uint8_t *out, size_t out_len, const uint8_t *key, size_t key_len, const uint8_t *data,
                         size_t len)
{
    blake2b(out, out_len, key, key_len, data, len);
}

EXPORT long shim_pairs(const uint8_t *data, size_t len, uint8_t *to, size_t size)
{
    struct arena arena = {0};
    struct map map;
    long result = -2;
    if (pairs_decode((sbx_bytes){data, len}, &arena, &map) == SBX_OK && pairs_bytes(map) <= size) {
        pairs_encode(map, to);
        result = (long)pairs_bytes(map);
    }
    arena_free(&arena);
    return result;
}

EXPORT long shim_view(const sbx_policy *policy, int section, const uint8_t *data, size_t len, uint8_t *to, size_t size)
{
    struct arena arena = {0};
    struct map headers, view;
    bool hidden;
    long result = -2;
    if (pairs_decode((sbx_bytes){data, len}, &arena, &headers) == SBX_OK &&
        view_of(policy, (enum section)section, headers, &arena, &view, &hidden) && pairs_bytes(view) <= size) {
        pairs_encode(view, to);
        result = (long)pairs_bytes(view);
    }
    arena_free(&arena);
    return result;
}

static void put_changes(struct output *out, const sbx_changes *changes)
{
    put_number(out, (uint32_t)changes->removed_count);
    for (size_t i = 0; i < changes->removed_count; i++)
        put_bytes(out, changes->removed[i]);
    put_number(out, (uint32_t)changes->set_count);
    for (size_t i = 0; i < changes->set_count; i++) {
        put_bytes(out, changes->set[i].name);
        put_number(out, (uint32_t)changes->set[i].count);
        for (size_t n = 0; n < changes->set[i].count; n++)
            put_bytes(out, changes->set[i].values[n]);
    }
    put_number(out, (uint32_t)changes->added_count);
    for (size_t i = 0; i < changes->added_count; i++) {
        put_bytes(out, changes->added[i].name);
        put_bytes(out, changes->added[i].value);
    }
}

static void put_refusals(struct output *out, const struct refusals *refusals)
{
    put_number(out, (uint32_t)refusals->count);
    for (size_t i = 0; i < refusals->count; i++) {
        put_number(out, refusals->list[i].reason);
        put_bytes(out, refusals->list[i].name);
    }
}

/* What the plugin changed, and with `check` what of it may be made. */
EXPORT long shim_changes(const sbx_policy *policy, int section, const uint8_t *before, size_t before_len,
                         const uint8_t *after, size_t after_len, bool seen, bool check, uint8_t *to, size_t size)
{
    struct arena arena = {0}, scratch = {0};
    struct refusals refusals = {.arena = &arena};
    struct output out = {to, size, false};
    struct map headers, view = {NULL, 0}, now;
    sbx_changes changes;
    bool hidden = true;
    long result = -2;
    if (pairs_decode((sbx_bytes){before, before_len}, &arena, &headers) == SBX_OK &&
        pairs_decode((sbx_bytes){after, after_len}, &arena, &now) == SBX_OK &&
        (!seen || view_of(policy, (enum section)section, headers, &arena, &view, &hidden)) &&
        changes_of(policy, (enum section)section, headers, view, hidden, now, &arena, &scratch, &changes) &&
        (!check || write_headers(policy, (enum section)section, &changes, &arena, &refusals))) {
        put_changes(&out, &changes);
        put_refusals(&out, &refusals);
        result = written(&out, size);
    }
    free(refusals.list);
    arena_free(&arena);
    arena_free(&scratch);
    return result;
}

EXPORT long shim_local(const sbx_policy *policy, uint32_t status, int32_t grpc_status, const uint8_t *details,
                       size_t details_len, const uint8_t *headers, size_t headers_len, const uint8_t *body,
                       size_t body_len, uint8_t *to, size_t size)
{
    struct arena arena = {0};
    struct refusals refusals = {.arena = &arena};
    struct output out = {to, size, false};
    struct map map;
    long result = -2;
    if (pairs_decode((sbx_bytes){headers, headers_len}, &arena, &map) == SBX_OK) {
        sbx_local_response local = {status, grpc_status, false, {details, details_len}, map.entries, map.count,
                                    {body, body_len}};
        bool sent = write_local_response(policy, &local, &arena, &refusals) == SBX_OK;
        put_number(&out, sent);
        if (sent) {
            put_number(&out, local.status);
            put_number(&out, (uint32_t)local.grpc_status);
            put_bytes(&out, local.details);
            put_changes(&out, &(sbx_changes){.added = local.headers, .added_count = local.header_count});
            put_bytes(&out, local.body);
        }
        put_refusals(&out, &refusals);
        result = written(&out, size);
    }
    free(refusals.list);
    arena_free(&arena);
    return result;
}

EXPORT uint32_t shim_body(const sbx_policy *policy, uint64_t len)
{
    return write_body(policy, len);
}

EXPORT uint32_t shim_property(const sbx_policy *policy, const uint8_t *path, size_t path_len, size_t value_len)
{
    return write_property(policy, (sbx_bytes){path, path_len}, (sbx_bytes){NULL, value_len});
}

/* ---- golden vectors ---------------------------------------------------------------------------------------------- */

/* A ring over plain memory: `shared` is a header page and two rings. */
static struct ring plain(uint8_t *shared, uint32_t ring_bytes, uint32_t start)
{
    struct ring ring = {.shared = shared, .bytes = ring_bytes, .mask = ring_bytes - 1};
    ring.sq = shared + PAGE_BYTES;
    ring.cq = ring.sq + ring_bytes;
    ring.vm_event_fd = ring.client_event_fd = -1;
    ring.sq_tail = ring.sq_published = ring.cq_head = start;
    return ring;
}

/* Writes one record at `tail`; returns the new tail, -1: no room, -2: broken. */
EXPORT long shim_put(uint8_t *shared, uint32_t ring_bytes, uint32_t tail, uint16_t kind, uint16_t flags,
                     uint64_t stream_id, uint32_t event_seq, uint64_t arg, const uint8_t *payload, uint32_t len)
{
    struct ring ring = plain(shared, ring_bytes, tail);
    struct record record = {kind, flags, event_seq, len, stream_id, arg};
    uint8_t *at;
    if (ring_reserve(&ring, &record, &at))
        return -2;
    if (!at)
        return -1;
    if (len)
        memcpy(at, payload, len);
    return (long)ring.sq_tail;
}

/* All records from `head` to the published tail: kind, flags, stream, seq, arg (u64 each), payload. -2: broken. */
EXPORT long shim_take(uint8_t *shared, uint32_t ring_bytes, uint32_t head, uint8_t *to, size_t size)
{
    struct ring ring = plain(shared, ring_bytes, head);
    struct output out = {to, size, false};
    struct reader reader;
    struct record record;
    const uint8_t *payload;
    enum ring_next next;
    if (!ring_begin(&ring, &reader))
        return -2;
    while ((next = ring_next(&ring, &reader, &record, &payload)) == RING_RECORD) {
        uint8_t head_bytes[40];
        put_u64(head_bytes, record.kind);
        put_u64(head_bytes + 8, record.flags);
        put_u64(head_bytes + 16, record.stream_id);
        put_u64(head_bytes + 24, record.event_seq);
        put_u64(head_bytes + 32, record.arg);
        put(&out, head_bytes, sizeof head_bytes);
        put_bytes(&out, (sbx_bytes){payload, record.payload_len});
    }
    if (next == RING_BROKEN)
        return -2;
    ring_end(&ring, &reader);
    return written(&out, size);
}
