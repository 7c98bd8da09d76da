/* What lies in the shared region: blocks of memory, and their repair. */
#include "shared.h"

/* ---- blocks ------------------------------------------------------------------------------------------------------ */

static u32 class_for(u32 len)
{
    u32 class = 0;
    while (class < CLASSES && block_size(class) - BLOCK_HEAD < len)
        class++;
    return class;
}

static u32 pop_free(u32 class)
{
    u32 at = shared_load(AT_FREE + 4 * class), found, marked;
    if (!at)
        return 0;
    if (!block_info(at, &found, &marked) || found != class) {
        shared_store(AT_FREE + 4 * class, 0); /* somebody has written here: the list is lost */
        return 0;
    }
    shared_store(AT_FREE + 4 * class, shared_load(at + BLOCK_NEXT));
    return at;
}

static u32 fresh_block(u32 class)
{
    u32 at = shared_load(AT_HEAP_NEXT);
    if (at == 0)
        at = shared.heap_at;
    if (at < shared.heap_at || at % 16 || at > shared.bytes || block_size(class) > shared.bytes - at)
        return 0;
    shared_store(at + BLOCK_INFO, class);
    shared_store(AT_HEAP_NEXT, at + block_size(class));
    return at;
}

/* Room for `len` bytes; 0: the region is full. The block is nobody's until its place is stored somewhere. */
u32 block_alloc(u32 len)
{
    for (u32 class = class_for(len), tries = 0; class < CLASSES && tries < 3; class++, tries++) {
        u32 at = pop_free(class);
        if (!at && tries == 0)
            at = fresh_block(class);
        if (at) {
            shared_store(at + BLOCK_LEN, len);
            shared_store(at + BLOCK_NEXT, 0);
            return at;
        }
    }
    return 0;
}

void block_free(u32 at)
{
    u32 class, marked;
    if (!block_info(at, &class, &marked))
        return;
    u32 head = AT_FREE + 4 * class;
    shared_store(at + BLOCK_NEXT, shared_load(head));
    shared_store(head, at);
}

/* ---- repair ------------------------------------------------------------------------------------------------------ */

/* False: it is no block, or it has its mark already. */
static bool mark(u32 at, u32 round)
{
    u32 class, marked;
    if (!block_info(at, &class, &marked) || marked == round)
        return false;
    shared_store(at + BLOCK_INFO, class | round << MARK_SHIFT);
    return true;
}

/* Items from `head` on; the chain ends where it stops making sense. How many are too many says who puts one in: the
   queue may be that of a plugin with other limits. */
static void mend_queue(u32 queue_at, u32 round)
{
    u32 count = 0, last = 0, at = shared_load(queue_at + QUEUE_HEAD);
    mark(shared_load(queue_at + QUEUE_NAME), round);
    for (; mark(at, round); at = shared_load(at + BLOCK_NEXT)) {
        last = at;
        count++;
    }
    if (last)
        shared_store(last + BLOCK_NEXT, 0);
    else
        shared_store(queue_at + QUEUE_HEAD, 0);
    shared_store(queue_at + QUEUE_TAIL, last);
    shared_store(queue_at + QUEUE_COUNT, count);
}

/*
 * The holder before us died: no list can be trusted. Mark the blocks that belong to an entry or a queue, and make free
 * lists of all the others. Nobody else changes anything meanwhile; readers see words that stay as they are.
 */
void shared_repair(void)
{
    u32 round = (u32)(__atomic_load_n(shared_wide(AT_LOCK), __ATOMIC_RELAXED) >> 32) & (UINT32_MAX >> MARK_SHIFT);
    u32 entries = 0, end = shared_load(AT_HEAP_NEXT), class, marked;
    round = round ? round : 1;
    shared_count(COUNT_REPAIRS);
    for (u32 i = 0; i < shared.entries; i++) {
        u32 at = ENTRIES_AT + i * ENTRY_BYTES, key = shared_load(at + ENTRY_KEY);
        if (!key)
            continue;
        entries++;
        mark(key, round);
        mark(shared_load(at + ENTRY_WORD), round);
    }
    shared_store(AT_ENTRIES, entries);
    for (u32 i = 0; i < MAX_QUEUES; i++)
        if (shared_load(shared.queues_at + i * QUEUE_BYTES + QUEUE_NAME))
            mend_queue(shared.queues_at + i * QUEUE_BYTES, round);
    for (class = 0; class < CLASSES; class++)
        shared_store(AT_FREE + 4 * class, 0);
    for (u32 at = shared.heap_at; at < end && block_info(at, &class, &marked); at += block_size(class))
        if (marked != round)
            block_free(at);
}
