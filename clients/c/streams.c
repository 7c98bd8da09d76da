/* Streams of a channel, and what is remembered of each to tell changes from. */
#include "internal.h"

#include <stdlib.h>

static sbx_stream **slot(const sbx_channel *channel, uint64_t id)
{
    return &channel->stream_slots[id & channel->stream_mask];
}

bool stream_table_grow(sbx_channel *channel)
{
    if (channel->stream_slots && channel->stream_count <= channel->stream_mask)
        return true;
    uint32_t slots = channel->stream_slots ? (channel->stream_mask + 1) * 2 : 64;
    sbx_stream **old = channel->stream_slots, **fresh = slots ? calloc(slots, sizeof *fresh) : NULL;
    if (!fresh)
        return false;
    uint32_t old_slots = old ? channel->stream_mask + 1 : 0;
    channel->stream_slots = fresh;
    channel->stream_mask = slots - 1;
    for (uint32_t i = 0; i < old_slots; i++)
        while (old[i]) {
            sbx_stream *stream = old[i];
            old[i] = stream->slot_next;
            stream->slot_next = *slot(channel, stream->id);
            *slot(channel, stream->id) = stream;
        }
    free(old);
    return true;
}

sbx_stream *sbx_stream_find(const sbx_channel *channel, uint64_t stream_id)
{
    if (!channel->stream_slots)
        return NULL;
    sbx_stream *stream = *slot(channel, stream_id);
    while (stream && stream->id != stream_id)
        stream = stream->slot_next;
    return stream;
}

static void unlink_stream(sbx_stream *stream)
{
    sbx_channel *channel = stream->channel;
    sbx_stream **at = slot(channel, stream->id);
    while (*at != stream)
        at = &(*at)->slot_next;
    *at = stream->slot_next;
    channel->stream_count--;
}

void stream_free(sbx_stream *stream)
{
    unlink_stream(stream);
    tcp_free(stream->tcp);
    arena_free(&stream->arena);
    free(stream->request.kept.data);
    free(stream->response.kept.data);
    free(stream);
}

void streams_lose(sbx_channel *channel)
{
    for (uint32_t i = 0; channel->stream_slots && i <= channel->stream_mask; i++)
        for (sbx_stream *stream = channel->stream_slots[i]; stream; stream = stream->slot_next)
            stream->lost = true;
}

/* ---- attributes -------------------------------------------------------------------------------------------------- */

static void write_map(const void *from, size_t count, uint8_t *to)
{
    pairs_encode((struct map){from, count}, to);
}

/* The header maps as properties: the VM derives them from the events, which are redacted. */
static bool is_map_property(sbx_bytes path)
{
    return equal(path, LITERAL("request\0headers")) || equal(path, LITERAL("response\0headers")) ||
           equal(path, LITERAL("response\0trailers"));
}

/* Leaves in `shown` what the plugin may be told. */
static int filter_attributes(sbx_channel *channel, const sbx_pair *attributes, size_t count, struct map *shown)
{
    *shown = (struct map){NULL, 0};
    if (!(channel->policy->needs & SBX_NEEDS_PROPERTIES) || !count)
        return SBX_OK;
    arena_reset(&channel->scratch);
    sbx_pair *kept = arena_array(&channel->scratch, count, sizeof *kept);
    if (!kept)
        return SBX_NO_MEMORY;
    for (size_t i = 0; i < count; i++) {
        sbx_bytes path = attributes[i].name;
        if (!is_map_property(path) && sbx_policy_property_visible(channel->policy, path.data, path.len))
            kept[shown->count++] = attributes[i];
    }
    shown->entries = kept;
    return shown->count > MAX_PAIRS_COUNT || pairs_bytes(*shown) > MAX_PAIRS_BYTES ? SBX_LIMIT : SBX_OK;
}

static int send_attributes(sbx_channel *channel, uint16_t kind, uint64_t stream_id, struct map shown, uint64_t time_ns)
{
    struct record record = {.kind = kind, .stream_id = stream_id, .event_seq = take_seq(channel), .arg = time_ns};
    struct writer writer = {write_map, shown.entries, shown.count, pairs_bytes(shown)};
    return send_record(channel, record, writer, false);
}

/* ---- the public part --------------------------------------------------------------------------------------------- */

int sbx_stream_open(sbx_channel *channel, const sbx_pair *attributes, size_t count, uint64_t time_ns, void *user,
                    sbx_stream **stream)
{
    struct map shown;
    *stream = NULL;
    int status = channel_usable(channel);
    if (!status && channel->stream_count >= channel->policy->limits.open_streams)
        status = SBX_LIMIT;
    if (!status)
        status = filter_attributes(channel, attributes, count, &shown);
    if (status)
        return status;
    sbx_stream *made = stream_table_grow(channel) ? calloc(1, sizeof *made) : NULL;
    if (!made)
        return SBX_NO_MEMORY;
    made->channel = channel;
    made->id = channel->next_stream_id;
    made->user = user;
    status = send_attributes(channel, SUBMIT_STREAM_OPEN, made->id, shown, time_ns);
    if (status) {
        free(made);
        return status;
    }
    channel->next_stream_id++;
    channel->stream_count++;
    channel->crowd = channel->stream_count > 1 ? STREAMS_ALONE : channel->crowd - (channel->crowd > 0);
    made->slot_next = *slot(channel, made->id);
    *slot(channel, made->id) = made;
    *stream = made;
    return SBX_OK;
}

int sbx_stream_attributes(sbx_stream *stream, const sbx_pair *attributes, size_t count, uint64_t time_ns)
{
    sbx_channel *channel = stream->channel;
    struct map shown;
    int status = channel_usable(channel);
    if (!status && stream->lost)
        status = SBX_DOWN;
    if (!status)
        status = filter_attributes(channel, attributes, count, &shown);
    if (status || !shown.count)
        return status;
    return send_attributes(channel, SUBMIT_ATTRIBUTES, stream->id, shown, time_ns);
}

/* The VM would keep the stream for ever: so it is told whatever waits already. */
static void send_close(sbx_channel *channel, uint64_t stream_id, bool connection, bool reset, uint64_t time_ns)
{
    sbx_event *event = event_table_grow(channel) ? event_new(channel) : NULL;
    if (!event) {
        channel_break(channel, SBX_BROKEN, "no memory to close a stream");
        return;
    }
    struct record record = {
        .kind = SUBMIT_STREAM_CLOSE,
        .flags = reset ? FLAG_RESET : 0,
        .stream_id = stream_id,
        .event_seq = take_seq(channel),
        .arg = time_ns,
    };
    event->seq = record.event_seq;
    event->kind = SUBMIT_STREAM_CLOSE;
    event->stream_id = stream_id;
    event->connection = connection;
    event->owned = false;
    int status = send_record(channel, record, (struct writer){0}, true);
    if (status == SBX_NO_MEMORY)
        channel_break(channel, SBX_BROKEN, "no memory to close a stream");
    if (status)
        event_destroy(event);
    else
        event_enter(channel, event);
    ring_flush(&channel->ring);
}

void sbx_stream_close(sbx_stream *stream, bool reset, uint64_t time_ns)
{
    sbx_channel *channel = stream->channel;
    uint64_t id = stream->id;
    bool known = channel_usable(channel) == SBX_OK && !stream->lost && !tcp_left(stream), connection = stream->tcp;
    stream_free(stream);
    if (known)
        send_close(channel, id, connection, reset, time_ns);
}

void stream_leave(const sbx_stream *stream, bool reset, uint64_t time_ns)
{
    if (channel_usable(stream->channel) == SBX_OK && !stream->lost)
        send_close(stream->channel, stream->id, stream->tcp != NULL, reset, time_ns);
}

uint64_t sbx_stream_id(const sbx_stream *stream)
{
    return stream->id;
}

void *sbx_stream_user(const sbx_stream *stream)
{
    return stream->user;
}

bool sbx_stream_lost(const sbx_stream *stream)
{
    return stream->lost || stream->channel->dead;
}

size_t sbx_stream_kept(const sbx_stream *stream, enum sbx_kind kind)
{
    const struct body_side *side = is_of_response(kind) ? &stream->response : &stream->request;
    return side->kept.len - side->undecided;
}

size_t sbx_stream_count(const sbx_channel *channel)
{
    return channel->stream_count;
}
