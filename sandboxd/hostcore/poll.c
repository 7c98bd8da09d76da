/* Events: taking submissions off the channel, running them, and the verdict of each. */
#include "outbox.h"
#include "stream.h"

#define RETRY_LOOKS 16u
#define LOOKS_AT_ONCE 512u /* some five microseconds; giving the CPU away takes two or three */

void event_begin(const struct record *record)
{
    u64 limit = vm.config.limits.host_calls_per_event;
    vm.turn++;
    vm.event_seq = record->event_seq;
    vm.event_stream = record->stream_id;
    vm.now_ns = record->arg;
    vm.calls_left = limit ? limit : UINT64_MAX;
    vm.log_lines = vm.log_bytes = vm.logs_dropped = 0;
    vm.notes = 0;
    vm.status.event_seq = record->event_seq;
    vm.status.stream_id_low = (u32)record->stream_id;
    vm.status.stream_id_high = (u32)(record->stream_id >> 32);
}

/* What is collected during an event and sent once. */
void event_end(void)
{
    while (vm.first_touched) {
        struct stream *stream = vm.first_touched;
        vm.first_touched = stream->next_touched;
        properties_send(stream);
    }
    if (vm.logs_dropped)
        ring_put(COMPLETE_LOGS_DROPPED, 0, vm.event_stream, vm.logs_dropped, 0);
}

/* Each kind of note once per event. */
void note(const struct stream *stream, enum note_code code)
{
    if (vm.notes & 1u << code)
        return;
    vm.notes |= 1u << code;
    ring_put(COMPLETE_NOTE, 0, stream ? stream->id : 0, code, 0);
}

static void put_verdict(u64 stream_id, u32 code, u32 state)
{
    ring_put(COMPLETE_VERDICT, 0, stream_id, (u64)state << 32 | code, 0);
}

/* ---- payloads in several records --------------------------------------------------------------------------------- */

enum assembled { ASSEMBLED, INCOMPLETE, FAILED };

/*
 * Collect a payload that comes in pieces. The caller runs the event when it is whole; `record->payload` is then the
 * whole of it. One that does not fit in the heap fails when its last piece has come.
 */
static enum assembled assemble(struct stream *stream, struct record *record)
{
    struct assembly *assembly = &stream->assembly;
    if (LIKELY(!assembly->active && !(record->flags & RECORD_MORE)))
        return ASSEMBLED;
    if (!assembly->active) {
        heap_free(assembly->data);
        *assembly = (struct assembly){.active = true, .kind = record->kind, .event_seq = record->event_seq};
    }
    u64 len = (u64)assembly->len + record->payload.len;
    u8 *data = assembly->failed || len > UINT32_MAX ? NULL : assembly->data;
    if (!assembly->failed && (!data || heap_usable(data) < len))
        data = len > UINT32_MAX ? NULL : heap_grow(assembly->data, assembly->len, (u32)len + 1);
    if (!data) {
        assembly->failed = true;
    } else {
        assembly->data = data;
        if (record->payload.len)
            memcpy(data + assembly->len, record->payload.at, record->payload.len);
        assembly->len = (u32)len;
    }
    if (record->flags & RECORD_MORE)
        return INCOMPLETE;
    assembly->active = false;
    record->payload = (struct bytes){assembly->data, assembly->len};
    return assembly->failed ? FAILED : ASSEMBLED;
}

static void assembly_end(struct stream *stream)
{
    heap_free(stream->assembly.data);
    stream->assembly = (struct assembly){0};
}

/* A piece of another event where the rest of this one should be: the started event is answered as well. */
static bool interrupts(const struct stream *stream, const struct record *record)
{
    const struct assembly *assembly = &stream->assembly;
    return assembly->active && (assembly->kind != record->kind || assembly->event_seq != record->event_seq);
}

/* ---- running one event ------------------------------------------------------------------------------------------- */

static u32 message_event(struct stream *stream, const struct record *record)
{
    bool end = record->flags & RECORD_END_OF_STREAM;
    if (stream->limited)
        return VERDICT_LIMIT;
    if (stream->over || stream->local_sent)
        return VERDICT_STREAM_OVER;
    if (record->kind >= SUBMIT_NEW_CONNECTION)
        return tcp_event(stream, record->kind, record->payload, end);
    if (stream->tcp)
        return VERDICT_OUT_OF_ORDER;
    switch (record->kind) {
    case SUBMIT_REQUEST_HEADERS:
        return direction_headers(stream, REQUEST, record->payload, end);
    case SUBMIT_REQUEST_BODY:
        return direction_body(stream, REQUEST, record->payload, end);
    case SUBMIT_REQUEST_TRAILERS:
        return direction_trailers(stream, REQUEST, record->payload);
    case SUBMIT_RESPONSE_HEADERS:
        return direction_headers(stream, RESPONSE, record->payload, end);
    case SUBMIT_RESPONSE_BODY:
        return direction_body(stream, RESPONSE, record->payload, end);
    case SUBMIT_RESPONSE_TRAILERS:
        return direction_trailers(stream, RESPONSE, record->payload);
    default:
        return VERDICT_OUT_OF_ORDER;
    }
}

static u32 attributes_event(struct stream *stream, const struct record *record)
{
    struct pairs_cursor cursor;
    if (attributes_add(stream, record->payload))
        return VERDICT_NONE;
    if (!pairs_open(record->payload, &cursor))
        return VERDICT_OUT_OF_ORDER;
    stream->limited = true;
    return VERDICT_NONE;
}

/* Opens the stream at its first record. A refused stream's events are answered with LIMIT or UNKNOWN_STREAM. */
static u32 open_event(struct record *record)
{
    struct stream *stream = stream_find(record->stream_id);
    u32 refused = record->flags & RECORD_MORE ? VERDICT_NONE : VERDICT_OUT_OF_ORDER;
    if (!record->stream_id || (stream && !stream->assembly.active))
        return refused;
    if (!stream)
        stream = stream_create(record->stream_id);
    if (!stream)
        return VERDICT_NONE;
    enum assembled assembled = assemble(stream, record);
    if (assembled == INCOMPLETE)
        return VERDICT_NONE;
    u32 code = VERDICT_NONE;
    if (assembled == FAILED)
        stream->limited = true;
    else
        code = attributes_event(stream, record);
    assembly_end(stream);
    return code;
}

static bool has_verdict(u16 kind)
{
    return kind != SUBMIT_STREAM_OPEN && kind != SUBMIT_ATTRIBUTES;
}

static u32 unknown_stream(const struct record *record)
{
    if (record->flags & RECORD_MORE || !has_verdict(record->kind))
        return VERDICT_NONE;
    bool full = vm.streams.count >= vm.config.limits.open_streams && record->kind != SUBMIT_STREAM_CLOSE;
    return full ? VERDICT_LIMIT : VERDICT_UNKNOWN_STREAM;
}

static u32 stream_event(struct stream *stream, struct record *record)
{
    bool fragmented = stream->assembly.active || record->flags & RECORD_MORE;
    u32 code = VERDICT_NONE;
    switch (assemble(stream, record)) {
    case INCOMPLETE:
        return VERDICT_NONE;
    case FAILED:
        code = has_verdict(record->kind) ? VERDICT_LIMIT : VERDICT_NONE;
        stream->limited = true;
        break;
    case ASSEMBLED:
        code = record->kind == SUBMIT_ATTRIBUTES ? attributes_event(stream, record) : message_event(stream, record);
        break;
    }
    if (fragmented) {
        run_deferred(); /* before the payload goes */
        assembly_end(stream);
    }
    return code;
}

static u32 shutdown_event(void)
{
    streams_close_all();
    root_close();
    return VERDICT_OK;
}

/* Returns the verdict's code and the stream's state after the event. */
static u32 dispatch(struct record *record, u32 *state)
{
    if (record->kind == SUBMIT_SHUTDOWN)
        return record->stream_id ? VERDICT_OUT_OF_ORDER : shutdown_event();
    bool known = record->kind < SUBMIT_SHUTDOWN ||
                 (record->kind >= SUBMIT_NEW_CONNECTION && record->kind <= SUBMIT_UPSTREAM_CLOSE);
    if (record->kind == RECORD_PAD || !known)
        return record->flags & RECORD_MORE ? VERDICT_NONE : VERDICT_OUT_OF_ORDER;
    struct stream *stream = stream_find(record->stream_id);
    if (stream && interrupts(stream, record)) {
        bool answer = has_verdict(stream->assembly.kind);
        u32 interrupted = stream->assembly.event_seq;
        assembly_end(stream);
        if (answer) {
            vm.event_seq = interrupted;
            put_verdict(stream->id, VERDICT_OUT_OF_ORDER, verdict_state(stream));
            vm.event_seq = record->event_seq;
        }
    }
    if (record->kind == SUBMIT_STREAM_OPEN)
        return open_event(record);
    if (!stream)
        return unknown_stream(record);
    if (record->kind == SUBMIT_STREAM_CLOSE) {
        if (record->flags & RECORD_MORE) /* it has no payload; the last piece counts */
            return VERDICT_NONE;
        stream_close(stream);
        return VERDICT_OK;
    }
    u32 code = stream_event(stream, record);
    run_deferred();
    *state = verdict_state(stream);
    return code;
}

static void run_event(struct record *record)
{
    u32 state = 0;
    event_begin(record);
    u32 code = dispatch(record, &state);
    run_deferred();
    event_end();
    if (code != VERDICT_NONE)
        put_verdict(record->stream_id, code, state);
    vm.event_seq = 0;
}

/* ---- the loop ---------------------------------------------------------------------------------------------------- */

static u32 wake_bit(void)
{
    return ring_client_sleeps() ? POLL_WAKE_CLIENT : 0;
}

/* Completions wait for room: nothing new is taken until they are out. */
static u32 wait_for_space(void)
{
    if (ring_prepare_sleep(true))
        return POLL_NO_SPACE | wake_bit();
    return wake_bit();
}

static u32 worker_bits(void)
{
    return (outbox_waiting() ? POLL_OUTBOX : 0) | (ring_inbox() || tick_due() ? POLL_INBOX : 0);
}

/* How long to look for the next event: half as long each time that it was in vain, twice as long each time that it was
   not, and now and then the whole time. */
static struct {
    u32 most, in_vain;
    u32 left; /* when it last gave the CPU away */
} looking = {.most = UINT32_MAX};

static u32 may_look(u32 spin)
{
    /* With few CPUs, looking takes the one that other streams need; alone, there is nobody to take it from. To be alone
       for a moment among many is not enough: the next one is about to come, and its client needs the CPU. */
    return spin & SPIN_ALONE && vm.crowd ? 0 : spin & ~SPIN_ALONE;
}

static u32 looks_of(u32 spin)
{
    u32 looks = may_look(spin);
    return looks < looking.most ? looks : looking.most;
}

static void looked_in_vain(u32 spin)
{
    if (may_look(spin))
        looking.most = ++looking.in_vain % RETRY_LOOKS ? looks_of(spin) / 2 : UINT32_MAX;
}

/*
 * Run what the client has submitted, until there is nothing left and `spin` further looks found nothing. Returns early
 * to give the CPU to somebody who has something to do while it looks; to have the client woken, since it waits for what
 * was just answered; and for what only the worker can do: a tick that is due by the events' own clock, answers for the
 * VM, calls that the guest has made.
 */
u32 EXPORT(poll)(u32 spin)
{
    struct record record;
    u32 budget = looks_of(spin), looks = looking.left ? looking.left : budget;
    u32 at_once = LOOKS_AT_ONCE;
    bool looked = false;
    looking.left = 0;
    ring_awake();
    for (;;) {
        if (!ring_flush())
            return wait_for_space();
        if (vm.stopped)
            return POLL_STOPPED | worker_bits() | wake_bit();
        u32 errands = looked ? worker_bits() : 0; /* one event at least, so that the errands cannot starve the client */
        if (UNLIKELY(errands))
            return errands | wake_bit();
        looked = true;
        enum ring_state state = ring_next(&record);
        if (state == RING_BROKEN)
            return POLL_PROTOCOL | wake_bit();
        if (state == RING_RECORD) {
            if (looks < budget) /* it came while we looked */
                looking.most = looking.most < UINT32_MAX / 2 ? looking.most * 2 : UINT32_MAX;
            run_event(&record);
            ring_publish();
            ring_done();
            looks = budget = looks_of(spin);
            at_once = LOOKS_AT_ONCE;
            if (looks && ring_client_sleeps())
                return POLL_WAKE_CLIENT;
        } else if (UNLIKELY(worker_bits())) {
            continue;
        } else if (looks == 0) {
            looked_in_vain(spin);
            /* First this: its fence stands between the room made above and the look at whether the client wants it. */
            u32 sleep = ring_prepare_sleep(false) ? POLL_SLEEP : 0;
            return sleep | wake_bit();
        } else {
            looks--;
            if (--at_once == 0 && looks) {
                looking.left = looks;
                return POLL_YIELD;
            }
        }
    }
}
