/* What differs between two header maps, and what that means for the proxy's own; as diff and Redactor.changes in
   sandboxd/policy/redact.py. */
#include "internal.h"

#define NONE UINT32_MAX

/* The entries of one name, in order. */
struct group {
    sbx_bytes name; /* lower case */
    uint32_t first, last, count;
};

struct groups {
    const sbx_pair *entries;
    struct group *list; /* in order of first appearance */
    uint32_t count;
    uint32_t *next;  /* per entry: the next one of its name */
    uint32_t *slots; /* hash table of indices into list */
    const uint8_t *key; /* of the hash */
    uint32_t mask;
};

static uint32_t *slot_of(const struct groups *groups, sbx_bytes name)
{
    uint32_t slot = hash_keyed(groups->key, name) & groups->mask;
    while (groups->slots[slot] != NONE && !equal_lower(groups->list[groups->slots[slot]].name, name))
        slot = (slot + 1) & groups->mask;
    return &groups->slots[slot];
}

static const struct group *find(const struct groups *groups, sbx_bytes name)
{
    uint32_t found = *slot_of(groups, name);
    return found == NONE ? NULL : &groups->list[found];
}

static bool add(struct groups *groups, uint32_t entry, struct arena *scratch)
{
    uint32_t *slot = slot_of(groups, groups->entries[entry].name);
    groups->next[entry] = NONE;
    if (*slot != NONE) {
        struct group *group = &groups->list[*slot];
        groups->next[group->last] = entry;
        group->last = entry;
        group->count++;
        return true;
    }
    struct group fresh = {groups->entries[entry].name, entry, entry, 1};
    if (!lowered(scratch, &fresh.name))
        return false;
    *slot = groups->count;
    groups->list[groups->count++] = fresh;
    return true;
}

static bool group_by_name(struct map map, const uint8_t *key, struct arena *scratch, struct groups *groups)
{
    uint32_t slots = 4;
    while (slots < 2 * map.count)
        slots *= 2;
    *groups = (struct groups){
        .entries = map.entries,
        .list = arena_array(scratch, map.count, sizeof *groups->list),
        .next = arena_array(scratch, map.count, sizeof *groups->next),
        .slots = arena_array(scratch, slots, sizeof *groups->slots),
        .mask = slots - 1,
        .key = key,
    };
    if (!groups->list || !groups->next || !groups->slots)
        return false;
    memset(groups->slots, 0xff, slots * sizeof *groups->slots);
    for (uint32_t i = 0; i < map.count; i++)
        if (!add(groups, i, scratch))
            return false;
    return true;
}

static bool same_pair(const sbx_pair *a, const sbx_pair *b)
{
    return equal(a->name, b->name) && equal(a->value, b->value);
}

static bool begins_with(struct map map, struct map start)
{
    if (start.count > map.count)
        return false;
    for (size_t i = 0; i < start.count; i++)
        if (!same_pair(&map.entries[i], &start.entries[i]))
            return false;
    return true;
}

/* ---- the result -------------------------------------------------------------------------------------------------- */

struct builder {
    struct arena *out;
    sbx_bytes *removed;
    sbx_set *set;
    sbx_pair *added;
    size_t removed_count, set_count, added_count;
};

static bool builder_open(struct builder *builder, struct arena *out, size_t removed, size_t set, size_t added)
{
    *builder = (struct builder){
        .out = out,
        .removed = arena_array(out, removed, sizeof(sbx_bytes)),
        .set = arena_array(out, set, sizeof(sbx_set)),
        .added = arena_array(out, added, sizeof(sbx_pair)),
    };
    return builder->removed && builder->set && builder->added;
}

static void builder_close(const struct builder *builder, sbx_changes *changes)
{
    *changes = (sbx_changes){builder->removed, builder->removed_count, builder->set,
                             builder->set_count, builder->added,      builder->added_count};
}

/* Names of groups are in the scratch arena, or in a map that may go first: the result has its own. */
static bool own_name(const struct builder *builder, sbx_bytes name, sbx_bytes *to)
{
    *to = name;
    return arena_copy(builder->out, to);
}

static bool put_added(struct builder *builder, sbx_bytes name, sbx_bytes value)
{
    sbx_pair *pair = &builder->added[builder->added_count++];
    pair->value = value;
    return own_name(builder, name, &pair->name);
}

static bool put_set(struct builder *builder, const struct groups *after, const struct group *group)
{
    sbx_bytes *values = arena_array(builder->out, group->count, sizeof *values);
    sbx_set *set = &builder->set[builder->set_count++];
    if (!values || !own_name(builder, group->name, &set->name))
        return false;
    set->values = values;
    set->count = group->count;
    for (uint32_t entry = group->first; entry != NONE; entry = after->next[entry])
        *values++ = after->entries[entry].value;
    return true;
}

/* How many values, from the first on, two groups have in common; `old` may be NULL. */
static uint32_t common(const struct groups *before, const struct group *old, const struct groups *after,
                       const struct group *now)
{
    uint32_t count = 0, a = old ? old->first : NONE, b = now->first;
    while (a != NONE && b != NONE && equal(before->entries[a].value, after->entries[b].value)) {
        a = before->next[a];
        b = after->next[b];
        count++;
    }
    return count;
}

static bool compare(struct builder *builder, const struct groups *before, const struct groups *after,
                    const struct group *now)
{
    const struct group *old = find(before, now->name);
    uint32_t old_count = old ? old->count : 0, same = common(before, old, after, now);
    if (same == old_count && same == now->count)
        return true;
    if (same != old_count || is_pseudo(now->name))
        return put_set(builder, after, now);
    uint32_t entry = now->first;
    for (uint32_t i = 0; i < same; i++)
        entry = after->next[entry];
    for (; entry != NONE; entry = after->next[entry])
        if (!put_added(builder, now->name, after->entries[entry].value))
            return false;
    return true;
}

/* What only grew at the end, and by no pseudo-header. */
static bool diff_grown(struct map grown, struct arena *out, struct arena *scratch, sbx_changes *changes)
{
    struct builder builder;
    if (!builder_open(&builder, out, 0, 0, grown.count))
        return false;
    for (size_t i = 0; i < grown.count; i++) {
        sbx_bytes name = grown.entries[i].name;
        if (!lowered(scratch, &name) || !put_added(&builder, name, grown.entries[i].value))
            return false;
    }
    builder_close(&builder, changes);
    return true;
}

static bool any_pseudo(struct map map)
{
    for (size_t i = 0; i < map.count; i++)
        if (is_pseudo(map.entries[i].name))
            return true;
    return false;
}

static bool diff(struct map before, struct map after, const uint8_t *key, struct arena *out, struct arena *scratch,
                 sbx_changes *changes)
{
    *changes = (sbx_changes){0};
    if (begins_with(after, before)) {
        if (before.count == after.count)
            return true;
        struct map grown = {after.entries + before.count, after.count - before.count};
        if (!any_pseudo(grown))
            return diff_grown(grown, out, scratch, changes);
    }
    struct groups old, now;
    struct builder builder;
    if (!group_by_name(before, key, scratch, &old) || !group_by_name(after, key, scratch, &now) ||
        !builder_open(&builder, out, old.count, now.count, after.count))
        return false;
    for (uint32_t i = 0; i < now.count; i++)
        if (!compare(&builder, &old, &now, &now.list[i]))
            return false;
    for (uint32_t i = 0; i < old.count; i++)
        if (!find(&now, old.list[i].name) &&
            !own_name(&builder, old.list[i].name, &builder.removed[builder.removed_count++]))
            return false;
    builder_close(&builder, changes);
    return true;
}

bool changes_of(const sbx_policy *policy, enum section section, struct map headers, struct map view, bool hidden,
                struct map after, struct arena *out, struct arena *scratch, sbx_changes *changes)
{
    if (!diff(view, after, policy->key.data, out, scratch, changes)) /* at least 16 bytes, which the worker does not know */
        return false;
    if (!hidden)
        return true;
    sbx_set *set = (sbx_set *)(uintptr_t)changes->set; /* ours until it is handed out */
    for (size_t i = 0; i < changes->set_count; i++)
        if (!restore_hidden(policy, section, headers, &set[i], out, scratch))
            return false;
    return true;
}
