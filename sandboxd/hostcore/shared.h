/*
 * The region that a tenant's VMs share (shared.c, shared_blocks.c): shared data (shared_data.c) and queues (queues.c).
 * Layout: docs/hostcore.md.
 */
#ifndef SANDBOXD_SHARED_H
#define SANDBOXD_SHARED_H

#include "hostcore.h"

#ifdef SANDBOXD_NATIVE
extern u8 *shared_window;
#define REGION shared_window
#else
#define REGION ((u8 *)(160u * MIB))
#endif

/* Offsets in the region's first page; docs/hostcore.md. */
enum {
    AT_LOCK = 64,       /* u64: owner, stamp */
    AT_CAS = 128,       /* the last number given to a value */
    AT_HEAP_NEXT = 132, /* heap before this has blocks */
    AT_ENTRIES = 136,
    AT_FREE = 144,      /* first free block of each class */
    AT_COUNTERS = 256,
};

#define DEAD_OWNER UINT32_MAX
#define ENTRIES_AT 4096u
#define ENTRY_SHARE 512u /* one entry for so many bytes of the region */
#define MAX_QUEUES 64u
#define MAX_NAME_BYTES 1024u   /* a key, or a queue's name */
#define MAX_VALUE_BYTES (64u * KIB - BLOCK_HEAD)
#define CLASSES 12u            /* blocks of 32 bytes to 64 KiB */
#define FIRST_BLOCK_SHIFT 5    /* 32 bytes */
#define CLASS_MASK 0xffu
#define MARK_SHIFT 8

enum { ENTRY_WORD = 0 /* u64: value's place, number */, ENTRY_KEY = 8, ENTRY_HASH = 12, ENTRY_BYTES = 16 };
enum { BLOCK_INFO = 0 /* class, mark */, BLOCK_LEN = 4, BLOCK_NEXT = 8, BLOCK_HEAD = 16 };
enum {
    QUEUE_NAME = 0, /* 0: this queue does not exist */
    QUEUE_HEAD = 4,
    QUEUE_TAIL = 8,
    QUEUE_COUNT = 12,
    QUEUE_ENQUEUED = 16, /* items ever, modulo 2^32 */
    QUEUE_CONSUMER = 20, /* number of the VM that is told; 0: none */
    QUEUE_BYTES = 32,
};

enum shared_counter {
    COUNT_SETS,
    COUNT_CAS_MISMATCHES,
    COUNT_FULL,
    COUNT_REPAIRS,
    COUNT_LOCK_WAITS,
    COUNT_ENQUEUED,
    COUNT_QUEUE_FULL,
};

extern struct shared {
    u32 bytes; /* 0: this VM has no region */
    u32 entries, queues_at, heap_at;
    u32 me;
} shared;

static inline u32 *shared_word(u32 at)
{
    return (u32 *)(void *)(REGION + at);
}

static inline u64 *shared_wide(u32 at)
{
    return (u64 *)(void *)(REGION + at);
}

static inline u32 shared_load(u32 at)
{
    return __atomic_load_n(shared_word(at), __ATOMIC_ACQUIRE);
}

static inline void shared_store(u32 at, u32 value)
{
    __atomic_store_n(shared_word(at), value, __ATOMIC_RELEASE);
}

static inline void shared_count(enum shared_counter counter)
{
    __atomic_fetch_add(shared_word(AT_COUNTERS + 4 * counter), 1, __ATOMIC_RELAXED);
}

static inline u32 block_size(u32 class)
{
    return 1u << (FIRST_BLOCK_SHIFT + class);
}

/* The block's class and mark; false: there is no block at this place. */
static inline bool block_info(u32 at, u32 *class, u32 *marked)
{
    if (at < shared.heap_at || at % 16 || at > shared.bytes - BLOCK_HEAD)
        return false;
    u32 info = shared_load(at + BLOCK_INFO);
    *class = info & CLASS_MASK;
    *marked = info >> MARK_SHIFT;
    return *class < CLASSES && block_size(*class) <= shared.bytes - at;
}

/* The data of a block; false: there is no block, or it says that it is longer than it is. */
static inline bool block_data(u32 at, struct bytes *data)
{
    u32 class, marked;
    if (!block_info(at, &class, &marked))
        return false;
    u32 len = shared_load(at + BLOCK_LEN);
    *data = (struct bytes){REGION + at + BLOCK_HEAD, len};
    return len <= block_size(class) - BLOCK_HEAD;
}

/* Of a block that block_alloc has just given. */
static inline u8 *block_bytes(u32 at)
{
    return REGION + at + BLOCK_HEAD;
}

/* shared.c */
bool shared_lock(void); /* false: give up */
bool shared_locked(void);
void shared_unlock(void);

/* shared_blocks.c */
u32 block_alloc(u32 len); /* 0: full; under the lock, as block_free */
void block_free(u32 at);
void shared_repair(void); /* by who has taken the lock from a dead holder */

/* shared_data.c; a name is that of a key or a queue */
u32 name_hash(struct bytes scope, struct bytes name);
bool name_is(u32 at, struct bytes scope, struct bytes name);
u32 name_put(struct bytes scope, struct bytes name);

#endif
