/*
 * Actions on streams that wait until the outermost callback has returned: continue, close, local response.
 *
 * They run in the order of the calls. Each kind waits at most once per stream, which bounds the queue.
 */
#include "stream.h"

#define FIRST_CAP 32u

struct action {
    struct stream *stream;
    u32 kind, argument;
};

STATE static struct {
    struct action *actions;
    u32 head, tail, cap;
} queue;

static void widen(void)
{
    u32 cap = queue.cap ? queue.cap * 2 : FIRST_CAP;
    struct action *actions =
        heap_grow(queue.actions, queue.tail * (u32)sizeof *actions, cap * (u32)sizeof *actions);
    if (!actions)
        violate(VIOLATION_HEAP);
    queue.actions = actions;
    queue.cap = cap;
}

void defer(struct stream *stream, enum deferred_action kind, u32 argument)
{
    if (stream->deferred & kind)
        return;
    if (queue.tail == queue.cap)
        widen();
    stream->deferred |= (u8)kind;
    queue.actions[queue.tail++] = (struct action){stream, kind, argument};
}

static void resume(struct stream *stream, enum direction_id which)
{
    if (stream->tcp)
        tcp_resume(stream, which);
    else
        direction_resume(stream, which);
}

/* Callbacks that an action brings about may add actions; streams are only freed when the queue is empty. */
void run_deferred(void)
{
    while (queue.head < queue.tail) {
        struct action action = queue.actions[queue.head++];
        action.stream->deferred &= (u8)~action.kind;
        switch (action.kind) {
        case DEFER_CONTINUE_REQUEST:
            resume(action.stream, REQUEST);
            break;
        case DEFER_CONTINUE_RESPONSE:
            resume(action.stream, RESPONSE);
            break;
        case DEFER_CLOSE:
            stream_reset(action.stream, action.argument);
            break;
        case DEFER_LOCAL_RESPONSE:
            local_response_run(action.stream);
            break;
        }
    }
    queue.head = queue.tail = 0;
}

/* Without a stream of that sort there is nothing to do. */
static u32 defer_continue(enum deferred_action kind, bool tcp)
{
    struct stream *stream = acting_stream();
    if (stream && stream->tcp == tcp)
        defer(stream, kind, 0);
    return STATUS_OK;
}

u32 EXPORT(proxy_continue_stream)(u32 type)
{
    host_call(IN_CALLBACKS);
    switch (type) {
    case STREAM_HTTP_REQUEST:
        return defer_continue(DEFER_CONTINUE_REQUEST, false);
    case STREAM_HTTP_RESPONSE:
        return defer_continue(DEFER_CONTINUE_RESPONSE, false);
    case STREAM_DOWNSTREAM:
        return defer_continue(DEFER_CONTINUE_REQUEST, true);
    case STREAM_UPSTREAM:
        if (!acting_stream() || !acting_stream()->tcp)
            return STATUS_UNIMPLEMENTED;
        return defer_continue(DEFER_CONTINUE_RESPONSE, true);
    default:
        return STATUS_BAD_ARGUMENT;
    }
}

u32 EXPORT(proxy_close_stream)(u32 type)
{
    host_call(IN_CALLBACKS);
    if (type > STREAM_UPSTREAM)
        return STATUS_BAD_ARGUMENT;
    struct stream *stream = acting_stream();
    if (stream)
        defer(stream, DEFER_CLOSE, type);
    return STATUS_OK;
}

/* ABI 0.1.0 */
u32 EXPORT(proxy_continue_request)(void)
{
    host_call(IN_CALLBACKS);
    return defer_continue(DEFER_CONTINUE_REQUEST, false);
}

u32 EXPORT(proxy_continue_response)(void)
{
    host_call(IN_CALLBACKS);
    return defer_continue(DEFER_CONTINUE_RESPONSE, false);
}
