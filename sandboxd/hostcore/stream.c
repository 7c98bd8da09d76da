/*
 * The state machine of one direction (request or response) of an HTTP stream: what is shown to the guest, what is held,
 * what goes on.
 *
 * show_* run a callback and apply its result; release_* send things on. While a local response is carried through the
 * response direction, what "goes on" is collected into the LOCAL_RESPONSE instead.
 */
#include "stream.h"

/* Results of callbacks beyond Continue (0), by kind of callback. */
enum { HEADERS_STOP_ITERATION = 1, HEADERS_CONTINUE_AND_END = 2 };
enum { DATA_STOP_AND_BUFFER = 1, DATA_STOP_AND_WATERMARK = 2 };

static u16 kind_of(u16 request_kind, enum direction_id which)
{
    return which == RESPONSE ? request_kind + RESPONSE_KINDS : request_kind;
}

static enum callback callback_of(enum callback request_callback, enum direction_id which)
{
    return request_callback + (which == RESPONSE ? RESPONSE_KINDS : 0);
}

/* A local response, a reset or a refused event has taken the stream out of the guest's hands. */
static bool stopped(const struct stream *stream, enum direction_id which)
{
    return stream->over || (stream->local_sent && !(stream->answering && which == RESPONSE));
}

/* ---- releasing --------------------------------------------------------------------------------------------------- */

static void put_map(const struct stream *stream, u16 kind, u16 flags, struct map *map)
{
    map->open = false;
    if (!map->modified) {
        ring_put(kind, flags, stream->id, 0, 0);
        return;
    }
    u32 size = pairs_size(map);
    flags |= RECORD_MODIFIED;
    if (size <= ring_max_payload()) {
        pairs_write(map, ring_put(kind, flags, stream->id, 0, size));
        return;
    }
    u8 *encoded = heap_alloc(size);
    if (!encoded)
        violate(VIOLATION_HEAP);
    pairs_write(map, encoded);
    ring_put_bytes(kind, flags, stream->id, 0, (struct bytes){encoded, size});
    heap_free(encoded);
}

static void release_headers(struct stream *stream, enum direction_id which)
{
    struct direction *direction = &stream->direction[which];
    if (direction->headers_released)
        return;
    direction->headers_released = true;
    direction->headers.open = false;
    if (stream->answering && which == RESPONSE) {
        if (direction->ended_in_headers)
            local_response_finish(stream, (struct bytes){0});
        return;
    }
    put_map(stream, kind_of(COMPLETE_HEADERS, which), direction->ended_in_headers ? RECORD_END_OF_STREAM : 0,
            &direction->headers);
}

/* `end`: the last byte of the body is among these. Trailers that the guest added come after it. */
static void release_body(struct stream *stream, enum direction_id which, bool end)
{
    struct direction *direction = &stream->direction[which];
    struct body *body = &direction->body;
    u16 kind = kind_of(COMPLETE_BODY, which);
    bool last = end && !direction->trailers_added;
    body->open = false;
    if (stream->answering && which == RESPONSE) {
        if (end)
            local_response_finish(stream, (struct bytes){body->data, body->len});
    } else if (body->borrowed) {
        ring_put(kind, RECORD_AS_SUBMITTED | (last ? RECORD_END_OF_STREAM : 0), stream->id, 0, 0);
    } else {
        ring_put_bytes(kind, last ? RECORD_END_OF_STREAM : 0, stream->id, 0, (struct bytes){body->data, body->len});
    }
    body_clear(body);
}

static void release_trailers(struct stream *stream, enum direction_id which)
{
    struct direction *direction = &stream->direction[which];
    direction->trailers.open = false;
    if (!stream->answering)
        put_map(stream, kind_of(COMPLETE_TRAILERS, which), 0, &direction->trailers);
}

/* Everything that was shown to the guest and held goes on. */
static void release_held(struct stream *stream, enum direction_id which)
{
    struct direction *direction = &stream->direction[which];
    bool end = direction->end_held;
    release_headers(stream, which);
    direction->end_held = false;
    if (direction->body.len || end)
        release_body(stream, which, end);
    direction->body.open = false;
    if (direction->trailers_shown || direction->trailers_added)
        release_trailers(stream, which);
}

/* ---- showing ----------------------------------------------------------------------------------------------------- */

void show_headers(struct stream *stream, enum direction_id which, bool end)
{
    struct direction *direction = &stream->direction[which];
    enum callback callback = callback_of(CALLBACK_REQUEST_HEADERS, which);
    u32 action = 0;
    direction->headers.open = true;
    if (callback_granted(callback))
        action = call_guest(callback, stream, direction->headers.count, end);
    if (stopped(stream, which)) {
        direction->hold = HOLD_ALL;
    } else if (action == 0 || action == HEADERS_CONTINUE_AND_END) {
        release_headers(stream, which);
    } else if (action == HEADERS_STOP_ITERATION && vm.config.flags & FLAG_HEADERS_STOP_ITERATION) {
        direction->hold = HOLD_HEADERS;
    } else {
        direction->hold = HOLD_ALL;
    }
}

/* More is held than the policy allows: 413 or 500 as Envoy answers, or a reset if the response is on its way. */
static void body_over_limit(struct stream *stream, enum direction_id which)
{
    note(stream, NOTE_BODY_LIMIT);
    body_clear(&stream->direction[which].body);
    bool made = which == REQUEST ? local_response_generate(stream, 413, TEXT("request_payload_too_large"),
                                                           TEXT("Payload Too Large"))
                                 : local_response_generate(stream, 500, TEXT("response_payload_too_large"),
                                                           TEXT("Internal Server Error"));
    if (made)
        defer(stream, DEFER_LOCAL_RESPONSE, 0);
    else
        defer(stream, DEFER_CLOSE, which);
}

static bool over_limit(const struct body *body)
{
    return body->len > vm.config.limits.body_buffer_bytes;
}

/* Apply a pause that a body callback has asked for. */
static void hold_body(struct stream *stream, enum direction_id which, u32 action, bool accumulated)
{
    struct direction *direction = &stream->direction[which];
    struct body *body = &direction->body;
    direction->hold = HOLD_BODY;
    if (action == DATA_STOP_AND_BUFFER || action == DATA_STOP_AND_WATERMARK) {
        if (!body_own(body) || over_limit(body)) {
            body_over_limit(stream, which);
            return;
        }
        body->hidden = action == DATA_STOP_AND_WATERMARK ? body->len : 0;
    } else if (accumulated) { /* StopIterationNoBuffer drops the new bytes, not those that were buffered before */
        body->hidden = body->len;
    } else {
        body->len = body->hidden;
        body->borrowed = false;
    }
}

/* The visible body is complete in `body`; run the callback on it. */
void show_body(struct stream *stream, enum direction_id which)
{
    struct direction *direction = &stream->direction[which];
    struct body *body = &direction->body;
    enum callback callback = callback_of(CALLBACK_REQUEST_BODY, which);
    bool end = direction->ended_in_body;
    bool accumulated = !body->borrowed && direction->hold == HOLD_BODY && body->hidden == 0;
    u32 action = 0;
    body->open = true;
    direction->end_held = end;
    if (callback_granted(callback))
        action = call_guest(callback, stream, body_visible(body).len, end);
    if (stopped(stream, which)) {
        body_clear(body);
        return;
    }
    if (action != 0) {
        hold_body(stream, which, action, accumulated);
        return;
    }
    direction->hold = HOLD_NONE;
    direction->end_held = false;
    release_headers(stream, which);
    release_body(stream, which, end);
    if (direction->trailers_added)
        release_trailers(stream, which);
}

static void show_trailers(struct stream *stream, enum direction_id which)
{
    struct direction *direction = &stream->direction[which];
    enum callback callback = callback_of(CALLBACK_REQUEST_TRAILERS, which);
    u32 action = 0;
    direction->trailers.open = true;
    direction->trailers_shown = true;
    if (callback_granted(callback))
        action = call_guest(callback, stream, direction->trailers.count, 0);
    if (stopped(stream, which))
        return;
    if (action != 0) {
        direction->hold = HOLD_TRAILERS;
        return;
    }
    direction->hold = HOLD_NONE;
    release_held(stream, which);
}

/* ---- events ------------------------------------------------------------------------------------------------------ */

/* Why a map was not taken. */
static u32 refusal(struct bytes payload)
{
    struct pairs_cursor cursor;
    return pairs_open(payload, &cursor) ? VERDICT_LIMIT : VERDICT_OUT_OF_ORDER;
}

u32 direction_headers(struct stream *stream, enum direction_id which, struct bytes payload, bool end)
{
    struct direction *direction = &stream->direction[which];
    if (direction->headers_seen)
        return VERDICT_OUT_OF_ORDER;
    if (!map_decode(&direction->headers, payload))
        return refusal(payload);
    direction->headers_seen = true;
    direction->ended = direction->ended_in_headers = end;
    if (!stream_context(stream))
        return VERDICT_LIMIT;
    if (stopped(stream, which)) /* proxy_on_context_create answered or closed it */
        return VERDICT_OK;
    show_headers(stream, which, end);
    return VERDICT_OK;
}

u32 direction_body(struct stream *stream, enum direction_id which, struct bytes payload, bool end)
{
    struct direction *direction = &stream->direction[which];
    struct body *body = &direction->body;
    if (!direction->headers_seen || direction->ended)
        return VERDICT_OUT_OF_ORDER;
    direction->ended = direction->ended_in_body = end;
    direction->body_bytes_seen += payload.len;
    if (direction->hold == HOLD_ALL || body->len) {
        if (!body_append(body, payload) || over_limit(body)) {
            body_over_limit(stream, which);
            return VERDICT_OK;
        }
        if (direction->hold == HOLD_ALL) {
            body->queued = true;
            return VERDICT_OK;
        }
    } else {
        body->borrowed = true;
        body->chunk = payload;
    }
    show_body(stream, which);
    return VERDICT_OK;
}

u32 direction_trailers(struct stream *stream, enum direction_id which, struct bytes payload)
{
    struct direction *direction = &stream->direction[which];
    if (!direction->headers_seen || direction->ended)
        return VERDICT_OUT_OF_ORDER;
    if (!map_decode(&direction->trailers, payload))
        return refusal(payload);
    direction->ended = true;
    if (direction->hold != HOLD_ALL)
        show_trailers(stream, which);
    return VERDICT_OK;
}

/* What waited unseen behind a pause from headers is shown now. */
static void show_queued(struct stream *stream, enum direction_id which)
{
    struct direction *direction = &stream->direction[which];
    if (direction->body.queued) {
        direction->body.queued = false;
        show_body(stream, which);
    }
    if (stopped(stream, which) || direction->hold == HOLD_ALL)
        return;
    if (direction->trailers.present && !direction->trailers_added && !direction->trailers_shown)
        show_trailers(stream, which);
}

void direction_resume(struct stream *stream, enum direction_id which)
{
    struct direction *direction = &stream->direction[which];
    u8 held_by = direction->hold;
    if (stopped(stream, which) || held_by == HOLD_NONE) {
        note(stream, NOTE_WITHOUT_EFFECT);
        return;
    }
    direction->hold = HOLD_NONE;
    if (held_by != HOLD_ALL) {
        release_held(stream, which);
        return;
    }
    release_headers(stream, which);
    show_queued(stream, which);
}

void stream_reset(struct stream *stream, u32 type)
{
    if (stream->over) {
        note(stream, NOTE_WITHOUT_EFFECT);
        return;
    }
    stream->over = true;
    stream->answering = false;
    ring_put(COMPLETE_CLOSE_STREAM, 0, stream->id, type, 0);
}

u32 verdict_state(const struct stream *stream)
{
    u32 state = 0;
    if (stream->over)
        return 0;
    for (u32 which = REQUEST; which <= RESPONSE; which++) {
        const struct direction *direction = &stream->direction[which];
        bool held = direction->headers_seen && !direction->headers_released;
        state |= (u32)(direction->hold != HOLD_NONE) << which;
        state |= (u32)held << (which + 2);
        state |= (u32)(direction->hold == HOLD_ALL) << (which + 4);
    }
    return state;
}
