/* The two rings of a channel. */
#ifndef SBX_RING_H
#define SBX_RING_H

#include "layout.h"

/* Between any two steps of the sleeping handshake; tests put a pause here. */
#ifndef SBX_STEP
#define SBX_STEP() ((void)0)
#endif

/* After a copy out of shared memory; tests overwrite what was copied, so that a second look at it shows. */
#ifndef SBX_COPIED
#define SBX_COPIED(shared, len) ((void)0)
#endif

struct backlog {
    struct backlog *next;
    struct record record;
    const uint8_t *payload;
    uint8_t *owned; /* freed with this record: the block that all fragments of a payload lie in */
};

struct ring {
    uint8_t *shared; /* the whole file */
    size_t shared_bytes;
    uint8_t *sq, *cq;
    uint32_t bytes, mask;
    uint32_t sq_tail, sq_published, sq_free;
    uint32_t cq_head;
    uint32_t uncalled, may_wait; /* submissions that the VM, should it sleep, was not woken for; how many may be */
    bool armed; /* need_wake may be 1 */
    int vm_event_fd, client_event_fd;
    struct backlog *first, *last;
    uint64_t backlog_bytes, max_backlog_bytes;
};

int ring_map(struct ring *ring, const sbx_descriptors *descriptors, sbx_error *error);
void ring_unmap(struct ring *ring);

static inline uint32_t *ring_word(const struct ring *ring, uint32_t offset)
{
    return (uint32_t *)(void *)(ring->shared + offset);
}

static inline uint32_t ring_load(const struct ring *ring, uint32_t offset)
{
    return __atomic_load_n(ring_word(ring, offset), __ATOMIC_ACQUIRE);
}

static inline void ring_store(const struct ring *ring, uint32_t offset, uint32_t value)
{
    __atomic_store_n(ring_word(ring, offset), value, __ATOMIC_RELEASE);
}

static inline uint32_t max_payload(const struct ring *ring)
{
    return ring->bytes / 4 - RECORD_BYTES;
}

/* Writes a record's head and returns where `record->payload_len` bytes go. *at NULL: no room. SBX_OK or SBX_BROKEN. */
int ring_reserve(struct ring *ring, const struct record *record, uint8_t **at);
void ring_flush(struct ring *ring); /* shows the VM what was written, and wakes it if enough of that waits */
void ring_call(struct ring *ring);  /* wakes it if anything does */

/* backlog.c */

/* SBX_FULL: the backlog would grow past its bound. `always`: whatever it is. Takes `payload`, a heap block or NULL, also
   when it fails. */
int ring_queue(struct ring *ring, const struct record *record, uint8_t *payload, bool always);
int ring_pump(struct ring *ring); /* the backlog into the ring; SBX_OK or SBX_BROKEN */
void ring_drop_backlog(struct ring *ring);

static inline bool ring_has_records(const struct ring *ring)
{
    return ring_load(ring, AT_CQ_TAIL) != ring->cq_head;
}

enum ring_next { RING_EMPTY, RING_RECORD, RING_BROKEN };

struct reader {
    uint32_t head, tail;
};

/* Reads the VM's counter once. False: it cannot be. */
bool ring_begin(const struct ring *ring, struct reader *reader);
/* The next record; its head is a copy, its payload is still in shared memory at *payload: use ring_copy. */
enum ring_next ring_next(const struct ring *ring, struct reader *reader, struct record *record,
                         const uint8_t **payload);
void ring_end(struct ring *ring, const struct reader *reader); /* frees the room and wakes a VM that waits for it */
void ring_copy(void *to, const uint8_t *shared, size_t len);

/* SBX_AGAIN: there is work, do not sleep. SBX_BROKEN. */
int ring_prepare_sleep(struct ring *ring);
void ring_awake(struct ring *ring);
void ring_clear_event(const struct ring *ring);
void ring_raise_event(const struct ring *ring); /* as if the VM had */

#endif
