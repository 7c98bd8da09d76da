/* Hidden values put back into what the plugin made of its view; as Redactor.changes in sandboxd/policy/redact.py. */
#include "internal.h"

struct hidden {
    sbx_bytes value, shown;
    bool used;
};

/* The values that a name has in the proxy's map. */
static struct hidden *hidden_values(const sbx_policy *policy, enum mode mode, struct map headers, sbx_bytes name,
                                    struct arena *scratch, size_t *count)
{
    size_t found = 0;
    for (size_t i = 0; i < headers.count; i++)
        found += equal_lower(headers.entries[i].name, name);
    struct hidden *list = arena_array(scratch, found, sizeof *list);
    *count = 0;
    for (size_t i = 0; list && i < headers.count; i++) {
        if (!equal_lower(headers.entries[i].name, name))
            continue;
        struct hidden *one = &list[(*count)++];
        uint8_t *room = arena_alloc(scratch, 32);
        if (!room)
            return NULL;
        *one = (struct hidden){.value = headers.entries[i].value};
        if (mode != MODE_PRESENCE)
            one->shown = placeholder(policy, mode, one->value, room);
    }
    return list;
}

static struct hidden *take_hidden(struct hidden *list, size_t count, sbx_bytes shown)
{
    for (size_t i = 0; i < count; i++)
        if (!list[i].used && equal(list[i].shown, shown)) {
            list[i].used = true;
            return &list[i];
        }
    return NULL;
}

/* One entry `present` stands for all values: the first one in the plugin's list is replaced by them. */
static bool restore_presence(sbx_set *set, const struct hidden *hidden, size_t count, struct arena *out)
{
    sbx_bytes *values = arena_array(out, set->count + count, sizeof *values);
    size_t made = 0;
    bool done = false;
    for (size_t i = 0; values && i < set->count; i++) {
        if (done || !equal(set->values[i], LITERAL("present"))) {
            values[made++] = set->values[i];
            continue;
        }
        done = true;
        for (size_t n = 0; n < count; n++) {
            values[made] = hidden[n].value;
            if (!arena_copy(out, &values[made++]))
                return false;
        }
    }
    set->values = values;
    set->count = made;
    return values != NULL;
}

static bool restore_each(sbx_set *set, struct hidden *hidden, size_t count, struct arena *out)
{
    sbx_bytes *values = arena_array(out, set->count, sizeof *values);
    for (size_t i = 0; values && i < set->count; i++) {
        const struct hidden *original = take_hidden(hidden, count, set->values[i]);
        values[i] = original ? original->value : set->values[i];
        if (original && !arena_copy(out, &values[i]))
            return false;
    }
    set->values = values;
    return values != NULL;
}

bool restore_hidden(const sbx_policy *policy, enum section section, struct map headers, sbx_set *set, struct arena *out,
                    struct arena *scratch)
{
    enum mode mode = header_mode(policy, section, set->name);
    size_t count;
    if (mode == MODE_SHOW || mode == MODE_DROP)
        return true;
    struct hidden *hidden = hidden_values(policy, mode, headers, set->name, scratch, &count);
    if (!hidden)
        return false;
    if (mode == MODE_PRESENCE)
        return restore_presence(set, hidden, count, out);
    return restore_each(set, hidden, count, out);
}
