/*
 * The two rings of a channel.
 *
 * The other side is hostile and writes while we read. So counters are read once per decision, and whatever is looked at
 * was copied before: ring_copy keeps the compiler from reading shared memory a second time.
 */
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

/* ---- the file ---------------------------------------------------------------------------------------------------- */

int ring_map(struct ring *ring, const sbx_descriptors *descriptors, sbx_error *error)
{
    uint32_t bytes = descriptors->ring_bytes;
    struct stat status;
    *ring = (struct ring){.vm_event_fd = descriptors->vm_event_fd, .client_event_fd = descriptors->client_event_fd};
    if (bytes < MIN_RING_BYTES || bytes > MAX_RING_BYTES || bytes & (bytes - 1))
        return fail(error, SBX_PROTOCOL, "rings of %u bytes", bytes);
    if (fstat(descriptors->memfd, &status) < 0)
        return fail_errno(error, "fstat of the channel");
    size_t size = PAGE_BYTES + 2 * (size_t)bytes;
    if (status.st_size != (off_t)size)
        return fail(error, SBX_PROTOCOL, "channel of another size than rings of %u bytes make", bytes);
    int seals = fcntl(descriptors->memfd, F_GET_SEALS);
    if (seals < 0 || (seals & SEALS) != SEALS) /* else the worker could cut it under us */
        return fail(error, SBX_PROTOCOL, "channel is not sealed against a change of its size");
    void *shared = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, descriptors->memfd, 0);
    if (shared == MAP_FAILED)
        return fail_errno(error, "mmap of the channel");
    ring->shared = shared;
    ring->shared_bytes = size;
    ring->bytes = bytes;
    ring->mask = bytes - 1;
    ring->sq = ring->shared + PAGE_BYTES;
    ring->cq = ring->sq + bytes;
    if (ring_load(ring, AT_MAGIC) != CHANNEL_MAGIC || ring_load(ring, AT_VERSION) != CHANNEL_VERSION ||
        ring_load(ring, AT_RING_BYTES) != bytes) {
        ring_unmap(ring);
        return fail(error, SBX_PROTOCOL, "channel has another header than was announced");
    }
    ring->sq_tail = ring->sq_published = ring_load(ring, AT_SQ_TAIL);
    ring->cq_head = ring_load(ring, AT_CQ_HEAD);
    if (ring->sq_tail % 8 || ring->cq_head % 8) { /* ours, but the worker can write them too */
        ring_unmap(ring);
        return fail(error, SBX_PROTOCOL, "channel's positions are no multiples of 8");
    }
    ring->max_backlog_bytes = descriptors->max_backlog_bytes ? descriptors->max_backlog_bytes : 16 * MIB;
    return SBX_OK;
}

void ring_unmap(struct ring *ring)
{
    ring_drop_backlog(ring);
    if (ring->shared)
        munmap(ring->shared, ring->shared_bytes);
    ring->shared = NULL;
}

/* ---- submissions ------------------------------------------------------------------------------------------------- */

/* Looks how far the VM is. False: it claims what cannot be. */
static bool look(struct ring *ring)
{
    uint32_t head = ring_load(ring, AT_SQ_HEAD), used = ring->sq_tail - head;
    if (used > ring->bytes || head % 8)
        return false;
    ring->sq_free = ring->bytes - used;
    return true;
}

static uint32_t record_size(uint32_t payload_len)
{
    return (payload_len + RECORD_BYTES + 7) & ~7u;
}

/* Bytes that a record takes now, a PAD before it included. */
static uint32_t room_needed(const struct ring *ring, uint32_t payload_len)
{
    uint32_t size = record_size(payload_len), to_end = ring->bytes - (ring->sq_tail & ring->mask);
    return size <= to_end ? size : to_end + size;
}

static void put_head(uint8_t *at, const struct record *record)
{
    put_u32(at, record_size(record->payload_len));
    put_u32(at + 4, (uint32_t)record->flags << 16 | record->kind);
    put_u64(at + 8, record->stream_id);
    put_u32(at + 16, record->event_seq);
    put_u32(at + 20, record->payload_len);
    put_u64(at + 24, record->arg);
}

int ring_reserve(struct ring *ring, const struct record *record, uint8_t **at)
{
    uint32_t need = room_needed(ring, record->payload_len);
    *at = NULL;
    if (need > ring->sq_free) {
        if (!look(ring))
            return SBX_BROKEN;
        if (need > ring->sq_free)
            return SBX_OK;
    }
    uint32_t position = ring->sq_tail & ring->mask, to_end = ring->bytes - position;
    if (record_size(record->payload_len) > to_end) {
        put_u32(ring->sq + position, to_end);
        put_u32(ring->sq + position + 4, KIND_PAD);
        position = 0;
    }
    put_head(ring->sq + position, record);
    ring->sq_free -= need;
    ring->sq_tail += need;
    *at = ring->sq + position + RECORD_BYTES;
    return SBX_OK;
}

/* ---- waking ------------------------------------------------------------------------------------------------------ */

static void fence(void)
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

/* After a fence that follows what the VM is to see. */
static void wake_vm(const struct ring *ring)
{
    static const uint64_t one = 1;
    SBX_STEP();
    if (!ring_load(ring, AT_VM_NEED_WAKE))
        return;
    SBX_STEP();
    if (!__atomic_exchange_n(ring_word(ring, AT_VM_NEED_WAKE), 0, __ATOMIC_SEQ_CST))
        return;
    SBX_STEP();
    while (write(ring->vm_event_fd, &one, sizeof one) < 0 && errno == EINTR)
        ; /* EAGAIN: its count is full, so it is raised */
}

void ring_flush(struct ring *ring)
{
    if (ring->sq_tail == ring->sq_published)
        return;
    SBX_STEP();
    ring_store(ring, AT_SQ_TAIL, ring->sq_tail);
    ring->sq_published = ring->sq_tail;
    if (++ring->uncalled > ring->may_wait)
        ring_call(ring);
}

void ring_call(struct ring *ring)
{
    if (!ring->uncalled)
        return;
    ring->uncalled = 0;
    SBX_STEP();
    fence();
    wake_vm(ring);
}

int ring_prepare_sleep(struct ring *ring)
{
    ring_call(ring);
    ring->armed = true;
    __atomic_store_n(ring_word(ring, AT_CLIENT_NEED_WAKE), 1, __ATOMIC_SEQ_CST);
    SBX_STEP();
    fence();
    SBX_STEP();
    bool work = ring_has_records(ring);
    if (!work && ring->first) {
        if (!look(ring)) {
            ring_awake(ring);
            return SBX_BROKEN;
        }
        work = room_needed(ring, ring->first->record.payload_len) <= ring->sq_free;
    }
    if (!work)
        return SBX_OK;
    ring_awake(ring);
    return SBX_AGAIN;
}

void ring_awake(struct ring *ring)
{
    if (!ring->armed) /* a store for nothing would take the cache line from the VM */
        return;
    ring->armed = false;
    ring_store(ring, AT_CLIENT_NEED_WAKE, 0);
}

void ring_clear_event(const struct ring *ring)
{
    uint64_t count;
    while (read(ring->client_event_fd, &count, sizeof count) < 0 && errno == EINTR)
        ; /* EAGAIN: it was not raised */
}

void ring_raise_event(const struct ring *ring)
{
    static const uint64_t one = 1;
    while (write(ring->client_event_fd, &one, sizeof one) < 0 && errno == EINTR)
        ;
}

/* ---- completions ------------------------------------------------------------------------------------------------- */

void ring_copy(void *to, const uint8_t *shared, size_t len)
{
    memcpy(to, shared, len);
    /* From here on the compiler has to take shared memory for changed, so it cannot go back to it for `to`. */
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    SBX_COPIED(shared, len);
}

bool ring_begin(const struct ring *ring, struct reader *reader)
{
    *reader = (struct reader){ring->cq_head, ring_load(ring, AT_CQ_TAIL)};
    return reader->tail - reader->head <= ring->bytes && reader->tail % 8 == 0;
}

/* A PAD has to reach exactly to the ring's end, and all of it has to be published. None is as large as a record may be. */
static bool skip_pad(const struct ring *ring, const uint8_t *head, struct reader *reader, uint32_t left, uint32_t to_end)
{
    if (get_u16(head + 4) != KIND_PAD || get_u32(head) != left || left != to_end || left >= ring->bytes / 4)
        return false;
    reader->head += left;
    return true;
}

enum ring_next ring_next(const struct ring *ring, struct reader *reader, struct record *record, const uint8_t **payload)
{
    while (reader->head != reader->tail) {
        uint8_t head[RECORD_BYTES];
        uint32_t position = reader->head & ring->mask, to_end = ring->bytes - position;
        uint32_t published = reader->tail - reader->head, left = published < to_end ? published : to_end;
        /* Positions are multiples of 8, so `left` is at least 8: enough for a PAD. */
        ring_copy(head, ring->cq + position, left < RECORD_BYTES ? 8 : RECORD_BYTES);
        if (left < RECORD_BYTES || get_u16(head + 4) == KIND_PAD) {
            if (!skip_pad(ring, head, reader, left, to_end))
                return RING_BROKEN;
            continue;
        }
        uint32_t size = get_u32(head), payload_len = get_u32(head + 20);
        if (size > ring->bytes / 4 || size > left || size != (((uint64_t)payload_len + RECORD_BYTES + 7) & ~7ull))
            return RING_BROKEN;
        *record = (struct record){
            .kind = get_u16(head + 4),
            .flags = get_u16(head + 6),
            .event_seq = get_u32(head + 16),
            .payload_len = payload_len,
            .stream_id = get_u64(head + 8),
            .arg = get_u64(head + 24),
        };
        *payload = ring->cq + position + RECORD_BYTES;
        reader->head += size;
        return RING_RECORD;
    }
    return RING_EMPTY;
}

void ring_end(struct ring *ring, const struct reader *reader)
{
    if (reader->head == ring->cq_head)
        return;
    ring->cq_head = reader->head;
    ring_store(ring, AT_CQ_HEAD, reader->head);
    SBX_STEP();
    fence();
    SBX_STEP();
    if (ring_load(ring, AT_VM_WANTS_SPACE))
        wake_vm(ring);
}
