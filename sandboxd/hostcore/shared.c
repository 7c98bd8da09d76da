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
 * and blocks that belong to nobody: who takes the lock from the dead one counts the living blocks anew (`repair`).
 */
#include "remote.h"
#include "shared.h"

#ifdef SANDBOXD_NATIVE
u8 *shared_window;
#define REGION shared_window
#else
#define REGION ((u8 *)(160u * MIB))
#endif

IMPORT(host, clock_ns) i64 host_clock_ns(i32 clock_id);

/* Offsets in the region's first page; docs/hostcore.md. */
enum {
    AT_LOCK = 64,       /* u64: owner, stamp */
    AT_CAS = 128,       /* the last number given to a value */
    AT_HEAP_NEXT = 132, /* heap before this has blocks */
    AT_ENTRIES = 136,
    AT_FREE = 144,      /* first free block of each class */
    AT_COUNTERS = 256,
};

#define FIRST_BLOCK_SHIFT 5 /* 32 bytes */
#define LOOKS_AT_VALUE 1000u
#define SPINS 200u
#define NAPS 100000u              /* looks at a lock that is taken, each after a nap */
#define GIVE_UP_NS 1000000000ll   /* longest wait for the lock */
#define DEAD_AFTER_NS 400000000ll /* a holder that has not moved for so long will not any more */
#define CLOCK_NAP 2               /* host.clock_ns: sleep a little, then the monotonic clock */

STATE struct shared shared;

u32 *shared_word(u32 at)
{
    return (u32 *)(void *)(REGION + at);
}

static u64 *wide(u32 at)
{
    return (u64 *)(void *)(REGION + at);
}

u32 shared_load(u32 at)
{
    return __atomic_load_n(shared_word(at), __ATOMIC_ACQUIRE);
}

void shared_store(u32 at, u32 value)
{
    __atomic_store_n(shared_word(at), value, __ATOMIC_RELEASE);
}

void shared_count(enum shared_counter counter)
{
    __atomic_fetch_add(shared_word(AT_COUNTERS + 4 * counter), 1, __ATOMIC_RELAXED);
}

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
    return __atomic_compare_exchange_n(wide(AT_LOCK), &seen, mine, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED);
}

static void repair(void);

/* The holder sleeps while others want the lock: wait off the CPU, and take the lock from one that never comes back. */
static bool take_slowly(void)
{
    u64 seen = 0;
    i64 since_ns = 0, began_ns = 0;
    shared_count(COUNT_LOCK_WAITS);
    for (u32 naps = 0; naps < NAPS; naps++) {
        u64 now = __atomic_load_n(wide(AT_LOCK), __ATOMIC_ACQUIRE);
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
            repair();
            return true;
        }
    }
    return false;
}

/* False: the tenant's other VMs never let go. */
bool shared_lock(void)
{
    for (u32 spins = 0; spins < SPINS; spins++) {
        u64 now = __atomic_load_n(wide(AT_LOCK), __ATOMIC_RELAXED);
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

/* ---- blocks ------------------------------------------------------------------------------------------------------ */

static u32 block_size(u32 class)
{
    return 1u << (FIRST_BLOCK_SHIFT + class);
}

/* The block's class and mark; false: there is no block at this place. */
static bool block_info(u32 at, u32 *class, u32 *marked)
{
    if (at < shared.heap_at || at % 16 || at > shared.bytes - BLOCK_HEAD)
        return false;
    u32 info = shared_load(at + BLOCK_INFO);
    *class = info & CLASS_MASK;
    *marked = info >> MARK_SHIFT;
    return *class < CLASSES && block_size(*class) <= shared.bytes - at;
}

/* The data of a block; false: there is no block, or it says that it is longer than it is. */
bool block_data(u32 at, struct bytes *data)
{
    u32 class, marked;
    if (!block_info(at, &class, &marked))
        return false;
    u32 len = shared_load(at + BLOCK_LEN);
    *data = (struct bytes){REGION + at + BLOCK_HEAD, len};
    return len <= block_size(class) - BLOCK_HEAD;
}

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

u8 *block_bytes(u32 at)
{
    return REGION + at + BLOCK_HEAD;
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

static bool mark(u32 at, u32 round)
{
    u32 class, marked;
    if (!block_info(at, &class, &marked))
        return false;
    shared_store(at + BLOCK_INFO, class | round << MARK_SHIFT);
    return true;
}

/* Items from `head` on; the chain ends where it stops making sense. */
static void mend_queue(u32 queue_at, u32 round)
{
    u32 count = 0, last = 0, at = shared_load(queue_at + QUEUE_HEAD);
    mark(shared_load(queue_at + QUEUE_NAME), round);
    for (; count < vm.config.limits.queue_items && mark(at, round); at = shared_load(at + BLOCK_NEXT)) {
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
static void repair(void)
{
    u32 round = (u32)(__atomic_load_n(wide(AT_LOCK), __ATOMIC_RELAXED) >> 32) & (UINT32_MAX >> MARK_SHIFT);
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

/* ---- names ------------------------------------------------------------------------------------------------------- */

u32 name_hash(struct bytes scope, struct bytes name)
{
    u32 hash = 0x811c9dc5u; /* FNV-1a */
    for (u32 i = 0; i < scope.len; i++)
        hash = (hash ^ scope.at[i]) * 0x01000193u;
    hash *= 0x01000193u;
    for (u32 i = 0; i < name.len; i++)
        hash = (hash ^ name.at[i]) * 0x01000193u;
    return hash ^ hash >> 15;
}

/* A name lies in a block as u32 length of the scope, scope, name. */
bool name_is(u32 at, struct bytes scope, struct bytes name)
{
    struct bytes data;
    if (!block_data(at, &data) || data.len != 4 + scope.len + name.len)
        return false;
    return load_u32(data.at) == scope.len && (!scope.len || memcmp(data.at + 4, scope.at, scope.len) == 0) &&
           (!name.len || memcmp(data.at + 4 + scope.len, name.at, name.len) == 0);
}

u32 name_put(struct bytes scope, struct bytes name)
{
    u32 at = block_alloc(4 + scope.len + name.len);
    if (!at)
        return 0;
    u8 *to = block_bytes(at);
    store_u32(to, scope.len);
    if (scope.len)
        memcpy(to + 4, scope.at, scope.len);
    if (name.len)
        memcpy(to + 4 + scope.len, name.at, name.len);
    return at;
}

/* ---- shared data ------------------------------------------------------------------------------------------------- */

STATE static u8 value_copy[SCRATCH_BYTES]; /* not `scratch`: the guest's allocator may log while this is handed over */

/* Place of the key's entry, or of the free one where it would be; 0: the table is full. */
static u32 find_entry(struct bytes key, u32 hash, bool *found)
{
    u32 index = hash;
    *found = false;
    for (u32 probes = 0; probes < shared.entries; probes++, index++) {
        u32 at = ENTRIES_AT + (index & (shared.entries - 1)) * ENTRY_BYTES;
        u32 place = shared_load(at + ENTRY_KEY);
        if (!place)
            return at;
        if (shared_load(at + ENTRY_HASH) == hash && name_is(place, vm.config.vm_id, key)) {
            *found = true;
            return at;
        }
    }
    return 0;
}

/* Copies the value; false: there is none, or it changes faster than it can be read, which only a foe does. */
static bool read_value(u32 entry, struct bytes *value, u32 *cas)
{
    for (u32 looks = 0; looks < LOOKS_AT_VALUE; looks++) {
        u64 before = __atomic_load_n(wide(entry + ENTRY_WORD), __ATOMIC_ACQUIRE);
        struct bytes data;
        bool sound = block_data((u32)before, &data) && data.len <= sizeof value_copy;
        if (sound)
            copy_short(value_copy, data.at, data.len);
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
        if (__atomic_load_n(wide(entry + ENTRY_WORD), __ATOMIC_RELAXED) != before)
            continue;
        *value = (struct bytes){value_copy, data.len};
        *cas = (u32)(before >> 32);
        return sound;
    }
    return false;
}

u32 EXPORT(proxy_get_shared_data)(u32 key, u32 key_len, u32 value_out, u32 size_out, u32 cas_out)
{
    host_call(IN_CALLBACKS);
    if (!guest_ok(key, key_len) || !guest_ok(cas_out, 4))
        return STATUS_INVALID_MEMORY_ACCESS;
    if (UNLIKELY(remote_shared()))
        return remote_get(key, key_len, value_out, size_out, cas_out);
    if (!shared.bytes || key_len > MAX_NAME_BYTES)
        return STATUS_NOT_FOUND;
    guest_read(key, scratch, key_len);
    struct bytes name = {scratch, key_len}, value;
    u32 cas;
    bool found;
    u32 entry = find_entry(name, name_hash(vm.config.vm_id, name), &found);
    if (!found || !read_value(entry, &value, &cas))
        return STATUS_NOT_FOUND;
    u32 status = return_bytes(value, value_out, size_out);
    if (status == STATUS_OK)
        guest_write_u32(cas_out, cas);
    return status;
}

static u32 next_cas(void)
{
    u32 cas = shared_load(AT_CAS) + 1;
    cas = cas ? cas : 1;
    shared_store(AT_CAS, cas);
    return cas;
}

static u32 new_entry(u32 entry, struct bytes key, u32 hash, u64 word)
{
    u32 entries = shared_load(AT_ENTRIES);
    u32 place = entry && entries < shared.entries - shared.entries / 4 ? name_put(vm.config.vm_id, key) : 0;
    if (!place)
        return STATUS_INTERNAL_FAILURE;
    if (!shared_locked()) {
        block_free(place);
        return STATUS_INTERNAL_FAILURE;
    }
    __atomic_store_n(wide(entry + ENTRY_WORD), word, __ATOMIC_RELEASE);
    shared_store(entry + ENTRY_HASH, hash);
    shared_store(AT_ENTRIES, entries + 1);
    shared_store(entry + ENTRY_KEY, place); /* from here on it is there */
    return STATUS_OK;
}

/* Under the lock. `key` lies in the scratch buffer, the value in the guest's memory; both ranges have been checked. */
static u32 set_value(struct bytes key, u32 value, u32 value_len, u32 cas)
{
    bool found;
    u32 hash = name_hash(vm.config.vm_id, key), entry = find_entry(key, hash, &found);
    u64 before = found ? __atomic_load_n(wide(entry + ENTRY_WORD), __ATOMIC_RELAXED) : 0;
    if (found && cas && cas != (u32)(before >> 32)) {
        shared_count(COUNT_CAS_MISMATCHES);
        return STATUS_CAS_MISMATCH;
    }
    u32 place = block_alloc(value_len);
    if (!place) {
        shared_count(COUNT_FULL);
        return STATUS_INTERNAL_FAILURE;
    }
    guest_read(value, block_bytes(place), value_len);
    u64 word = (u64)next_cas() << 32 | place;
    u32 status = STATUS_OK;
    if (!found)
        status = new_entry(entry, key, hash, word);
    else if (shared_locked())
        __atomic_store_n(wide(entry + ENTRY_WORD), word, __ATOMIC_SEQ_CST);
    else
        return STATUS_INTERNAL_FAILURE;
    if (status != STATUS_OK)
        shared_count(COUNT_FULL);
    block_free(status == STATUS_OK ? (u32)before : place);
    return status;
}

u32 EXPORT(proxy_set_shared_data)(u32 key, u32 key_len, u32 value, u32 value_len, u32 cas)
{
    host_call(IN_CALLBACKS);
    if (!guest_ok(key, key_len) || !guest_ok(value, value_len))
        return STATUS_INVALID_MEMORY_ACCESS;
    if (UNLIKELY(remote_shared()))
        return remote_set(key, key_len, value, value_len, cas);
    if (!shared.bytes || key_len > MAX_NAME_BYTES || value_len > MAX_VALUE_BYTES ||
        value_len > vm.config.limits.shared_value_bytes)
        return STATUS_INTERNAL_FAILURE;
    guest_read(key, scratch, key_len);
    if (!shared_lock())
        return STATUS_INTERNAL_FAILURE;
    u32 status = set_value((struct bytes){scratch, key_len}, value, value_len, cas);
    shared_unlock();
    if (status == STATUS_OK)
        shared_count(COUNT_SETS);
    return status;
}
