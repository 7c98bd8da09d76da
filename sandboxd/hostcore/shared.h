/* The region that a tenant's VMs share: shared data (shared.c) and queues (queues.c). Layout: docs/hostcore.md. */
#ifndef SANDBOXD_SHARED_H
#define SANDBOXD_SHARED_H

#include "hostcore.h"

#define DEAD_OWNER UINT32_MAX
#define ENTRIES_AT 4096u
#define ENTRY_SHARE 512u /* one entry for so many bytes of the region */
#define MAX_QUEUES 64u
#define MAX_NAME_BYTES 1024u   /* a key, or a queue's name */
#define MAX_VALUE_BYTES (64u * KIB - BLOCK_HEAD)
#define CLASSES 12u            /* blocks of 32 bytes to 64 KiB */
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

u32 *shared_word(u32 at);
u32 shared_load(u32 at);
void shared_store(u32 at, u32 value);
void shared_count(enum shared_counter counter);
bool shared_lock(void); /* false: give up */
bool shared_locked(void);
void shared_unlock(void);
u32 block_alloc(u32 len); /* 0: full; under the lock, as block_free */
u8 *block_bytes(u32 at);  /* of a block that block_alloc has just given */
bool block_data(u32 at, struct bytes *data);
void block_free(u32 at);
u32 name_hash(struct bytes scope, struct bytes name);
bool name_is(u32 at, struct bytes scope, struct bytes name);
u32 name_put(struct bytes scope, struct bytes name);

#endif
