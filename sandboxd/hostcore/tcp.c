/*
 * TCP: one stream context serves both directions of a connection. `direction[REQUEST]` is what comes from downstream,
 * `direction[RESPONSE]` what comes from upstream; only their bodies are used.
 *
 * A pause keeps the bytes, and the next data callback sees old and new ones together; a Continue, or a resume, passes
 * the bytes on as they are by then. A pause from proxy_on_new_connection holds downstream data back unseen.
 */
#include "stream.h"

static void release_data(struct stream *stream, enum direction_id which)
{
    struct direction *direction = &stream->direction[which];
    struct body *body = &direction->body;
    u16 kind = (u16)(COMPLETE_DOWNSTREAM_DATA + which);
    u16 end = direction->end_held ? RECORD_END_OF_STREAM : 0;
    direction->end_held = false;
    body->open = false;
    if (body->borrowed)
        ring_put(kind, RECORD_AS_SUBMITTED | end, stream->id, 0, 0);
    else
        ring_put_bytes(kind, end, stream->id, 0, (struct bytes){body->data, body->len});
    body_clear(body);
}

/* More is held than the policy allows, or than there is memory: nothing sensible can go on. */
static void too_much(struct stream *stream, enum direction_id which)
{
    note(stream, NOTE_BODY_LIMIT);
    body_clear(&stream->direction[which].body);
    stream->direction[which].body.open = false;
    defer(stream, DEFER_CLOSE, STREAM_DOWNSTREAM + which);
}

static bool over_limit(const struct body *body)
{
    return body->len > vm.config.limits.body_buffer_bytes;
}

static void show_data(struct stream *stream, enum direction_id which)
{
    struct direction *direction = &stream->direction[which];
    struct body *body = &direction->body;
    enum callback callback = CALLBACK_DOWNSTREAM_DATA + which;
    u32 pause = 0;
    body->open = true;
    direction->end_held = direction->ended;
    if (callback_granted(callback))
        pause = call_guest(callback, stream, body_visible(body).len, direction->ended);
    if (pause && (!body_own(body) || over_limit(body))) {
        too_much(stream, which);
    } else if (pause) {
        direction->hold = HOLD_BODY;
    } else {
        direction->hold = HOLD_NONE;
        release_data(stream, which);
    }
}

static u32 data_event(struct stream *stream, enum direction_id which, struct bytes payload, bool end)
{
    struct direction *direction = &stream->direction[which];
    struct body *body = &direction->body;
    if (direction->ended)
        return VERDICT_OUT_OF_ORDER;
    direction->ended = end;
    direction->body_bytes_seen += payload.len;
    if (direction->hold == HOLD_NONE) {
        body->borrowed = true;
        body->chunk = payload;
    } else if (!body_append(body, payload) || over_limit(body)) {
        too_much(stream, which);
        return VERDICT_OK;
    }
    if (direction->hold == HOLD_ALL)
        body->queued = true;
    else
        show_data(stream, which);
    return VERDICT_OK;
}

static u32 new_connection(struct stream *stream)
{
    if (stream->context_id || stream->tcp || stream->direction[REQUEST].headers_seen)
        return VERDICT_OUT_OF_ORDER;
    stream->tcp = true;
    if (!stream_context(stream))
        return VERDICT_LIMIT;
    if (stream->over || !callback_granted(CALLBACK_NEW_CONNECTION))
        return VERDICT_OK;
    if (call_guest(CALLBACK_NEW_CONNECTION, stream, 0, 0))
        stream->direction[REQUEST].hold = HOLD_ALL;
    return VERDICT_OK;
}

/* The payload is a proxy_peer_type_t: unknown, local, remote. */
static u32 close_event(struct stream *stream, enum callback callback, struct bytes payload)
{
    if (payload.len != 4 || load_u32(payload.at) > 2)
        return VERDICT_OUT_OF_ORDER;
    if (callback_granted(callback))
        call_guest(callback, stream, load_u32(payload.at), 0);
    return VERDICT_OK;
}

u32 tcp_event(struct stream *stream, u16 kind, struct bytes payload, bool end)
{
    if (kind == SUBMIT_NEW_CONNECTION)
        return new_connection(stream);
    if (!stream->tcp)
        return VERDICT_OUT_OF_ORDER;
    switch (kind) {
    case SUBMIT_DOWNSTREAM_DATA:
        return data_event(stream, REQUEST, payload, end);
    case SUBMIT_UPSTREAM_DATA:
        return data_event(stream, RESPONSE, payload, end);
    case SUBMIT_DOWNSTREAM_CLOSE:
        return close_event(stream, CALLBACK_DOWNSTREAM_CONNECTION_CLOSE, payload);
    default:
        return close_event(stream, CALLBACK_UPSTREAM_CONNECTION_CLOSE, payload);
    }
}

void tcp_resume(struct stream *stream, enum direction_id which)
{
    struct direction *direction = &stream->direction[which];
    u8 held_by = direction->hold;
    if (stream->over || held_by == HOLD_NONE) {
        note(stream, NOTE_WITHOUT_EFFECT);
        return;
    }
    direction->hold = HOLD_NONE;
    if (held_by == HOLD_BODY) {
        release_data(stream, which);
    } else if (direction->body.queued) {
        direction->body.queued = false;
        show_data(stream, which);
    }
}
