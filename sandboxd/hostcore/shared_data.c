/*
 * Shared data: keys with values, each with the number that a compare-and-swap names; shared.c tells how. And how names
 * lie in the region, those of queues as well.
 */
#include "remote.h"
#include "shared.h"

#define LOOKS_AT_VALUE 1000u

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

/* ---- values ------------------------------------------------------------------------------------------------------ */

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
        u64 before = __atomic_load_n(shared_wide(entry + ENTRY_WORD), __ATOMIC_ACQUIRE);
        struct bytes data;
        bool sound = block_data((u32)before, &data) && data.len <= sizeof value_copy;
        if (sound)
            copy_short(value_copy, data.at, data.len);
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
        if (__atomic_load_n(shared_wide(entry + ENTRY_WORD), __ATOMIC_RELAXED) != before)
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
    __atomic_store_n(shared_wide(entry + ENTRY_WORD), word, __ATOMIC_RELEASE);
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
    u64 before = found ? __atomic_load_n(shared_wide(entry + ENTRY_WORD), __ATOMIC_RELAXED) : 0;
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
        __atomic_store_n(shared_wide(entry + ENTRY_WORD), word, __ATOMIC_SEQ_CST);
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
