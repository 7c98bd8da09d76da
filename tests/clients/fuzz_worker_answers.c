/* The worker: answers as an honest VM gives them, and all that none would. */
#include "fuzz_worker.h"

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

void begin_vm(void)
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
    return (uint16_t)(rarely(3) ? any() : 1 + pick(18));
}

/* An effect or a notice that a stream can have, mostly. */
static uint16_t fitting_kind(uint64_t stream_id)
{
    static const uint16_t of_connections[] = {SBX_DOWNSTREAM_DATA, SBX_UPSTREAM_DATA, SBX_PROPERTY_SET, SBX_LOG, SBX_NOTE};
    const sbx_stream *stream = sbx_stream_find(side.channel, stream_id);
    if (stream && stream->tcp && !rarely(5))
        return chance(3) ? SBX_CLOSE_STREAM : of_connections[pick(5)];
    return (uint16_t)(2 + pick(rarely(5) ? 17 : 15));
}

static uint16_t flags_for(uint16_t kind)
{
    uint16_t flags = rarely(10) ? FLAG_MORE : 0;
    if (is_map_kind(kind))
        flags |= chance(80) ? SBX_MODIFIED : 0;
    if (chance(is_data_kind(kind) ? 3 : 30))
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
    uint64_t stream_id = chance(85) || rarely(50) ? event->stream_id : some_stream();
    uint16_t kind = fitting_kind(stream_id);
    if (kind == SBX_VM_STARTED && !rarely(10))
        return;
    uint16_t flags = flags_for(kind);
    uint32_t len = make_payload(kind, payload);
    if (is_map_kind(kind) && !(flags & SBX_MODIFIED) && !rarely(5))
        len = 0;
    if (kind == event->kind && (is_body_kind(kind) || is_data_kind(kind)) && stream_id == event->stream_id && *body && chance(50)) {
        *body = false;
        flags |= SBX_AS_SUBMITTED;
        len = 0;
    }
    if (kind >= SBX_CLEAR_ROUTE_CACHE && kind != SBX_LOG && !is_data_kind(kind) && !rarely(5))
        len = 0;
    if (kind == SBX_LOG && len > 8000 && !rarely(50))
        len = 8000;
    uint64_t arg = kind == SBX_CLOSE_STREAM && !rarely(50) ? pick(4) : pick(6);
    if (kind == SBX_NOTE && chance(50)) {
        static const char hidden[] = HIDDEN_PROPERTY;
        arg = SBX_PROPERTY_MISSING;
        len = chance(50) ? sizeof hidden - 1 : pick(260);
        memcpy(payload, hidden, sizeof hidden - 1);
    }
    emit_effect(kind, flags, !is_effect_kind(kind) && chance(20) ? 0 : stream_id, rarely(5) ? some_seq() : event->seq, arg,
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
        uint32_t code = event->connection && !chance(5) ? 0 : pick(5); /* any other ends a connection */
        emit(COMPLETE_VERDICT, 0, event->stream_id, event->seq, (uint64_t)pick(64) << 32 | code, NULL, 0);
        side.answered[event->seq % 256] = event->seq;
    }
    publish();
}

/* What a tick or a callout's answer may bring: seq 0, on a stream that is open or was. */
static void answer_nobody(void)
{
    static uint8_t payload[20000];
    uint64_t stream_id = some_stream();
    uint16_t kind = fitting_kind(stream_id);
    if (kind == SBX_VM_STARTED && !rarely(10))
        return;
    uint16_t flags = flags_for(kind);
    uint32_t len = make_payload(kind, payload);
    if ((is_map_kind(kind) && !(flags & SBX_MODIFIED)) || (kind >= SBX_CLEAR_ROUTE_CACHE && kind != SBX_LOG && !is_data_kind(kind)))
        len = rarely(5) ? len : 0;
    if ((is_body_kind(kind) || is_data_kind(kind)) && rarely(10))
        flags |= SBX_AS_SUBMITTED;
    if (kind == SBX_LOG && len > 8000)
        len = 8000;
    emit_effect(kind, flags, stream_id, 0, kind == SBX_CLOSE_STREAM ? pick(4) : pick(6), payload, len);
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

void worker_turn(void)
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
