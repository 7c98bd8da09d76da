/* Events into the submission ring: redacted, cut to records, or queued until there is room. */
#include "internal.h"

#include <stdlib.h>

int send_record(sbx_channel *channel, struct record record, struct writer writer, bool always)
{
    struct ring *ring = &channel->ring;
    if (writer.len > UINT32_MAX / 2)
        return SBX_LIMIT;
    record.payload_len = (uint32_t)writer.len;
    if (!ring->first && writer.len <= max_payload(ring)) {
        uint8_t *at;
        if (ring_reserve(ring, &record, &at))
            return channel_break(channel, SBX_BROKEN, "consumer's position does not fit the producer's");
        if (at) {
            if (writer.len)
                writer.write(writer.from, writer.count, at);
            return SBX_OK;
        }
    }
    uint8_t *payload = NULL;
    if (writer.len) {
        if (!always && ring->backlog_bytes + writer.len > ring->max_backlog_bytes)
            return SBX_FULL;
        if (!(payload = malloc(writer.len)))
            return SBX_NO_MEMORY;
        writer.write(writer.from, writer.count, payload);
    }
    int status = ring_queue(ring, &record, payload, always);
    if (!status && ring_pump(ring))
        return channel_break(channel, SBX_BROKEN, "consumer's position does not fit the producer's");
    return status;
}

int submit_event(sbx_stream *stream, enum sbx_kind kind, struct writer writer, bool end_of_stream, uint64_t time_ns,
                 void *user, sbx_event **event)
{
    sbx_channel *channel = stream->channel;
    sbx_event *made = event_table_grow(channel) ? event_new(channel) : NULL;
    if (!made)
        return SBX_NO_MEMORY;
    struct record record = {
        .kind = (uint16_t)kind,
        .flags = end_of_stream ? SBX_END_OF_STREAM : 0,
        .stream_id = stream->id,
        .event_seq = take_seq(channel),
        .arg = time_ns,
    };
    made->seq = record.event_seq;
    made->kind = record.kind;
    made->stream_id = stream->id;
    made->user = user;
    made->connection = stream->tcp != NULL;
    made->has_body = is_body_kind(kind) || is_data_kind(kind);
    made->body_len = made->has_body ? writer.len : 0;
    ring_awake(&channel->ring); /* the caller looks itself, or arms again */
    int status = send_record(channel, record, writer, false);
    if (status) {
        event_destroy(made);
        return status;
    }
    event_enter(channel, made);
    ring_flush(&channel->ring);
    *event = made;
    return SBX_OK;
}

static int usable(sbx_stream *stream)
{
    int status = channel_usable(stream->channel);
    return status ? status : stream->lost ? SBX_DOWN : SBX_OK;
}

/* ---- header maps ------------------------------------------------------------------------------------------------- */

static void write_map(const void *from, size_t count, uint8_t *to)
{
    pairs_encode((struct map){from, count}, to);
}

/* Keeps a copy of the proxy's map. */
static bool remember(sbx_stream *stream, struct snapshot *snapshot, struct map headers, uint64_t bytes)
{
    sbx_pair *entries = arena_array(&stream->arena, headers.count, sizeof *entries);
    uint8_t *text = arena_alloc(&stream->arena, bytes);
    if (!entries || !text)
        return false;
    for (size_t i = 0; i < headers.count; i++) {
        const sbx_pair *from = &headers.entries[i];
        entries[i].name = (sbx_bytes){text, from->name.len};
        if (from->name.len)
            memcpy(text, from->name.data, from->name.len);
        text += from->name.len;
        entries[i].value = (sbx_bytes){text, from->value.len};
        if (from->value.len)
            memcpy(text, from->value.data, from->value.len);
        text += from->value.len;
    }
    snapshot->map = (struct map){entries, headers.count};
    return true;
}

int sbx_submit_headers(sbx_stream *stream, enum sbx_kind kind, const sbx_pair *headers, size_t count,
                       bool end_of_stream, uint64_t time_ns, void *user, sbx_event **event)
{
    sbx_channel *channel = stream->channel;
    const sbx_policy *policy = channel->policy;
    *event = NULL;
    if (stream->tcp || !is_map_kind(kind) || stream->maps[section_of(kind)].present)
        return SBX_INVALID;
    int status = usable(stream);
    if (status)
        return status;
    struct map map = {headers, count}, view = {NULL, 0};
    uint64_t bytes = pairs_bytes(map);
    if (count > MAX_PAIRS_COUNT || bytes > MAX_PAIRS_BYTES)
        return SBX_LIMIT;
    struct snapshot *snapshot = &stream->maps[section_of(kind)];
    bool hidden;
    arena_reset(&channel->scratch);
    snapshot->seen = needed(policy, kind);
    if (!remember(stream, snapshot, map, bytes) ||
        (snapshot->seen && !view_of(policy, section_of(kind), map, &channel->scratch, &view, &hidden)))
        return SBX_NO_MEMORY;
    struct writer writer = {write_map, view.entries, view.count, pairs_bytes(view)};
    if (writer.len > MAX_PAIRS_BYTES) /* hashes may be longer than what they hide */
        return SBX_LIMIT;
    status = submit_event(stream, kind, writer, end_of_stream, time_ns, user, event);
    snapshot->present = status == SBX_OK;
    if (!status && (end_of_stream || is_trailers_kind(kind)))
        side_of(stream, kind)->over = true;
    return status;
}

/* ---- bodies ------------------------------------------------------------------------------------------------------ */

void write_zeros(const void *from, size_t count, uint8_t *to)
{
    (void)from;
    memset(to, 0, count);
}

static void write_pieces(const void *from, size_t count, uint8_t *to)
{
    const sbx_bytes *pieces = from;
    for (size_t i = 0; i < count; i++) {
        if (pieces[i].len)
            memcpy(to, pieces[i].data, pieces[i].len);
        to += pieces[i].len;
    }
}

/* A plugin that may not write a body, or cannot read it, says when it goes on, not what: so we keep what was submitted. */
static int keep(const sbx_stream *stream, struct held *held, struct writer writer)
{
    /* An honest VM answers LIMIT before it holds so much. */
    if (held->len > stream->channel->policy->limits.body_buffer_bytes)
        return SBX_LIMIT;
    size_t want = held->len + writer.len;
    if (want > held->capacity) {
        uint8_t *larger = realloc(held->data, want);
        if (!larger)
            return SBX_NO_MEMORY;
        held->data = larger;
        held->capacity = want;
    }
    if (writer.len)
        writer.write(writer.from, writer.count, held->data + held->len);
    held->len = want;
    return SBX_OK;
}

static int submit_body(sbx_stream *stream, enum sbx_kind kind, struct writer writer, bool end_of_stream,
                       uint64_t time_ns, void *user, sbx_event **event)
{
    const sbx_policy *policy = stream->channel->policy;
    struct body_side *side = side_of(stream, kind);
    bool keeps = keeps_body(policy, kind);
    int status = usable(stream);
    if (!status && keeps)
        status = keep(stream, &side->kept, writer);
    if (status)
        return status;
    if (!needed(policy, kind)) /* the callback sees a size, and zeros have that as well */
        writer = (struct writer){write_zeros, NULL, writer.len, writer.len};
    status = submit_event(stream, kind, writer, end_of_stream, time_ns, user, event);
    if (status && keeps)
        side->kept.len -= writer.len;
    else if (keeps)
        side->undecided += writer.len;
    if (!status && end_of_stream)
        side->over = true;
    return status;
}

int sbx_submit_body(sbx_stream *stream, enum sbx_kind kind, const sbx_bytes *pieces, size_t count, bool end_of_stream,
                    uint64_t time_ns, void *user, sbx_event **event)
{
    struct writer writer = {write_pieces, pieces, count, 0};
    *event = NULL;
    if (stream->tcp || !is_body_kind(kind) || !hears_body(stream->channel->policy, kind))
        return SBX_INVALID;
    for (size_t i = 0; i < count; i++) {
        if (pieces[i].len > UINT32_MAX / 2) /* before it is added, so that the sum cannot wrap */
            return SBX_LIMIT;
        writer.len += pieces[i].len;
        if (writer.len > UINT32_MAX / 2)
            return SBX_LIMIT;
    }
    return submit_body(stream, kind, writer, end_of_stream, time_ns, user, event);
}

int sbx_submit_nothing(sbx_stream *stream, enum sbx_kind kind, bool end_of_stream, uint64_t time_ns, void *user,
                       sbx_event **event)
{
    *event = NULL;
    if (stream->tcp || !is_body_kind(kind) || hears_body(stream->channel->policy, kind))
        return SBX_INVALID;
    return submit_body(stream, kind, (struct writer){0}, end_of_stream, time_ns, user, event);
}
