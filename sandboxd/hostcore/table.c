/* Maps from u64 to pointer: the VM's streams by the client's id, and stream contexts by context id. */
#include "hostcore.h"

#define FIRST_CAP 64u

static u32 home(u64 key, u32 cap)
{
    return (u32)((key * 0x9E3779B97F4A7C15ull) >> 32) & (cap - 1);
}

void *table_get(const struct table *table, u64 key)
{
    if (!table->count)
        return NULL;
    for (u32 at = home(key, table->cap);; at = (at + 1) & (table->cap - 1)) {
        const struct slot *slot = &table->slots[at];
        if (!slot->value || slot->key == key)
            return slot->value;
    }
}

static void place(struct slot *slots, u32 cap, u64 key, void *value)
{
    u32 at = home(key, cap);
    while (slots[at].value)
        at = (at + 1) & (cap - 1);
    slots[at] = (struct slot){key, value};
}

static bool widen(struct table *table)
{
    u32 cap = table->cap ? table->cap * 2 : FIRST_CAP;
    struct slot *slots = heap_alloc(cap * (u32)sizeof *slots);
    if (!slots)
        return false;
    memset(slots, 0, cap * sizeof *slots);
    for (u32 at = 0; at < table->cap; at++)
        if (table->slots[at].value)
            place(slots, cap, table->slots[at].key, table->slots[at].value);
    heap_free(table->slots);
    table->slots = slots;
    table->cap = cap;
    return true;
}

bool table_put(struct table *table, u64 key, void *value)
{
    if (table->count * 2 >= table->cap && !widen(table))
        return false;
    place(table->slots, table->cap, key, value);
    table->count++;
    return true;
}

void table_remove(struct table *table, u64 key)
{
    if (!table->count)
        return;
    u32 mask = table->cap - 1, at = home(key, table->cap);
    while (table->slots[at].value && table->slots[at].key != key)
        at = (at + 1) & mask;
    if (!table->slots[at].value)
        return;
    /* Move later members of the run into the hole, so that no search ends too early. */
    for (u32 next = (at + 1) & mask; table->slots[next].value; next = (next + 1) & mask) {
        u32 wanted = home(table->slots[next].key, table->cap);
        if (((next - wanted) & mask) >= ((next - at) & mask)) {
            table->slots[at] = table->slots[next];
            at = next;
        }
    }
    table->slots[at].value = NULL;
    table->count--;
}
