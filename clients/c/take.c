/*
 * Completions: each is checked by the rules of docs/channel.md, copied, and put to the event that it belongs to. As
 * VmClient._take in sandboxd/channel/client.py.
 */
#include "internal.h"

#include <stdlib.h>

/* ---- fragments --------------------------------------------------------------------------------------------------- */

static struct partial *partial_of(struct collected *got, uint64_t stream_id)
{
    for (unsigned i = 0; got->partial_count && i < MAX_PARTIALS; i++)
        if (got->partials[i].used && got->partials[i].stream_id == stream_id)
            return &got->partials[i];
    return NULL;
}

static int begin_partial(struct collected *got, const struct record *record, struct partial **partial)
{
    if (!got->partials && !(got->partials = calloc(MAX_PARTIALS, sizeof *got->partials)))
        return SBX_NO_MEMORY;
    for (unsigned i = 0; i < MAX_PARTIALS; i++)
        if (!got->partials[i].used) {
            got->partial_count++;
            *partial = &got->partials[i];
            **partial = (struct partial){record->stream_id, record->arg, 0, record->kind, true, NULL, NULL};
            return SBX_OK;
        }
    return SBX_BROKEN;
}

static bool add_piece(struct collected *got, struct partial *partial, const struct record *record,
                      const uint8_t *payload)
{
    struct piece *piece = arena_alloc(&got->arena, sizeof *piece + record->payload_len);
    if (!piece)
        return false;
    piece->next = NULL;
    piece->len = record->payload_len;
    ring_copy(piece->data, payload, piece->len);
    if (partial->last)
        partial->last->next = piece;
    else
        partial->first = piece;
    partial->last = piece;
    partial->len += piece->len;
    return true;
}

static int end_partial(struct collected *got, struct partial *partial, sbx_bytes *whole)
{
    uint8_t *joined = arena_alloc(&got->arena, partial->len);
    if (!joined)
        return SBX_NO_MEMORY;
    *whole = (sbx_bytes){joined, partial->len};
    for (const struct piece *piece = partial->first; piece; piece = piece->next) {
        memcpy(joined, piece->data, piece->len);
        joined += piece->len;
    }
    partial->used = false;
    got->partial_count--;
    return SBX_OK;
}

/* The whole payload of an effect, copied. SBX_AGAIN: pieces are missing. */
static int collect(struct collected *got, const struct record *record, const uint8_t *payload, sbx_bytes *whole)
{
    struct partial *partial = partial_of(got, record->stream_id);
    if (!partial && !(record->flags & FLAG_MORE)) {
        uint8_t *copy = arena_alloc(&got->arena, record->payload_len);
        if (!copy)
            return SBX_NO_MEMORY;
        ring_copy(copy, payload, record->payload_len);
        *whole = (sbx_bytes){copy, record->payload_len};
        return SBX_OK;
    }
    int status = partial ? SBX_OK : begin_partial(got, record, &partial);
    if (status)
        return status;
    if (partial->kind != record->kind || partial->arg != record->arg)
        return SBX_BROKEN;
    if (!add_piece(got, partial, record, payload))
        return SBX_NO_MEMORY;
    return record->flags & FLAG_MORE ? SBX_AGAIN : end_partial(got, partial, whole);
}

/* ---- single effects ---------------------------------------------------------------------------------------------- */

/* As check_effect in sandboxd/channel/completions.py. */
static bool legal(unsigned kind, unsigned flags, uint64_t arg, size_t len)
{
    switch (kind) {
    case SBX_REQUEST_HEADERS:
    case SBX_REQUEST_TRAILERS:
    case SBX_RESPONSE_HEADERS:
    case SBX_RESPONSE_TRAILERS:
        return len <= (flags & SBX_MODIFIED ? MAX_PAIRS_BYTES : 0);
    case SBX_REQUEST_BODY:
    case SBX_RESPONSE_BODY:
    case SBX_DOWNSTREAM_DATA:
    case SBX_UPSTREAM_DATA:
        return !(flags & SBX_AS_SUBMITTED) || len == 0;
    case SBX_CLOSE_STREAM:
        return len == 0 && arg <= 3;
    case SBX_LOG:
        return len <= MAX_LOG_MESSAGE_BYTES && arg <= 5;
    case SBX_CLEAR_ROUTE_CACHE:
    case SBX_DENIED:
    case SBX_LOGS_DROPPED:
        return len == 0;
    case SBX_NOTE:
        return len <= (arg == SBX_PROPERTY_MISSING ? MAX_MISSED_BYTES : 0);
    default:
        return true;
    }
}

static bool put_notice(struct collected *got, const sbx_notice *notice)
{
    if (!grow((void **)&got->notices, got->notice_count, &got->notice_capacity, sizeof *got->notices))
        return false;
    got->notices[got->notice_count++] = *notice;
    return true;
}

/* The others mean nothing with this kind. */
static unsigned flags_of(unsigned kind)
{
    if (is_body_kind(kind) || is_data_kind(kind))
        return SBX_AS_SUBMITTED | SBX_END_OF_STREAM;
    return is_map_kind(kind) ? SBX_MODIFIED | SBX_END_OF_STREAM : 0;
}

sbx_effect effect_of(const struct record *record, sbx_bytes data)
{
    return (sbx_effect){
        .kind = record->kind,
        .flags = record->flags & flags_of(record->kind),
        .stream_id = record->stream_id,
        .arg = record->arg,
        .data = data,
    };
}

static bool put_effect(struct collected *got, const struct record *record, sbx_bytes data)
{
    if (!grow((void **)&got->effects, got->effect_count, &got->effect_capacity, sizeof *got->effects))
        return false;
    got->effects[got->effect_count++] = effect_of(record, data);
    return true;
}

/* Resolves AS_SUBMITTED: the length is known here, the bytes are the caller's. `event` NULL: outside events. */
static bool resolve(sbx_event *event, const struct record *record, sbx_bytes *data)
{
    if (!(flags_of(record->kind) & record->flags & SBX_AS_SUBMITTED))
        return true;
    if (!event || !event->has_body || record->kind != event->kind || record->stream_id != event->stream_id)
        return false;
    event->has_body = false;
    *data = (sbx_bytes){NULL, event->body_len};
    return true;
}

/* HTTP's effects on a connection, or a connection's data on an exchange. Of streams that are closed only those of their
   own events are known; effects on the others are dropped. */
static bool is_of_the_other_kind(const sbx_channel *channel, const sbx_event *event, const struct record *record)
{
    const sbx_stream *stream = sbx_stream_find(channel, record->stream_id);
    bool own = event && event->stream_id == record->stream_id;
    if (!stream && !own)
        return false;
    bool connection = stream ? stream->tcp != NULL : event->connection;
    bool http_alone = record->kind != SBX_PROPERTY_SET && record->kind != SBX_CLOSE_STREAM;
    return connection ? http_alone && !is_data_kind(record->kind) : is_data_kind(record->kind);
}

int take_payload(sbx_channel *channel, sbx_event *event, const struct record *record, const uint8_t *payload,
                 sbx_bytes *data)
{
    if (is_effect_kind(record->kind) && (record->stream_id == 0 || record->stream_id >= channel->next_stream_id ||
                                         is_of_the_other_kind(channel, event, record)))
        return SBX_BROKEN;
    int status = collect(event ? &event->got : &channel->loose, record, payload, data);
    if (!status && (!legal(record->kind, record->flags, record->arg, data->len) || !resolve(event, record, data)))
        status = SBX_BROKEN;
    return status;
}

bool is_told(const sbx_channel *channel, const sbx_notice *notice)
{
    return notice->kind != SBX_NOTE || notice->arg != SBX_PROPERTY_MISSING ||
           sbx_policy_property_visible(channel->policy, notice->data.data, notice->data.len);
}

static int take_effect(sbx_channel *channel, sbx_event *event, const struct record *record, const uint8_t *payload)
{
    struct collected *got = &event->got;
    sbx_bytes data;
    int status = take_payload(channel, event, record, payload, &data);
    if (status)
        return status == SBX_AGAIN ? SBX_OK : status;
    if (is_effect_kind(record->kind))
        return put_effect(got, record, data) ? SBX_OK : SBX_NO_MEMORY;
    sbx_notice notice = {record->kind, record->flags, record->stream_id, record->arg, data};
    return !is_told(channel, &notice) || put_notice(got, &notice) ? SBX_OK : SBX_NO_MEMORY;
}

/* ---- verdicts ---------------------------------------------------------------------------------------------------- */

static int finish(sbx_channel *channel, sbx_event *event)
{
    int status = interpret(channel, event);
    if (status == SBX_BROKEN)
        return SBX_BROKEN;
    event_end(event, status);
    event_leave(channel, event);
    return SBX_OK;
}

static int take_verdict(sbx_channel *channel, sbx_event *event, const struct record *record)
{
    uint32_t code = (uint32_t)record->arg, state = (uint32_t)(record->arg >> 32);
    if (record->payload_len || code > SBX_VERDICT_STREAM_OVER || state > STATES_ALL)
        return channel_break(channel, SBX_BROKEN, "verdict with code %u, state %u, %u bytes", code, state,
                             record->payload_len);
    if (record->stream_id != event->stream_id)
        return channel_break(channel, SBX_BROKEN, "verdict for another stream than its event's");
    if (event->got.partial_count)
        return channel_break(channel, SBX_BROKEN, "verdict before the last fragment of an effect");
    event->verdict.code = code;
    event->verdict.state = state;
    if (finish(channel, event))
        return channel_break(channel, SBX_BROKEN, "effect with a malformed payload");
    return SBX_OK;
}

int take_record(sbx_channel *channel, const struct record *record, const uint8_t *payload)
{
    if (record->kind > COMPLETE_LAST || record->flags > FLAGS_ALL)
        return channel_break(channel, SBX_BROKEN, "completion of unknown kind %u or flags %u", record->kind,
                             record->flags);
    sbx_event *event = event_find(channel, record->event_seq);
    if (!event)
        return take_loose(channel, record, payload);
    if (record->kind == COMPLETE_VERDICT)
        return take_verdict(channel, event, record);
    if (record->kind == SBX_VM_STARTED)
        return channel_break(channel, SBX_BROKEN, "VM_STARTED within an event");
    if (!charge_event(channel, event, record->payload_len))
        return channel_break(channel, SBX_BROKEN, "event with more or larger effects than its limits allow");
    if (!event_wants(event, record->kind, record->stream_id))
        return SBX_OK;
    if (!hold_for_verdict(channel, event, record->payload_len))
        return channel_break(channel, SBX_BROKEN, "events without a verdict hold too much together");
    int status = take_effect(channel, event, record, payload);
    if (status == SBX_BROKEN)
        return channel_break(channel, SBX_BROKEN, "malformed effect of kind %u", record->kind);
    if (status == SBX_NO_MEMORY) {
        event_end(event, status);
        event->deaf = true;
    }
    return SBX_OK;
}
