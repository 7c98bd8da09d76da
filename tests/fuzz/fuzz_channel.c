/*
 * Fuzzer of the channel's record reader, the streams' state machine, and the host functions.
 *
 * One input is a handful of records. The guest is as hostile as can be: any host function, any argument, any result.
 * The oracle: what docs/channel.md promises the client, checked on every completion.
 */
#include <stdio.h>
#include <stdlib.h>

#include "native.h"

#define STREAMS 6u
#define MOST_EVENTS 4096u
#define RECORD_HEADER 32u
#define INPUTS_PER_VM 40u
#define MOST_LEFT_BYTES (40u * KIB) /* tables, metrics, the configuration */
#define MOST_NESTING 40u /* host calls of one callback */

enum { AT_SQ_TAIL = 64, AT_SQ_HEAD = 128, AT_CQ_TAIL = 192, AT_CQ_HEAD = 256, AT_CLIENT_NEED_WAKE = 384 };

static struct {
    bool running;
    bool corrupted; /* records or counters were damaged: verdicts cannot be counted any more */
    u32 inputs, generation;
    u32 seq;
    u8 expected[MOST_EVENTS]; /* verdicts that an event still has to get */
    bool closes[MOST_EVENTS]; /* the event is a STREAM_CLOSE */
    bool open[STREAMS];
    u8 sent[STREAMS][2];
    bool ended[STREAMS][2];   /* a direction that was ended towards the client */
    u64 partial_stream;
    u32 partial_kind;
} model;

static struct {
    u64 records, verdicts[5], effects, callbacks, calls, traps, protocol, vms, deliveries, requests, foes;
} statistics;

void channel_statistics(void)
{
    printf("channel: %llu VMs, %llu records, verdicts ok %llu unknown %llu out-of-order %llu limit %llu over %llu, "
           "%llu effects, %llu callbacks, %llu host calls, %llu traps, %llu broken rings, %llu deliveries, "
           "%llu requests, %llu writes of foes\n",
           (unsigned long long)statistics.vms, (unsigned long long)statistics.records,
           (unsigned long long)statistics.verdicts[0], (unsigned long long)statistics.verdicts[1],
           (unsigned long long)statistics.verdicts[2], (unsigned long long)statistics.verdicts[3],
           (unsigned long long)statistics.verdicts[4], (unsigned long long)statistics.effects,
           (unsigned long long)statistics.callbacks, (unsigned long long)statistics.calls,
           (unsigned long long)statistics.traps, (unsigned long long)statistics.protocol,
           (unsigned long long)statistics.deliveries, (unsigned long long)statistics.requests,
           (unsigned long long)statistics.foes);
}

/* ---- the guest --------------------------------------------------------------------------------------------------- */

/* Texts that the guest passes: names, paths, numbers, and a map. They lie in its memory from TEXTS_AT on. */
#define TEXTS_AT 1024u
static const struct {
    const char *text;
    u32 len;
} texts[] = {
    {":path", 5},        {"x-a", 3},         {"X-A", 3},
    {"value", 5},        {"request\0path", 12}, {"request\0headers", 15},
    {"request\0headers\0x-a", 19}, {"response\0code", 13}, {"plugin_root_id\0", 15},
    {"clear_route_cache", 17},     {"own", 3},             {"own\0two", 7},
    {"\2\0\0\0\1\0\0\0\1\0\0\0\3\0\0\0\0\0\0\0K\0v\0x-b\0\0", 28},
    {"\1\0\0\0\1\0\0\0\1\0\0\0k\0v", 16}, {"line\nhalf", 9}, {"", 0},
    {"request\0query", 13}, {"request\0size", 12}, {"response\0headers\0x-a", 20}, {"response\0trailers", 17},
    {"up", 2},
    {"\3\0\0\0\7\0\0\0\1\0\0\0\5\0\0\0\1\0\0\0\12\0\0\0\1\0\0\0:method\0G\0:path\0/\0:authority\0a", 59},
    {"\12\4\12\2up", 6},
};
enum { TEXT_MAP = 12, TEXT_UPSTREAM = 20, TEXT_TARGET = 21, TEXT_SERVICE = 22 };
#define TEXTS (sizeof texts / sizeof *texts)
static u32 text_at[TEXTS];

static void lay_out_texts(void)
{
    u32 at = TEXTS_AT;
    for (u32 i = 0; i < TEXTS; i++) {
        text_at[i] = at;
        memcpy(guest_memory + at, texts[i].text, texts[i].len);
        at += texts[i].len + 1;
    }
}

static u32 random_argument(void)
{
    switch (pick(7)) {
    case 0:
        return pick(4);
    case 1:
        return pick(GUEST_BYTES);
    case 2:
        return GUEST_BYTES - pick(16);
    case 3:
        return 0u - pick(16);
    case 4:
        return 0x7fffffffu;
    case 5:
        return pick(70000);
    default:
        return pick(12);
    }
}

/* Mostly a text and its length, an out-address, or a small number; else anything. */
static void random_arguments(u32 *arguments, u32 count)
{
    for (u32 i = 0; i < count; i++) {
        u32 kind = pick(10);
        if (kind < 4 && i + 1 < count) {
            u32 text = pick(TEXTS);
            arguments[i++] = text_at[text];
            arguments[i] = texts[text].len;
        } else if (kind < 8) {
            arguments[i] = chance(50) ? pick(9) : 8 + 4 * pick(8);
        } else {
            arguments[i] = random_argument();
        }
    }
}

typedef void (*any_function)(void);
static const struct {
    any_function function;
    u32 count;
} functions[] = {
#define ROW(name, count) {(any_function)hc_##name, count},
    HOSTCALLS(ROW)
#undef ROW
};

static void call_plain(u32 which)
{
    u32 a[12] = {0};
    any_function f = functions[which].function;
    random_arguments(a, functions[which].count);
    switch (functions[which].count) {
    case 0: ((u32(*)(PARAMS_0))f)(); break;
    case 1: ((u32(*)(PARAMS_1))f)(a[0]); break;
    case 2: ((u32(*)(PARAMS_2))f)(a[0], a[1]); break;
    case 3: ((u32(*)(PARAMS_3))f)(a[0], a[1], a[2]); break;
    case 4: ((u32(*)(PARAMS_4))f)(a[0], a[1], a[2], a[3]); break;
    case 5: ((u32(*)(PARAMS_5))f)(a[0], a[1], a[2], a[3], a[4]); break;
    case 6: ((u32(*)(PARAMS_6))f)(a[0], a[1], a[2], a[3], a[4], a[5]); break;
    case 7: ((u32(*)(PARAMS_7))f)(a[0], a[1], a[2], a[3], a[4], a[5], a[6]); break;
    case 8: ((u32(*)(PARAMS_8))f)(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7]); break;
    case 9: ((u32(*)(PARAMS_9))f)(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8]); break;
    case 10: ((u32(*)(PARAMS_10))f)(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9]); break;
    default: ((u32(*)(PARAMS_12))f)(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10], a[11]);
    }
}

static void call_special(void)
{
    u32 a[5];
    random_arguments(a, 5);
    u64 wide = chance(50) ? pick(100) : ~0ull << pick(64);
    switch (pick(10)) {
    case 0: hc_proxy_increment_metric(a[0], (i64)wide); break;
    case 1: hc_proxy_record_metric(a[0], wide); break;
    case 2: hc_clock_time_get(a[0], wide, a[1]); break;
    case 3: hc_fd_pwrite(a[0], a[1], a[2], wide, a[3]); break;
    case 4: hc_fd_seek(a[0], wide, a[1], a[2]); break;
    case 5: hc_fd_readdir(a[0], a[1], a[2], wide, a[3]); break;
    case 6: hc_emscripten_notify_memory_growth(a[0]); break;
    case 7: hc_denied(a[0]); break;
    default:
        if (chance(2))
            hc_proc_exit(a[0]);
    }
}

/* The calls that drive the state machine, more often than chance would make them. */
static void call_stream_function(void)
{
    u32 text = pick(TEXTS), other = pick(TEXTS);
    switch (pick(9)) {
    case 0: hc_proxy_continue_stream(pick(4)); break;
    case 1: hc_proxy_close_stream(pick(2)); break;
    case 2: hc_proxy_set_effective_context(1 + pick(8)); break;
    case 3: hc_proxy_add_header_map_value(pick(4), text_at[text], texts[text].len, text_at[other], texts[other].len); break;
    case 4: hc_proxy_replace_header_map_value(pick(4), text_at[text], texts[text].len, 0, pick(3000)); break;
    case 5: hc_proxy_set_buffer_bytes(pick(2), chance(50) ? 0 : pick(5000), pick(3000), 0, pick(6000)); break;
    case 6: hc_proxy_get_buffer_bytes(pick(2), pick(100), chance(50) ? 0x7fffffff : pick(5000), 8, 12); break;
    case 7: hc_proxy_set_property(text_at[text], texts[text].len, 0, pick(3000)); break;
    default:
        if (chance(20))
            hc_proxy_send_local_response(100 + pick(500), text_at[3], 5, 0, chance(50) ? 0 : pick(40000), text_at[12],
                                         chance(50) ? 0 : texts[12].len, pick(20) - 2);
    }
}

/* Shared data, queues and callouts with arguments that get somewhere. */
static void call_tenant_function(void)
{
    u32 text = pick(TEXTS), service = text_at[chance(50) ? TEXT_SERVICE : TEXT_UPSTREAM];
    u32 service_len = service == text_at[TEXT_SERVICE] ? texts[TEXT_SERVICE].len : texts[TEXT_UPSTREAM].len;
    u32 metadata = text_at[TEXT_MAP], metadata_len = chance(80) ? texts[TEXT_MAP].len : pick(40);
    u32 target = text_at[TEXT_TARGET], target_len = chance(90) ? texts[TEXT_TARGET].len : pick(60);
    switch (pick(12)) {
    case 0: hc_proxy_set_shared_data(text_at[text], texts[text].len, 0, chance(80) ? pick(200) : pick(9000), pick(4)); break;
    case 1: hc_proxy_set_shared_data(pick(4096), pick(30), 0, pick(2000), 0); break;
    case 2: hc_proxy_get_shared_data(text_at[text], texts[text].len, 8, 12, 16); break;
    case 3: hc_proxy_register_shared_queue(text_at[text], texts[text].len, 8); break;
    case 4: hc_proxy_resolve_shared_queue(0, 0, text_at[text], texts[text].len, 8); break;
    case 5: hc_proxy_enqueue_shared_queue(pick(10), 0, pick(3000)); break;
    case 6: hc_proxy_dequeue_shared_queue(pick(10), 8, 12); break;
    case 7: hc_proxy_http_call(text_at[TEXT_UPSTREAM], 2, target, target_len, 0, pick(6000), metadata, metadata_len, pick(9), 8); break;
    case 8: hc_proxy_grpc_call(service, service_len, 0, 9, 0, 9, metadata, metadata_len, 0, pick(900), 5, 8); break;
    case 9: hc_proxy_grpc_stream(service, service_len, 0, 9, 0, 9, metadata, metadata_len, 8); break;
    case 10: hc_proxy_grpc_send(pick(30) << 2 | 2, 0, pick(900), pick(2)); break;
    default: chance(50) ? hc_proxy_grpc_close(pick(99)) : hc_proxy_set_tick_period_milliseconds(pick(4)); break;
    }
}

static void call_something(void)
{
    statistics.calls++;
    if (chance(25))
        call_tenant_function();
    else if (chance(50))
        call_stream_function();
    else if (chance(90))
        call_plain(pick(sizeof functions / sizeof *functions));
    else
        call_special();
}

static u32 random_allocator(u32 size)
{
    if (chance(2))
        hc_proxy_log(2, TEXTS_AT, 10);
    if (chance(1))
        return random_argument();
    (void)size;
    return chance(1) && chance(3) ? (call_something(), 0) : 65536;
}

static u32 random_callback(enum callback callback, u32 context_id, u32 a, u32 b)
{
    (void)context_id, (void)a, (void)b;
    statistics.callbacks++;
    if (tracing)
        fprintf(stderr, "  callback %u context %u (%u, %u)\n", callback, context_id, a, b);
    if (callback == CALLBACK_INITIALIZE)
        return 0;
    if (chance(30))
        lay_out_texts(); /* earlier calls have written over them */
    for (u32 calls = pick(chance(10) ? MOST_NESTING : 5); calls; calls--)
        call_something();
    if (callback == CALLBACK_VM_START || callback == CALLBACK_CONFIGURE)
        return 1;
    return chance(60) ? 0 : pick(6);
}

/* ---- the client -------------------------------------------------------------------------------------------------- */

static u32 word(u32 offset)
{
    return load_u32(channel_window + offset);
}

static void set_word(u32 offset, u32 value)
{
    store_u32(channel_window + offset, value);
}

static void put(u16 kind, u16 flags, u64 stream_id, u32 seq, const u8 *payload, u32 len)
{
    u8 *ring = channel_window + 4096;
    u32 tail = word(AT_SQ_TAIL), size = RECORD_HEADER + ((len + 7) & ~7u);
    u32 offset = tail % RING_BYTES, to_end = RING_BYTES - offset;
    if (size > to_end) {
        store_u32(ring + offset, to_end);
        store_u32(ring + offset + 4, 0);
        tail += to_end;
        offset = 0;
    }
    u8 *at = ring + offset;
    store_u32(at, size);
    store_u32(at + 4, (u32)flags << 16 | kind);
    store_u64(at + 8, stream_id);
    store_u32(at + 16, seq);
    store_u32(at + 20, len);
    store_u64(at + 24, 1700000000000000000ull + seq);
    if (len)
        memcpy(at + RECORD_HEADER, payload, len);
    if (chance(1) && chance(30)) { /* damage */
        at[pick(chance(60) ? RECORD_HEADER : size)] = (u8)pick(256);
        model.corrupted = true;
    }
    set_word(AT_SQ_TAIL, tail + size);
    statistics.records++;
    if (tracing)
        fprintf(stderr, "> kind %u flags %u stream %llu seq %u len %u\n", kind, flags, (unsigned long long)stream_id, seq, len);
}

static u32 room(void)
{
    return RING_BYTES - (word(AT_SQ_TAIL) - word(AT_SQ_HEAD));
}

static u32 random_map(u8 *to)
{
    static const char *const names[] = {":path", ":status", "x-a", "content-length", "x-b", "grpc-status", "content-type"};
    u32 count = pick(7);
    u8 *lengths = to + 4, *data = to + 4 + 8 * count;
    store_u32(to, count);
    for (u32 i = 0; i < count; i++) {
        const char *name = names[pick(7)];
        u32 name_len = (u32)strlen(name), value_len = chance(20) ? pick(1500) : pick(12);
        store_u32(lengths + 8 * i, name_len);
        store_u32(lengths + 8 * i + 4, value_len);
        memcpy(data, name, name_len + 1);
        data += name_len + 1;
        memset(data, '0' + (int)pick(10), value_len);
        data[value_len] = 0;
        data += value_len + 1;
    }
    u32 len = (u32)(data - to);
    if (chance(3))
        to[pick(len)] ^= (u8)(1 + pick(255));
    return len;
}

static bool gets_verdict(u32 kind)
{
    return kind != SUBMIT_STREAM_OPEN && kind != SUBMIT_ATTRIBUTES;
}

/* An event that the stream's state admits, as far as the client knows it: 0 none, then headers, body, end. */
static u16 sensible_kind(u64 stream, bool end)
{
    u8 *sent = model.sent[stream];
    if (stream == STREAMS - 1 && model.open[stream] && !chance(6)) /* a connection */
        return sent[REQUEST]++ == 0 ? SUBMIT_NEW_CONNECTION : (u16)(SUBMIT_DOWNSTREAM_DATA + (chance(95) ? pick(2) : 2 + pick(2)));
    if (!model.open[stream]) {
        model.open[stream] = true;
        sent[REQUEST] = sent[RESPONSE] = 0;
        return SUBMIT_STREAM_OPEN;
    }
    u32 which = sent[REQUEST] == 0 ? REQUEST : pick(2);
    if (chance(6) || (sent[REQUEST] == 2 && sent[RESPONSE] == 2)) {
        model.open[stream] = false;
        return SUBMIT_STREAM_CLOSE;
    }
    if (chance(3))
        return SUBMIT_ATTRIBUTES;
    if (sent[which] == 2)
        which = 1 - which;
    u16 kind = sent[which] == 0 ? SUBMIT_REQUEST_HEADERS : chance(25) ? SUBMIT_REQUEST_TRAILERS : SUBMIT_REQUEST_BODY;
    sent[which] = end || kind == SUBMIT_REQUEST_TRAILERS ? 2 : 1;
    return kind + (which ? RESPONSE_KINDS : 0);
}

static void random_event(void)
{
    static u8 payload[16 * 1024];
    static const u8 usual[] = {1, 2, 3, 3, 4, 5, 6, 6, 7, 8, 9, 2, 1, 5};
    bool end = chance(25);
    u64 stream = chance(2) ? pick(3) : 1 + pick(STREAMS - 1);
    u16 flags = end ? RECORD_END_OF_STREAM : 0;
    u16 kind = chance(2)                 ? (u16)pick(24)
               : chance(10) || !stream ? usual[pick(sizeof usual)]
                                         : sensible_kind(stream, end);
    u32 seq = ++model.seq, len = 0;
    if (kind == RECORD_PAD)
        kind = 17;
    if (kind == SUBMIT_SHUTDOWN && !chance(5))
        kind = SUBMIT_STREAM_CLOSE;
    bool map = kind != SUBMIT_REQUEST_BODY && kind != SUBMIT_RESPONSE_BODY && kind < SUBMIT_NEW_CONNECTION;
    if (map && !chance(1))
        len = kind == SUBMIT_STREAM_CLOSE ? 0 : random_map(payload);
    else
        memset(payload, 'b', len = chance(10) ? pick(sizeof payload - 64) : pick(300));
    if (seq < MOST_EVENTS) {
        model.expected[seq] = gets_verdict(kind);
        model.closes[seq] = kind == SUBMIT_STREAM_CLOSE;
    }
    if (kind != SUBMIT_SHUTDOWN && stream && chance(10) && len > 1 && kind <= SUBMIT_STREAM_CLOSE) { /* in pieces */
        u32 first = 1 + pick(len - 1);
        put(kind, flags | RECORD_MORE, stream, seq, payload, first);
        if (chance(2)) { /* the rest never comes */
            model.corrupted = true;
            return;
        }
        put(kind, flags, stream, seq, payload + first, len - first);
        return;
    }
    put(kind, flags, stream, seq, payload, len);
}

/* ---- the oracle -------------------------------------------------------------------------------------------------- */

static void check_effect(u32 kind, u32 flags, u64 stream, const u8 *payload, u32 len)
{
    struct pairs_cursor cursor;
    statistics.effects++;
    if (kind > COMPLETE_DOWNSTREAM_DATA + 1)
        finding("a completion of an unknown kind");
    bool map = kind == 2 || kind == 4 || kind == 5 || kind == 7;
    bool body = kind == 3 || kind == 6;
    if (kind < COMPLETE_LOG && (stream == 0 && !model.corrupted))
        finding("an effect without a stream");
    if (map && !(flags & RECORD_MORE) && !model.partial_kind) {
        if ((flags & RECORD_MODIFIED) ? !pairs_open((struct bytes){payload, len}, &cursor) : len != 0)
            finding("a map completion whose payload does not fit its flags");
    }
    if ((body || kind >= COMPLETE_DOWNSTREAM_DATA) && flags & RECORD_AS_SUBMITTED && len)
        finding("AS_SUBMITTED with a payload");
    if ((map || body) && stream < STREAMS && !(flags & RECORD_MORE)) {
        bool *ended = &model.ended[stream][kind >= 5];
        if (*ended && !model.corrupted)
            finding("something goes on after the end of its direction");
        *ended = flags & RECORD_END_OF_STREAM || kind == 4 || kind == 7;
    }
    if (kind == COMPLETE_LOG && len > 512)
        finding("a log line over its limit");
}

static void check_record(const u8 *at, u32 size)
{
    u32 kind = load_u32(at + 4) & 0xffff, flags = load_u32(at + 4) >> 16, seq = load_u32(at + 16);
    u32 len = load_u32(at + 20);
    u64 stream = load_u64(at + 8), arg = load_u64(at + 24);
    if (tracing)
        fprintf(stderr, "< kind %u flags %u stream %llu seq %u arg %llx len %u\n", kind, flags, (unsigned long long)stream, seq, (unsigned long long)arg, len);
    if (size < RECORD_HEADER || len > size - RECORD_HEADER || size - RECORD_HEADER - len > 7 || size > RING_BYTES / 4)
        finding("a completion whose sizes do not agree");
    if (model.partial_kind && model.partial_stream == stream && model.partial_kind != kind)
        finding("fragments interleaved with another record of their stream");
    if (kind == COMPLETE_VERDICT) {
        u32 code = (u32)arg;
        if (code > VERDICT_STREAM_OVER || arg >> 32 > 63 || len)
            finding("a malformed verdict");
        statistics.verdicts[code]++;
        if (!model.corrupted && seq < MOST_EVENTS) {
            if (!model.expected[seq] && seq > model.seq)
                finding("a verdict for an event that was never submitted");
            if (model.expected[seq] == 2)
                finding("two verdicts for one event");
            model.expected[seq] = 2;
        }
        if (seq < MOST_EVENTS && model.closes[seq] && stream < STREAMS) /* this fuzzer uses ids again */
            model.ended[stream][0] = model.ended[stream][1] = false;
    } else {
        check_effect(kind, flags, stream, at + RECORD_HEADER, len);
    }
    model.partial_kind = flags & RECORD_MORE ? kind : 0;
    model.partial_stream = stream;
}

static void take_completions(u32 most)
{
    const u8 *ring = channel_window + 4096 + RING_BYTES;
    u32 head = word(AT_CQ_HEAD), tail = word(AT_CQ_TAIL);
    if (tail - head > RING_BYTES || tail % 8)
        finding("the completion ring's tail is wrong");
    for (; head != tail && most; most--) {
        u32 offset = head % RING_BYTES, size = load_u32(ring + offset), kind = load_u32(ring + offset + 4) & 0xffff;
        if (size % 8 || size < 8 || size > RING_BYTES - offset)
            finding("a completion of an impossible size");
        if (kind != RECORD_PAD)
            check_record(ring + offset, size);
        else if (size != RING_BYTES - offset)
            finding("a PAD that does not reach the end");
        head += size;
    }
    set_word(AT_CQ_HEAD, head);
}

/* ---- the worker -------------------------------------------------------------------------------------------------- */

static u32 random_map_or_junk(u8 *to)
{
    return chance(20) ? pick(40) : random_map(to);
}

/* A message of any kind, mostly for a callout that may be in flight, well formed or not. */
static void deliver_something(u32 kind)
{
    static u8 parts[3][16 * 1024];
    u32 lens[3] = {random_map_or_junk(parts[0]), pick(2000), chance(50) ? 0 : random_map_or_junk(parts[2])};
    u32 len = kind <= 2 || kind == 8 ? 32 : 32 + lens[0] + lens[1] + lens[2];
    u8 *at = hc_inbox_buffer(len);
    statistics.deliveries++;
    if (!at)
        return;
    memset(at, 0, 32);
    store_u32(at, kind);
    store_u32(at + 4, pick(60));
    store_u64(at + 8, 1700000000000000000ull + (u64)model.seq * 1000000 + pick(1000000000));
    store_u32(at + 16, chance(60) ? 0 : pick(20));
    u32 offset = 32;
    for (u32 i = 0; i < 3 && len > 32; i++) {
        memcpy(at + offset, parts[i], lens[i]);
        store_u32(at + 20 + 4 * i, lens[i]);
        offset += lens[i];
    }
    if (chance(1))
        at[pick(32)] ^= (u8)(1 + pick(255));
    u32 result = hc_inbox_deliver(at, len);
    if (result > 3)
        finding("a delivery with an impossible result");
    if (result == 2 && len > 32)
        heap_free(at);
}

static void take_requests(void)
{
    while (hc_outbox_first()) {
        const u8 *at = hc_outbox_first();
        u64 len = 32;
        for (u32 i = 0; i < 5; i++)
            len += load_u32(at + 12 + 4 * i);
        if (len != hc_outbox_first_len() || load_u32(at) < 1 || load_u32(at) > 8)
            finding("a malformed request");
        statistics.requests++;
        hc_outbox_done();
    }
}

/* Another VM of the tenant writes into the region they share. */
static void foe(void)
{
    for (u32 writes = 1 + pick(20); writes; writes--) {
        u32 at = chance(30) ? pick(400) : chance(50) ? pick(9000) : pick(SHARED_BYTES - 4);
        u32 value = chance(30) ? random_argument() : chance(50) ? pick(SHARED_BYTES) & ~15u : pick(16);
        if (chance(10)) {
            at = 64; /* the lock */
            value = chance(50) ? UINT32_MAX : pick(9);
        }
        store_u32(shared_window + (at & ~3u), value);
        statistics.foes++;
    }
}

/* What the worker does between two polls. */
static void errands(u32 result)
{
    take_requests();
    if (result & POLL_INBOX)
        deliver_something(1);
    while (chance(30))
        deliver_something(1 + pick(chance(95) ? 8 : 10));
    take_requests();
    if (chance(2))
        foe();
}

/* ---- one input --------------------------------------------------------------------------------------------------- */

static const struct limits fuzz_limits = {
    .heap_bytes = 4 * MIB,
    .body_buffer_bytes = 12000,
    .open_streams = 4,
    .log_message_bytes = 512,
    .log_bytes_per_event = 4096,
    .log_lines_per_event = 20,
    .metrics = 20,
    .host_calls_per_event = 2000,
    .local_response_bytes = 30000,
    .property_bytes = 5000,
    .min_tick_ms = 2,
    .callouts = 6,
    .callout_bytes = 5000,
    .shared_value_bytes = 8000,
    .queue_items = 8,
};

static void start_vm(void)
{
    native_reset();
    memset(&model, 0, sizeof model);
    native_callback = random_callback;
    native_allocator = random_allocator;
    lay_out_texts();
    statistics.vms++;
    if (tracing)
        fprintf(stderr, "--- a new VM\n");
    model.generation = 1;
    model.running = native_start(1, pick(4) | pick(3) << 8, 1 + pick(3), &fuzz_limits);
    if (!model.running)
        statistics.traps++;
    else
        take_completions(UINT32_MAX);
}

/* Everything is closed: nothing of the streams may be left. */
static void stop_vm(void)
{
    if (model.corrupted || setjmp(native_jump)) {
        model.running = false;
        return;
    }
    heap_fail_after = -1;
    put(SUBMIT_SHUTDOWN, 0, 0, ++model.seq, NULL, 0);
    for (u32 i = 0; i < 200 && !(hc_poll(0) & (POLL_STOPPED | POLL_PROTOCOL)); i++) {
        take_requests();
        take_completions(UINT32_MAX);
    }
    take_requests();
    take_completions(UINT32_MAX);
    if (!model.corrupted && (vm.streams.count || vm.contexts.count))
        finding("streams are left after the shutdown");
    if (!model.corrupted && heap_used > MOST_LEFT_BYTES)
        finding("the heap holds more after the shutdown than tables and metrics");
    model.running = false;
}

static bool poll_once(void)
{
    if (setjmp(native_jump)) {
        statistics.traps++;
        model.running = false;
        return true;
    }
    u32 result = hc_poll(pick(3));
    if (result & POLL_PROTOCOL) {
        if (!model.corrupted)
            finding("hostcore calls a good ring broken");
        statistics.protocol++;
        model.running = false;
        return true;
    }
    if (result & POLL_STOPPED) {
        model.running = false;
        return true;
    }
    if (word(AT_CQ_HEAD) == word(AT_CQ_TAIL) && result & POLL_NO_SPACE)
        finding("hostcore waits for room in an empty ring");
    if (!(result & POLL_NO_SPACE))
        errands(result);
    return result & POLL_SLEEP;
}

static void check_all_answered(void)
{
    if (model.corrupted)
        return;
    for (u32 seq = 1; seq <= model.seq && seq < MOST_EVENTS; seq++)
        if (model.expected[seq] == 1)
            finding("an event without a verdict");
}

void fuzz_channel(void);
void fuzz_channel_afresh(void);

/* An input means the same each time: it begins with a VM of its own. */
void fuzz_channel_afresh(void)
{
    model.running = false;
    do
        fuzz_channel();
    while (random_bytes_left());
}

void fuzz_channel(void)
{
    if (!model.running)
        start_vm();
    if (!model.running)
        return;
    if (chance(1))
        heap_fail_after = pick(30);
    if (chance(20))
        set_word(AT_CLIENT_NEED_WAKE, 1);
    for (u32 events = 1 + pick(10); events && room() > 40 * KIB; events--)
        random_event();
    if (chance(1) && chance(10)) {
        set_word(chance(50) ? AT_SQ_TAIL : AT_CQ_HEAD, random_argument());
        model.corrupted = true;
    }
    u32 turns = 0;
    while (model.running && !poll_once()) {
        if (model.corrupted && ++turns > 100) {
            model.running = false;
            return;
        }
        if (!model.corrupted)
            take_completions(1 + pick(40));
    }
    heap_fail_after = -1;
    if (!model.running || model.corrupted) {
        model.running = false;
        return;
    }
    take_completions(UINT32_MAX);
    check_all_answered();
    if (++model.inputs == INPUTS_PER_VM || model.seq > MOST_EVENTS - 20)
        stop_vm();
}
