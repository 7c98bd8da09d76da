/* What a plugin sees of a header map; as Redactor.view in sandboxd/policy/redact.py. */
#include "internal.h"

static const sbx_bytes mask = LITERAL_INIT("***"), present = LITERAL_INIT("present");

sbx_bytes placeholder(const sbx_policy *policy, enum mode mode, sbx_bytes value, uint8_t *to)
{
    static const char digits[] = "0123456789abcdef";
    uint8_t digest[16];
    if (mode != MODE_HASH)
        return mask;
    blake2b(digest, sizeof digest, policy->key.data, policy->key.len, value.data, value.len);
    for (size_t i = 0; i < sizeof digest; i++) {
        to[2 * i] = (uint8_t)digits[digest[i] >> 4];
        to[2 * i + 1] = (uint8_t)digits[digest[i] & 15];
    }
    return (sbx_bytes){to, 32};
}

static bool any_hidden(const sbx_policy *policy, enum section section, struct map headers)
{
    if (!policy->redact[section].hides)
        return false;
    for (size_t i = 0; i < headers.count; i++)
        if (header_mode(policy, section, headers.entries[i].name) != MODE_SHOW)
            return true;
    return false;
}

static bool seen_before(const sbx_pair *view, size_t count, sbx_bytes name)
{
    for (size_t i = 0; i < count; i++)
        if (view[i].value.data == present.data && equal_lower(view[i].name, name))
            return true;
    return false;
}

static bool put_hidden(const sbx_policy *policy, enum mode mode, const sbx_pair *entry, struct arena *arena,
                       sbx_pair *view, size_t *count)
{
    if (mode == MODE_DROP || (mode == MODE_PRESENCE && seen_before(view, *count, entry->name)))
        return true;
    sbx_pair shown = {entry->name, present};
    if (mode != MODE_PRESENCE) {
        uint8_t *room = mode == MODE_HASH ? arena_alloc(arena, 32) : NULL;
        if (mode == MODE_HASH && !room)
            return false;
        shown.value = placeholder(policy, mode, entry->value, room);
    }
    if (!lowered(arena, &shown.name))
        return false;
    view[(*count)++] = shown;
    return true;
}

bool view_of(const sbx_policy *policy, enum section section, struct map headers, struct arena *arena, struct map *view,
             bool *hidden)
{
    *view = headers;
    *hidden = any_hidden(policy, section, headers);
    if (!*hidden)
        return true;
    sbx_pair *seen = arena_array(arena, headers.count, sizeof *seen);
    if (!seen)
        return false;
    size_t count = 0;
    for (size_t i = 0; i < headers.count; i++) {
        const sbx_pair *entry = &headers.entries[i];
        enum mode mode = header_mode(policy, section, entry->name);
        if (mode == MODE_SHOW)
            seen[count++] = *entry;
        else if (!put_hidden(policy, mode, entry, arena, seen, &count))
            return false;
    }
    *view = (struct map){seen, count};
    return true;
}
