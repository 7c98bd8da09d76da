/*
 * The channel: records out of the submission ring, records into the completion ring.
 *
 * Both rings lie in the channel window, which the client maps as well. The client is trusted, yet everything read here
 * is checked: a bug on its side must be an error and not a wild access. Completions that find the ring full wait in a
 * queue on the heap and keep their order.
 */
#include "hostcore.h"

#define PAGE_BYTES 4096u
#define RECORD_HEADER 32u
#define PAD_HEADER 8u

/* Offsets in the header page; docs/channel.md. */
enum {
    AT_SQ_TAIL = 64,
    AT_SQ_HEAD = 128,
    AT_CQ_TAIL = 192,
    AT_CQ_HEAD = 256,
    AT_VM_NEED_WAKE = 320,
    AT_VM_WANTS_SPACE = 324,
    AT_CLIENT_NEED_WAKE = 384,
    AT_CLIENT_WANTS_SPACE = 388,
    AT_CALL_STAMP = 456,
    AT_INBOX = 460,
};

#ifdef SANDBOXD_NATIVE
u8 *channel_window;
#define WINDOW channel_window
#else
#define WINDOW ((u8 *)(16u * MIB))
#endif

struct pending {
    struct pending *next;
    u32 size;
    u8 record[];
};

STATE static struct {
    u32 bytes, mask;
    u8 *sq, *cq;
    u32 sq_head, sq_tail; /* ours, and the client's as last seen */
    u32 record_size;      /* of the record that ring_next gave out */
    u32 cq_tail, cq_published, cq_head;
    u32 records;
    bool unseen; /* published since the client was last asked whether it sleeps */
    struct pending *first, *last;
} ring;

static u32 *word(u32 offset)
{
    return (u32 *)(void *)(WINDOW + offset);
}

static u32 load(u32 offset)
{
    return __atomic_load_n(word(offset), __ATOMIC_ACQUIRE);
}

static void store(u32 offset, u32 value)
{
    __atomic_store_n(word(offset), value, __ATOMIC_RELEASE);
}

/*
 * Join the channel where it stands. A VM that follows another one skips what was submitted to the older one, the event
 * that it failed on included: VM_STARTED tells the client that all of it is lost. If nothing was ever published here,
 * no VM came so far as to announce itself, and what waits in the ring was submitted to this one.
 */
void ring_init(u32 ring_bytes, u32 generation)
{
    ring.bytes = ring_bytes;
    ring.mask = ring_bytes - 1;
    ring.sq = WINDOW + PAGE_BYTES;
    ring.cq = ring.sq + ring_bytes;
    ring.cq_tail = ring.cq_published = load(AT_CQ_TAIL) & ~7u;
    ring.cq_head = ring.cq_tail - ring_bytes; /* as if full: the first use looks at the client's counter and checks it */
    ring.sq_tail = load(AT_SQ_TAIL);
    ring.sq_head = (generation > 1 && ring.cq_tail != 0 ? ring.sq_tail : load(AT_SQ_HEAD)) & ~7u;
    ring.record_size = 0;
    ring.unseen = true;
    ring.first = ring.last = NULL;
    store(AT_SQ_HEAD, ring.sq_head);
    store(AT_VM_NEED_WAKE, 0);
    store(AT_VM_WANTS_SPACE, 0);
    if (load(AT_CALL_STAMP) & 1) /* the older VM ended inside a callback */
        ring_stamp();
}

/* ---- submissions ------------------------------------------------------------------------------------------------- */

static bool decode(struct record *record, const u8 *at, u32 available)
{
    if (available < RECORD_HEADER)
        return false;
    u32 size = load_u32(at), payload_len = load_u32(at + 20);
    if (size < RECORD_HEADER || size % 8 || size > available || size > ring.bytes / 4)
        return false;
    if (payload_len > size - RECORD_HEADER || size - RECORD_HEADER - payload_len > 7)
        return false;
    u32 kind_flags = load_u32(at + 4);
    *record = (struct record){
        .kind = (u16)kind_flags,
        .flags = (u16)(kind_flags >> 16),
        .stream_id = load_u64(at + 8),
        .event_seq = load_u32(at + 16),
        .arg = load_u64(at + 24),
        .payload = {at + RECORD_HEADER, payload_len},
    };
    ring.record_size = size;
    return true;
}

enum ring_state ring_next(struct record *record)
{
    for (;;) {
        if (ring.sq_head == ring.sq_tail) {
            ring.sq_tail = load(AT_SQ_TAIL);
            if (ring.sq_head == ring.sq_tail)
                return RING_EMPTY;
            if (ring.sq_tail - ring.sq_head > ring.bytes || ring.sq_tail % 8)
                return RING_BROKEN;
        }
        u32 offset = ring.sq_head & ring.mask, to_end = ring.bytes - offset;
        u32 available = ring.sq_tail - ring.sq_head;
        const u8 *at = ring.sq + offset;
        if (available > to_end)
            available = to_end;
        if ((u16)load_u32(at + 4) != RECORD_PAD)
            return decode(record, at, available) ? RING_RECORD : RING_BROKEN;
        if (load_u32(at) != to_end || available < to_end)
            return RING_BROKEN;
        ring.record_size = to_end;
        ring_done();
    }
}

void ring_done(void)
{
    ring.sq_head += ring.record_size;
    store(AT_SQ_HEAD, ring.sq_head);
}

/* ---- completions ------------------------------------------------------------------------------------------------- */

u32 ring_max_payload(void)
{
    return ring.bytes / 4 - RECORD_HEADER;
}

static bool room_for(u32 bytes)
{
    if (bytes <= ring.bytes - (ring.cq_tail - ring.cq_head))
        return true;
    u32 head = load(AT_CQ_HEAD);
    if (ring.cq_tail - head > ring.bytes || head % 8)
        violate(VIOLATION_CHANNEL);
    ring.cq_head = head;
    return bytes <= ring.bytes - (ring.cq_tail - ring.cq_head);
}

/* Place for `size` bytes in the ring, after a PAD if they do not fit before its end; NULL if it is full. */
static u8 *claim(u32 size)
{
    u32 offset = ring.cq_tail & ring.mask, to_end = ring.bytes - offset;
    u32 pad = size > to_end ? to_end : 0;
    if (!room_for(pad + size))
        return NULL;
    if (pad) {
        store_u32(ring.cq + offset, pad);
        store_u32(ring.cq + offset + 4, RECORD_PAD);
        offset = 0;
    }
    ring.cq_tail += pad + size;
    return ring.cq + offset;
}

static u8 *queue(u32 size)
{
    struct pending *pending = heap_alloc((u32)sizeof *pending + size);
    if (!pending)
        violate(VIOLATION_HEAP);
    pending->next = NULL;
    pending->size = size;
    if (ring.last)
        ring.last->next = pending;
    else
        ring.first = pending;
    ring.last = pending;
    return pending->record;
}

bool ring_flush(void)
{
    while (ring.first) {
        struct pending *pending = ring.first;
        u8 *at = claim(pending->size);
        if (!at)
            break;
        memcpy(at, pending->record, pending->size);
        ring.first = pending->next;
        if (!ring.first)
            ring.last = NULL;
        heap_free(pending);
    }
    ring_publish();
    return !ring.first;
}

u8 *ring_put(u16 kind, u16 flags, u64 stream_id, u64 arg, u32 payload_len)
{
    u32 size = RECORD_HEADER + ((payload_len + 7) & ~7u);
    u8 *at = ring.first ? NULL : claim(size);
    if (UNLIKELY(!at))
        at = queue(size);
    if (payload_len % 8)
        store_u64(at + size - 8, 0);
    ring.records++;
    store_u32(at, size);
    store_u32(at + 4, (u32)flags << 16 | kind);
    store_u64(at + 8, stream_id);
    store_u32(at + 16, vm.event_seq);
    store_u32(at + 20, payload_len);
    store_u64(at + 24, arg);
    return at + RECORD_HEADER;
}

void ring_put_bytes(u16 kind, u16 flags, u64 stream_id, u64 arg, struct bytes payload)
{
    u32 most = ring_max_payload();
    while (payload.len > most) {
        memcpy(ring_put(kind, flags | RECORD_MORE, stream_id, arg, most), payload.at, most);
        payload.at += most;
        payload.len -= most;
    }
    u8 *at = ring_put(kind, flags, stream_id, arg, payload.len);
    if (payload.len)
        memcpy(at, payload.at, payload.len);
}

void ring_publish(void)
{
    if (ring.cq_tail == ring.cq_published)
        return;
    store(AT_CQ_TAIL, ring.cq_tail);
    ring.cq_published = ring.cq_tail;
    ring.unseen = true;
}

/* ---- sleeping and waking ----------------------------------------------------------------------------------------- */

bool ring_client_sleeps(void)
{
    if (!ring.unseen && !load(AT_CLIENT_WANTS_SPACE))
        return false;
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    ring.unseen = false;
    return load(AT_CLIENT_NEED_WAKE) && __atomic_exchange_n(word(AT_CLIENT_NEED_WAKE), 0, __ATOMIC_SEQ_CST);
}

bool ring_prepare_sleep(bool wants_space)
{
    store(AT_VM_WANTS_SPACE, wants_space);
    __atomic_store_n(word(AT_VM_NEED_WAKE), 1, __ATOMIC_SEQ_CST);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    bool came = wants_space ? load(AT_CQ_HEAD) != ring.cq_head : load(AT_SQ_TAIL) != ring.sq_head;
    if (came)
        ring_awake();
    return !came;
}

void ring_awake(void)
{
    store(AT_VM_NEED_WAKE, 0);
    store(AT_VM_WANTS_SPACE, 0);
}

void ring_stamp(void)
{
    __atomic_store_n(word(AT_CALL_STAMP), load(AT_CALL_STAMP) + 1, __ATOMIC_RELEASE);
}

bool ring_inbox(void)
{
    return load(AT_INBOX);
}

u32 ring_records(void)
{
    return ring.records;
}
