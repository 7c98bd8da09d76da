/*
 * Plays a hostile worker against libsandboxd.
 *
 * One execution: a client that opens streams, submits, waits, cancels and closes, and a worker that answers between the
 * client's steps: honest records, broken ones, raw bytes, wrong counters and states. Each execution begins with the state
 * that the one before left, on one of several channels; a channel that broke is replaced.
 *
 * What must hold: no sanitizer speaks, every call returns, every effect names memory that may be read, every event ends at
 * most once, header names that come out are legal and hidden values never reach the submission ring.
 *
 *     fuzz_worker --runs N [--seed S]     numbers of its own
 *     fuzz_worker FILE...                 replays inputs
 * or built with -DLIBFUZZER -fsanitize=fuzzer.
 */
#include "internal.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

void fuzz_copied(const uint8_t *at, size_t len);

#define RING_BYTES MIN_RING_BYTES
#define SECRET "hidden-secret-value"
#define STREAMS 4
#define EVENTS 8

/* ---- numbers: from a seed, or from the input ------------------------------------------------------------------- */

static uint64_t state = 1;
static const uint8_t *input;
static size_t input_left;

static uint32_t any(void)
{
    if (input) {
        uint32_t value = 0;
        for (int i = 0; i < 4 && input_left; i++, input_left--)
            value = value << 8 | *input++;
        return value;
    }
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 16);
}

static uint32_t pick(uint32_t below)
{
    return below ? any() % below : 0;
}

static bool chance(uint32_t percent)
{
    return pick(100) < percent;
}


static void finding(const char *what)
{
    fprintf(stderr, "FINDING: %s\n", what);
    abort();
}

/* ---- the channel --------------------------------------------------------------------------------------------------- */

struct side {
    sbx_channel *channel;
    uint8_t *shared; /* the worker's own mapping */
    uint8_t *guard;
    uint32_t tail, generation;
    int vm_event_fd, client_event_fd;
    sbx_stream *streams[STREAMS];
    sbx_event *events[EVENTS];
    uint32_t answered[256]; /* numbers of events that got their verdict, by their low bits */
    bool wild; /* the worker breaks rules all the time; else now and then */
};

static struct side side;

/* For what breaks the channel: on most channels seldom, so that there is time for more than the first record. */
static bool rarely(uint32_t percent)
{
    return side.wild ? chance(percent) : pick(2000) < percent;
}

static sbx_policy *policies[2];
static uint64_t breaks, verdicts, late, executions;

static void put_entry(uint8_t **at, uint32_t tag, const void *content, uint32_t len)
{
    put_u32(*at, tag);
    put_u32(*at + 4, len);
    if (len)
        memcpy(*at + 8, content, len);
    memset(*at + 8 + len, 0, -len & 7);
    *at += 8 + ((len + 7) & ~7u);
}

static void put_numbers(uint8_t **at, uint32_t tag, const uint64_t *numbers, uint32_t count)
{
    uint8_t bytes[64];
    for (uint32_t i = 0; i < count; i++)
        put_u64(bytes + 8 * i, numbers[i]);
    put_entry(at, tag, bytes, 8 * count);
}

/* Hides x-drop, x-mask, x-hash-*, x-presence; denies x-denied. Small limits, so that they are met. */
static sbx_policy *make_policy(bool may_write)
{
    static const char redact[] = "\x06\0\1\0x-drop\x06\0\2\0x-mask\x07\0\3\1x-hash-\x0a\0\4\0x-presence";
    static const char denied[] = "\x08\0\1\0x-denied";
    static const char paths[] = "\x0e\0\0\0source\0address";
    uint8_t blob[4096], *at = blob + 8;
    uint64_t needs = 0x1ff, limits[] = {8192, 16, 4096, 1000000000, 64}, failure[] = {0, 503};
    uint64_t write[] = {may_write ? 7 : 0, 16, 256, 1024};
    memcpy(blob, "SBXP\1\0\0\0", 8);
    put_entry(&at, 1, "t", 1);
    put_entry(&at, 2, "p", 1);
    put_entry(&at, 3, "0123456789abcdef", 16);
    put_numbers(&at, 4, &needs, 1);
    put_numbers(&at, 5, limits, 5);
    put_numbers(&at, 6, failure, 2);
    put_numbers(&at, 7, write, 4);
    put_entry(&at, 8, denied, sizeof denied - 1);
    for (uint32_t section = 10; section < 14; section++)
        put_entry(&at, section, redact, sizeof redact - 1);
    put_entry(&at, 14, paths, sizeof paths - 1);
    sbx_policy *policy;
    sbx_error error;
    if (sbx_policy_load(blob, (size_t)(at - blob), &policy, &error)) {
        finding(error.text);
    }
    return policy;
}

static void on_notice(void *user, const sbx_notice *notice)
{
    volatile uint8_t sum = 0;
    (void)user;
    for (size_t i = 0; i < notice->data.len; i++)
        sum ^= notice->data.data[i];
}

static void check_effect(const sbx_effect *effect);

static void on_late(void *user, sbx_stream *stream, const sbx_effect *effect)
{
    (void)user;
    if (sbx_stream_id(stream) != effect->stream_id)
        finding("a late effect of another stream");
    check_effect(effect);
    late++;
}

static uint32_t *word(uint32_t offset)
{
    return (uint32_t *)(void *)(side.shared + offset);
}

static void begin_vm(void);

/* A worker that writes while the library reads: what was copied is something else right after. */
void fuzz_copied(const uint8_t *at, size_t len)
{
    const struct ring *ring = &side.channel->ring;
    size_t offset = (size_t)(at - ring->shared);
    if (len)
        side.shared[offset + pick((uint32_t)len)] ^= (uint8_t)(1u << pick(8));
}

/* Moves the library's mapping to where a page follows that nobody may touch. */
static void put_guard(struct ring *ring)
{
    uint8_t *room = mmap(NULL, ring->shared_bytes + PAGE_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (room == MAP_FAILED || mremap(ring->shared, ring->shared_bytes, ring->shared_bytes, MREMAP_MAYMOVE | MREMAP_FIXED,
                                     room) == MAP_FAILED)
        finding("no room for a guard page");
    ring->cq = room + (ring->cq - ring->shared);
    ring->sq = room + (ring->sq - ring->shared);
    ring->shared = room;
    side.guard = room + ring->shared_bytes;
}

static void open_side(void)
{
    static const sbx_hooks hooks = {NULL, on_notice, on_late};
    size_t size = PAGE_BYTES + 2 * RING_BYTES;
    int memfd = memfd_create("fuzz", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (memfd < 0 || ftruncate(memfd, (off_t)size))
        finding("no memfd");
    side = (struct side){.wild = chance(15)};
    side.shared = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
    *word(AT_MAGIC) = CHANNEL_MAGIC;
    *word(AT_VERSION) = CHANNEL_VERSION;
    *word(AT_RING_BYTES) = RING_BYTES;
    /* Counters that wrap soon. */
    uint32_t start = chance(50) ? 0u - 8u * pick(20000) : 8 * pick(1000);
    *word(AT_SQ_TAIL) = *word(AT_SQ_HEAD) = start;
    *word(AT_CQ_TAIL) = *word(AT_CQ_HEAD) = side.tail = start;
    fcntl(memfd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
    side.vm_event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    side.client_event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    sbx_descriptors given = {memfd, dup(side.vm_event_fd), dup(side.client_event_fd), -1, RING_BYTES, 100000, 0};
    sbx_error error;
    if (sbx_channel_open(&given, policies[pick(2)], &side.channel, &error))
        finding(error.text);
    put_guard(&side.channel->ring);
    sbx_channel_hooks(side.channel, &hooks);
    begin_vm();
}

static void close_side(void)
{
    sbx_channel_close(side.channel);
    munmap(side.guard, PAGE_BYTES);
    munmap(side.shared, PAGE_BYTES + 2 * RING_BYTES);
    close(side.vm_event_fd);
    close(side.client_event_fd);
}

/* ---- the worker ---------------------------------------------------------------------------------------------------- */

static void poke(uint32_t position, const void *data, size_t len)
{
    uint8_t *ring = side.shared + PAGE_BYTES + RING_BYTES;
    for (size_t i = 0; i < len; i++)
        ring[(position + i) & (RING_BYTES - 1)] = ((const uint8_t *)data)[i];
}

static void emit(uint16_t kind, uint16_t flags, uint64_t stream_id, uint32_t seq, uint64_t arg, const uint8_t *payload,
                 uint32_t len)
{
    uint8_t head[RECORD_BYTES];
    uint32_t size = (len + RECORD_BYTES + 7) & ~7u, to_end = RING_BYTES - (side.tail & (RING_BYTES - 1));
    if (RING_BYTES - (side.tail - *word(AT_CQ_HEAD)) < size + to_end)
        return;
    if (size > to_end) {
        put_u32(head, to_end);
        put_u32(head + 4, 0);
        poke(side.tail, head, 8);
        side.tail += to_end;
    }
    put_u32(head, size);
    put_u32(head + 4, (uint32_t)flags << 16 | kind);
    put_u64(head + 8, stream_id);
    put_u32(head + 16, seq);
    put_u32(head + 20, len);
    put_u64(head + 24, arg);
    poke(side.tail, head, sizeof head);
    poke(side.tail + RECORD_BYTES, payload, len);
    side.tail += size;
}

static void publish(void)
{
    __atomic_store_n(word(AT_CQ_TAIL), side.tail, __ATOMIC_RELEASE);
}

static void begin_vm(void)
{
    *word(AT_VM_GENERATION) = ++side.generation;
    emit(SBX_VM_STARTED, 0, 0, 0, side.generation, NULL, 0);
    *word(AT_VM_STATE) = VM_READY;
    publish();
}

/* Any payload: pairs, a local response around pairs, or bytes; now and then with a changed byte. */
static uint32_t make_pairs(uint8_t *to, bool one)
{
    static const char *const names[] = {"a", "B", "x-drop", "x-mask", "x-hash-1", "x-presence", "x-denied", ":path",
                                        "content-length", "bad name", "", "host", "connection"};
    static const char *const values[] = {"", "1", "***", "present", "/p", " x ", "a\nb", "trailers", "200"};
    sbx_pair list[12];
    size_t count = one && !rarely(20) ? 1 : pick(12);
    for (size_t i = 0; i < count; i++) {
        const char *name = names[pick(sizeof names / sizeof *names)];
        const char *value = values[pick(sizeof values / sizeof *values)];
        list[i] = (sbx_pair){{(const uint8_t *)name, strlen(name)}, {(const uint8_t *)value, strlen(value)}};
    }
    pairs_encode((struct map){list, count}, to);
    return (uint32_t)pairs_bytes((struct map){list, count});
}

static uint32_t make_payload(uint16_t kind, uint8_t *to)
{
    uint32_t len = 0;
    if (is_map_kind(kind) || kind == SBX_PROPERTY_SET) {
        len = make_pairs(to, kind == SBX_PROPERTY_SET);
    } else if (kind == SBX_LOCAL_RESPONSE) {
        uint32_t headers = make_pairs(to + 28, false), body = pick(40);
        const uint32_t head[] = {chance(80) ? 200 + pick(400) : any(), pick(20), 4, headers, body, rarely(5) ? 7 : pick(2)};
        for (int i = 0; i < 6; i++)
            put_u32(to + 4 * i, head[i]);
        memcpy(to + 24, "why\n", 4);
        memset(to + 28 + headers, 'b', body);
        len = 28 + headers + body;
    } else {
        len = pick(chance(10) ? 9000 : 64);
        memset(to, (int)any(), len);
    }
    if (rarely(10) && len)
        to[pick(len)] ^= (uint8_t)(1u << pick(8));
    if (rarely(3))
        len = pick(16000);
    return len;
}

static uint32_t some_seq(void)
{
    sbx_event *event = side.events[pick(EVENTS)];
    return event && !rarely(10) ? event->seq : chance(80) ? side.channel->next_seq - pick(12) : any();
}

static uint64_t some_stream(void)
{
    return rarely(5) ? any() : 1 + pick((uint32_t)side.channel->next_stream_id - 1 + rarely(50));
}

static uint16_t some_kind(void)
{
    return (uint16_t)(rarely(3) ? any() : 1 + pick(16));
}

static uint16_t flags_for(uint16_t kind)
{
    uint16_t flags = rarely(10) ? FLAG_MORE : 0;
    if (is_map_kind(kind))
        flags |= chance(80) ? SBX_MODIFIED : 0;
    if (chance(30))
        flags |= SBX_END_OF_STREAM;
    return rarely(2) ? (uint16_t)any() : flags;
}

/* In one record, or in several with those of others between. */
static void emit_effect(uint16_t kind, uint16_t flags, uint64_t stream_id, uint32_t seq, uint64_t arg,
                        const uint8_t *payload, uint32_t len)
{
    if (len > 8 && chance(20)) {
        uint32_t cut = pick(len);
        emit(kind, flags | FLAG_MORE, stream_id, seq, arg, payload, cut);
        if (chance(20) && stream_id > 1)
            emit(SBX_NOTE, 0, stream_id - 1, seq, 3, NULL, 0);
        payload += cut;
        len -= cut;
    }
    emit(kind, flags, stream_id, seq, arg, payload, len);
}

static void answer_once(const sbx_event *event, bool *body)
{
    static uint8_t payload[20000];
    uint16_t kind = (uint16_t)(2 + pick(15));
    uint64_t stream_id = chance(85) || rarely(50) ? event->stream_id : some_stream();
    if (kind == SBX_VM_STARTED && !rarely(10))
        return;
    uint16_t flags = flags_for(kind);
    uint32_t len = make_payload(kind, payload);
    if (is_map_kind(kind) && !(flags & SBX_MODIFIED) && !rarely(5))
        len = 0;
    if (kind == event->kind && is_body_kind(kind) && stream_id == event->stream_id && *body && chance(50)) {
        *body = false;
        flags |= SBX_AS_SUBMITTED;
        len = 0;
    }
    if (kind >= SBX_CLEAR_ROUTE_CACHE && kind != SBX_LOG && !rarely(5))
        len = 0;
    if (kind == SBX_LOG && len > 8000 && !rarely(50))
        len = 8000;
    uint64_t arg = kind == SBX_CLOSE_STREAM && !rarely(50) ? pick(4) : pick(6);
    emit_effect(kind, flags, kind >= SBX_LOG && chance(20) ? 0 : stream_id, rarely(5) ? some_seq() : event->seq, arg,
                payload, len);
}

/* An answer as an honest VM could give it, or nearly. */
static void answer(void)
{
    sbx_event *event = side.channel->outstanding.first;
    while (event && (side.answered[event->seq % 256] == event->seq || chance(20)) && !rarely(5))
        event = event->next;
    if (!event)
        return;
    bool body = event->has_body;
    for (uint32_t i = pick(5); i; i--)
        answer_once(event, &body);
    if (chance(92)) {
        emit(COMPLETE_VERDICT, 0, event->stream_id, event->seq, (uint64_t)pick(64) << 32 | pick(5), NULL, 0);
        side.answered[event->seq % 256] = event->seq;
    }
    publish();
}

/* What a tick or a callout's answer may bring: seq 0, on a stream that is open or was. */
static void answer_nobody(void)
{
    static uint8_t payload[20000];
    uint16_t kind = (uint16_t)(2 + pick(15));
    if (kind == SBX_VM_STARTED && !rarely(10))
        return;
    uint16_t flags = flags_for(kind);
    uint32_t len = make_payload(kind, payload);
    if ((is_map_kind(kind) && !(flags & SBX_MODIFIED)) || (kind >= SBX_CLEAR_ROUTE_CACHE && kind != SBX_LOG))
        len = rarely(5) ? len : 0;
    if (is_body_kind(kind) && rarely(10))
        flags |= SBX_AS_SUBMITTED;
    if (kind == SBX_LOG && len > 8000)
        len = 8000;
    emit_effect(kind, flags, some_stream(), 0, kind == SBX_CLOSE_STREAM ? pick(4) : pick(6), payload, len);
    publish();
}

static void raw_record(void)
{
    static uint8_t payload[20000];
    uint16_t kind = some_kind();
    emit(kind, flags_for(kind), some_stream(), some_seq(), chance(50) ? pick(9) : any(), payload,
         make_payload(kind, payload));
    publish();
}

static void raw_bytes(void)
{
    uint8_t bytes[48];
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (uint8_t)(chance(60) ? 0 : any());
    if (chance(50))
        put_u32(bytes, 8 * pick(9000));
    poke(side.tail, bytes, sizeof bytes);
    side.tail += 8 * pick(8);
    publish();
}

/* A record whose head is all that there is of it. */
static void cut_record(void)
{
    uint8_t head[RECORD_BYTES] = {0};
    uint32_t len = pick(RING_BYTES / 4);
    put_u32(head, (len + RECORD_BYTES + 7) & ~7u);
    put_u32(head + 4, SBX_LOG);
    put_u32(head + 20, len);
    poke(side.tail, head, sizeof head);
    side.tail += RECORD_BYTES;
    publish();
}

static void break_a_rule(void)
{
    switch (pick(9)) {
    case 8:
        cut_record();
        break;
    case 0:
    case 1:
        raw_record();
        break;
    case 2:
        raw_bytes();
        break;
    case 3:
        __atomic_store_n(word(chance(50) ? AT_CQ_TAIL : AT_SQ_HEAD), any(), __ATOMIC_RELEASE);
        break;
    case 4: /* a whole ring of padding */
        side.tail = (side.tail + RING_BYTES - 1) & ~(RING_BYTES - 1);
        put_u32(side.shared + PAGE_BYTES + RING_BYTES, RING_BYTES);
        put_u32(side.shared + PAGE_BYTES + RING_BYTES + 4, 0);
        side.tail += RING_BYTES;
        publish();
        break;
    case 5:
        begin_vm();
        break;
    case 6: /* what only the client should write */
        *word(chance(50) ? AT_CQ_HEAD : AT_SQ_TAIL) = any();
        break;
    default:
        *word(AT_VM_STATE) = pick(5);
        *word(AT_VM_GENERATION) = pick(5);
    }
}

static void worker_turn(void)
{
    if (rarely(30)) {
        break_a_rule();
        return;
    }
    switch (pick(12)) {
    case 0:
        *word(chance(50) ? AT_VM_NEED_WAKE : AT_CLIENT_NEED_WAKE) = any();
        *word(AT_VM_WANTS_SPACE) = pick(2);
        break;
    case 1: /* the VM fails, and now and then comes back */
        if (chance(10))
            *word(AT_VM_STATE) = VM_FAILED;
        break;
    case 2:
        if (*word(AT_VM_STATE) == VM_FAILED && side.generation < 40)
            begin_vm();
        break;
    case 3:
        answer_nobody();
        break;
    default:
        if (*word(AT_VM_STATE) == VM_FAILED && chance(90))
            break;
        *word(AT_VM_STATE) = VM_READY;
        *word(AT_VM_GENERATION) = side.generation;
        if (chance(80)) /* else the ring fills up */
            __atomic_store_n(word(AT_SQ_HEAD), side.channel->ring.sq_published, __ATOMIC_RELEASE);
        answer();
    }
}

/* ---- the client ---------------------------------------------------------------------------------------------------- */

static void read_all(sbx_bytes bytes)
{
    volatile uint8_t sum = 0;
    for (size_t i = 0; i < bytes.len; i++)
        sum ^= bytes.data[i];
}

static void check_name(sbx_bytes name)
{
    if (!name.len)
        finding("an empty header name came out");
    for (size_t i = 0; i < name.len; i++)
        if (name.data[i] <= 0x20 || name.data[i] >= 0x7f || (name.data[i] >= 'A' && name.data[i] <= 'Z'))
            finding("an illegal header name came out");
    if (equal(name, LITERAL("x-denied")) || equal(name, LITERAL("connection")))
        finding("a denied header came out");
}

static void check_value(sbx_bytes value)
{
    for (size_t i = 0; i < value.len; i++)
        if (value.data[i] == '\n' || value.data[i] == 0)
            finding("an illegal header value came out");
}

static void check_changes(const sbx_changes *changes)
{
    for (size_t i = 0; i < changes->removed_count; i++)
        check_name(changes->removed[i]);
    for (size_t i = 0; i < changes->set_count; i++) {
        check_name(changes->set[i].name);
        if (!changes->set[i].count)
            finding("a name is set to nothing");
        for (size_t n = 0; n < changes->set[i].count; n++)
            check_value(changes->set[i].values[n]);
    }
    for (size_t i = 0; i < changes->added_count; i++) {
        check_name(changes->added[i].name);
        check_value(changes->added[i].value);
    }
}

static void check_effect(const sbx_effect *effect)
{
    if (effect->changes)
        check_changes(effect->changes);
    if (effect->flags & SBX_AS_SUBMITTED && effect->data.data)
        finding("bytes beside AS_SUBMITTED");
    if (!(effect->flags & SBX_AS_SUBMITTED))
        read_all(effect->data);
    if (!effect->refused && is_body_kind(effect->kind) && !(effect->flags & SBX_AS_SUBMITTED) &&
        !may_write_body(side.channel->policy))
        for (size_t i = 0; i < effect->data.len; i++)
            if (effect->data.data[i] != 'S')
                finding("the plugin's bytes went on although it may not write bodies");
    if (effect->local) {
        const sbx_local_response *local = effect->local;
        if (local->status < 200 || local->status > 599)
            finding("an illegal status came out");
        for (size_t i = 0; i < local->header_count; i++)
            check_name(local->headers[i].name);
        read_all(local->details);
        read_all(local->body);
    }
    read_all(effect->property.name);
    read_all(effect->property.value);
}

static void check_event(sbx_event *event)
{
    const sbx_verdict *verdict = sbx_event_verdict(event);
    if (!verdict)
        return;
    verdicts++;
    if (verdict->code > 4 || verdict->state > 63)
        finding("a verdict that is none came out");
    for (size_t i = 0; i < verdict->effect_count; i++) {
        if (verdict->effects[i].stream_id != event->stream_id)
            finding("an effect on another stream in a verdict");
        check_effect(&verdict->effects[i]);
    }
    for (size_t i = 0; i < verdict->notice_count; i++)
        on_notice(NULL, &verdict->notices[i]);
    for (size_t i = 0; i < verdict->refusal_count; i++)
        read_all(verdict->refusals[i].name);
}

static void drop_event(uint32_t index)
{
    if (side.events[index])
        check_event(side.events[index]);
    sbx_event_free(side.events[index]);
    side.events[index] = NULL;
}

static void submit_something(sbx_stream *stream, uint32_t index)
{
    static const char *const names[] = {"x-drop", "x-mask", "x-hash-1", "x-presence"};
    static uint8_t body[30000];
    enum sbx_kind kind = (enum sbx_kind)(2 + pick(6));
    drop_event(index);
    if (is_body_kind(kind)) {
        memset(body, 'S', sizeof body);
        sbx_bytes pieces[] = {{body, pick(200)}, {body, pick(chance(5) ? 30000 : 200)}};
        sbx_submit_body(stream, kind, pieces, pick(3), chance(30), 1, NULL, &side.events[index]);
        return;
    }
    sbx_pair headers[6] = {{LITERAL_INIT("a"), LITERAL_INIT("1")}, {LITERAL_INIT(":path"), LITERAL_INIT("/")}};
    for (int i = 2; i < 6; i++) {
        const char *name = names[pick(4)];
        headers[i] = (sbx_pair){{(const uint8_t *)name, strlen(name)}, LITERAL_INIT(SECRET)};
    }
    sbx_submit_headers(stream, kind, headers, 2 + pick(5), chance(30), 1, NULL, &side.events[index]);
}

static void client_turn(void)
{
    uint32_t s = pick(STREAMS), e = pick(EVENTS);
    sbx_pair attributes[] = {{LITERAL_INIT("source\0address"), LITERAL_INIT(SECRET)},
                             {LITERAL_INIT("request\0id"), LITERAL_INIT("7")}};
    sbx_event *next;
    switch (pick(8)) {
    case 0:
    case 1:
    case 2:
        if (!side.streams[s])
            sbx_stream_open(side.channel, attributes, 2, 1, NULL, &side.streams[s]);
        if (side.streams[s])
            submit_something(side.streams[s], e);
        break;
    case 3:
        if (side.streams[s])
            sbx_stream_close(side.streams[s], chance(50), 1);
        side.streams[s] = NULL;
        break;
    case 4:
        if (side.events[e])
            sbx_spin(side.events[e]);
        break;
    case 5:
        if (chance(30))
            drop_event(e);
        break;
    case 6:
        sbx_arm(side.channel);
        break;
    default:
        while (sbx_next(side.channel, &next) == SBX_OK)
            check_event(next);
    }
}

/* Nothing that the policy hides may stand in memory that the worker can read. */
static void check_hidden(void)
{
    if (memmem(side.shared + PAGE_BYTES, RING_BYTES, SECRET, strlen(SECRET)))
        finding("a hidden value is in the submission ring");
}

static void make_policies(void)
{
    policies[0] = make_policy(true);
    policies[1] = make_policy(false);
}

static void execute(void)
{
    for (uint32_t i = 1 + pick(6); i; i--) {
        client_turn();
        if (chance(40))
            client_turn();
        worker_turn();
    }
    sbx_event *next;
    while (sbx_next(side.channel, &next) == SBX_OK)
        check_event(next);
    if (executions++ % 64 == 0)
        check_hidden();
    if (side.channel->dead || chance(1)) {
        breaks += side.channel->dead != 0;
        check_hidden();
        close_side();
        open_side();
    }
}

/* An input means the same each time: it begins with a channel of its own. */
static void one_input(const uint8_t *data, size_t len)
{
    static const uint8_t none[1];
    input = none;
    input_left = 0;
    if (policies[0])
        close_side();
    else
        make_policies();
    input = data;
    input_left = len;
    open_side();
    while (input_left)
        execute();
}

#ifdef LIBFUZZER
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    one_input(data, len);
    return 0;
}
#else
static void replay(const char *path)
{
    static uint8_t data[65536];
    FILE *file = fopen(path, "rb");
    if (!file)
        finding(path);
    size_t left = fread(data, 1, sizeof data, file);
    fclose(file);
    one_input(data, left);
}

int main(int argc, char **argv)
{
    uint64_t runs = 1000000, seed = 1;
    int at = 1;
    for (; at + 1 < argc && strncmp(argv[at], "--", 2) == 0; at += 2) {
        if (!strcmp(argv[at], "--runs"))
            runs = strtoull(argv[at + 1], NULL, 10);
        else if (!strcmp(argv[at], "--seed"))
            seed = strtoull(argv[at + 1], NULL, 10);
        else
            finding("usage: fuzz_worker [--runs N] [--seed S] [FILE...]");
    }
    if (at < argc) {
        for (; at < argc; at++)
            replay(argv[at]);
        close_side();
        sbx_policy_release(policies[0]);
        sbx_policy_release(policies[1]);
        return 0;
    }
    state = seed * 0x9E3779B97F4A7C15u + 1;
    make_policies();
    open_side();
    for (uint64_t run = 0; run < runs; run++)
        execute();
    close_side();
    sbx_policy_release(policies[0]);
    sbx_policy_release(policies[1]);
    printf("%llu executions, %llu verdicts, %llu broken channels, %llu late effects\n", (unsigned long long)runs,
           (unsigned long long)verdicts, (unsigned long long)breaks, (unsigned long long)late);
    return 0;
}
#endif
