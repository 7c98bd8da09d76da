/* Streams and their contexts: ids, effective context, and the end of a life (done, log, delete). */
#include "stream.h"

struct stream *acting_stream(void)
{
    return vm.effective;
}

struct stream *stream_find(u64 id)
{
    if (vm.last_stream && vm.last_stream->id == id)
        return vm.last_stream;
    struct stream *stream = table_get(&vm.streams, id);
    if (stream)
        vm.last_stream = stream;
    return stream;
}

struct stream *stream_create(u64 id)
{
    if (vm.streams.count >= vm.config.limits.open_streams)
        return NULL;
    struct stream *stream = heap_alloc(sizeof *stream);
    if (!stream)
        return NULL;
    memset(stream, 0, sizeof *stream);
    stream->id = id;
    if (!table_put(&vm.streams, id, stream)) {
        heap_free(stream);
        return NULL;
    }
    vm.status.streams_open = vm.streams.count;
    vm.crowd = vm.streams.count > 1 ? STREAMS_ALONE : vm.crowd - (vm.crowd > 0);
    vm.last_stream = stream;
    return stream;
}

/* One counter for the VM's life; after 2^32 contexts it skips those that are still alive. */
static u32 fresh_context_id(void)
{
    do
        vm.next_context_id++;
    while (vm.next_context_id <= ROOT_CONTEXT_ID || table_get(&vm.contexts, vm.next_context_id));
    return vm.next_context_id;
}

bool stream_context(struct stream *stream)
{
    if (stream->context_id)
        return true;
    u32 id = fresh_context_id();
    if (!table_put(&vm.contexts, id, stream))
        return false;
    stream->context_id = id;
    if (callback_granted(CALLBACK_CONTEXT_CREATE)) {
        call_guest(CALLBACK_CONTEXT_CREATE, stream, ROOT_CONTEXT_ID, 0);
        run_deferred();
    }
    return true;
}

void stream_touch(struct stream *stream)
{
    if (stream->touched)
        return;
    stream->touched = true;
    stream->next_touched = vm.first_touched;
    vm.first_touched = stream;
}

static void direction_free(struct direction *direction)
{
    map_free(&direction->headers);
    map_free(&direction->trailers);
    heap_free(direction->body.data);
}

static void stream_free(struct stream *stream)
{
    table_remove(&vm.streams, stream->id);
    if (stream->context_id)
        table_remove(&vm.contexts, stream->context_id);
    if (vm.last_stream == stream)
        vm.last_stream = NULL;
    vm.status.streams_open = vm.streams.count;
    direction_free(&stream->direction[REQUEST]);
    direction_free(&stream->direction[RESPONSE]);
    local_response_free(stream);
    properties_free(stream);
    heap_free(stream->assembly.data);
    heap_free(stream);
}

static void close_callbacks(struct stream *stream)
{
    stream->over = true;
    if (callback_granted(CALLBACK_DONE)) {
        stream->in_done = true;
        u32 done = call_guest(CALLBACK_DONE, stream, 0, 0);
        stream->in_done = false;
        run_deferred();
        if (!done && !stream->done_called)
            note(stream, NOTE_DONE_NEVER_CAME);
    }
    if (callback_granted(CALLBACK_LOG)) {
        stream->logging = true;
        call_guest(CALLBACK_LOG, stream, 0, 0);
        stream->logging = false;
        run_deferred();
    }
    if (callback_granted(CALLBACK_DELETE)) {
        call_guest(CALLBACK_DELETE, stream, 0, 0);
        run_deferred();
    }
}

/*
 * The specification's order: done, log, delete. A guest that wants to wait for proxy_done is not waited for: this
 * version has no callback in which it could still come.
 */
void stream_close(struct stream *stream)
{
    if (stream->context_id)
        close_callbacks(stream);
    if (stream->touched) {
        properties_send(stream);
        struct stream **at = &vm.first_touched;
        while (*at != stream)
            at = &(*at)->next_touched;
        *at = stream->next_touched;
    }
    stream_free(stream);
}

void streams_close_all(void)
{
    for (u32 at = 0; at < vm.streams.cap;) {
        struct stream *stream = vm.streams.slots[at].value;
        if (stream)
            stream_close(stream); /* another stream may move into this slot */
        else
            at++;
    }
}

void root_close(void)
{
    vm.stopped = true;
    if (callback_granted(CALLBACK_DONE)) {
        u32 done = call_guest(CALLBACK_DONE, NULL, 0, 0);
        run_deferred();
        if (!done)
            note(NULL, NOTE_DONE_NEVER_CAME);
    }
    if (callback_granted(CALLBACK_DELETE)) {
        call_guest(CALLBACK_DELETE, NULL, 0, 0);
        run_deferred();
    }
}

/* Any live context of this VM may be chosen; the choice ends with the callback. */
u32 EXPORT(proxy_set_effective_context)(u32 context_id)
{
    host_call(IN_CALLBACKS);
    if (context_id <= ROOT_CONTEXT_ID) {
        vm.effective = NULL;
        return STATUS_OK;
    }
    struct stream *stream = table_get(&vm.contexts, context_id);
    if (!stream)
        return STATUS_BAD_ARGUMENT;
    vm.effective = stream;
    return STATUS_OK;
}

/* Only inside proxy_on_done can a context be waiting for it: nothing runs later that could call it. */
u32 EXPORT(proxy_done)(void)
{
    host_call(IN_CALLBACKS);
    struct stream *stream = acting_stream();
    if (!stream || !stream->in_done)
        return STATUS_NOT_FOUND;
    stream->done_called = true;
    return STATUS_OK;
}
