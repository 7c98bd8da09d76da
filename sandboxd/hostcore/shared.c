/*
 * Shared data and shared queues: one region of memory that all VMs of a tenant map, in all of its workers.
 *
 * The region is the tenant's own, and so is whatever goes wrong in it. Another VM of the tenant may write anything there
 * at any time, so every offset is checked before it is used and every length is read once; an honest VM among honest
 * VMs gets exact results.
 *
 * Reading takes no lock: an entry's word holds the place of its value and its compare-and-swap number, the value never
 * changes where it lies, and the reader looks at the word again after it has copied. Keys are never removed (the ABI has
 * no way to), so looking one up needs no lock either. Changing takes the region's lock, does all its work in fresh
 * blocks, and shows it by one store. A holder that dies half way leaves everything as it was before or after that store,
 * and blocks that belong to nobody: who takes the lock from the dead one counts the living blocks anew (`shared_repair`).
 */
#include "shared.h"

#ifdef SANDBOXD_NATIVE
u8 *shared_window;
#endif

IMPORT(host, clock_ns) i64 host_clock_ns(i32 clock_id);

#define SPINS 200u
#define NAPS 100000u              /* looks at a lock that is taken, each after a nap */
#define GIVE_UP_NS 1000000000ll   /* longest wait for the lock */
#define DEAD_AFTER_NS 400000000ll /* a holder that has not moved for so long will not any more */
#define CLOCK_NAP 2               /* host.clock_ns: sleep a little, then the monotonic clock */

STATE struct shared shared;

/* Everything about the region follows from its size, which nobody in it can change. */
void shared_start(void)
{
    u32 bytes = vm.config.shared_bytes, entries = 64;
    if (!bytes)
        return;
    while (entries * 2 <= bytes / ENTRY_SHARE)
        entries *= 2;
    shared.bytes = bytes;
    shared.entries = entries;
    shared.queues_at = ENTRIES_AT + entries * ENTRY_BYTES;
    shared.heap_at = shared.queues_at + MAX_QUEUES * QUEUE_BYTES;
    shared.me = vm.config.vm_number;
}

/* ---- the lock ---------------------------------------------------------------------------------------------------- */

static bool take(u64 seen)
{
    u64 mine = (u64)((u32)(seen >> 32) + 1) << 32 | shared.me;
    return __atomic_compare_exchange_n(shared_wide(AT_LOCK), &seen, mine, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED);
}

/* The holder sleeps while others want the lock: wait off the CPU, and take the lock from one that never comes back. */
static bool take_slowly(void)
{
    u64 seen = 0;
    i64 since_ns = 0, began_ns = 0;
    shared_count(COUNT_LOCK_WAITS);
    for (u32 naps = 0; naps < NAPS; naps++) {
        u64 now = __atomic_load_n(shared_wide(AT_LOCK), __ATOMIC_ACQUIRE);
        u32 owner = (u32)now;
        i64 now_ns = host_clock_ns(CLOCK_NAP);
        if (now != seen || !since_ns) {
            seen = now;
            since_ns = now_ns;
        }
        began_ns = began_ns ? began_ns : now_ns;
        if (now_ns - began_ns > GIVE_UP_NS)
            return false;
        if (owner == 0 && take(now))
            return true;
        if ((owner == DEAD_OWNER || (owner && now_ns - since_ns > DEAD_AFTER_NS)) && take(now)) {
            shared_repair();
            return true;
        }
    }
    return false;
}

/* False: the tenant's other VMs never let go. */
bool shared_lock(void)
{
    for (u32 spins = 0; spins < SPINS; spins++) {
        u64 now = __atomic_load_n(shared_wide(AT_LOCK), __ATOMIC_RELAXED);
        if ((u32)now == 0 && take(now))
            return true;
        if ((u32)now == DEAD_OWNER)
            break;
    }
    return take_slowly();
}

/* Somebody may have taken the lock for dead; what was prepared must then not be shown. */
bool shared_locked(void)
{
    return shared_load(AT_LOCK) == shared.me;
}

void shared_unlock(void)
{
    if (shared_locked())
        shared_store(AT_LOCK, 0);
}
