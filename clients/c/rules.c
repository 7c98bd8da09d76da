/* Lists of names and beginnings of names: an exact name first, then the first prefix that fits. */
#include "internal.h"

#include <stdlib.h>

#define ENTRY_HEAD 4u /* u16 length, u8 mode, u8 is a prefix */

bool rules_read(sbx_bytes list, size_t *at, uint8_t max_mode, struct pattern *pattern, bool *is_prefix)
{
    if (list.len - *at < ENTRY_HEAD)
        return false;
    const uint8_t *head = list.data + *at;
    size_t len = get_u16(head);
    *at += ENTRY_HEAD;
    if (len > list.len - *at || head[2] > max_mode || head[3] > 1)
        return false;
    *pattern = (struct pattern){{head + ENTRY_HEAD, len}, head[2]};
    *is_prefix = head[3];
    *at += len;
    return true;
}

static bool count_entries(sbx_bytes list, uint8_t max_mode, struct rules *rules)
{
    struct pattern pattern;
    bool is_prefix;
    for (size_t at = 0; at < list.len;) {
        if (!rules_read(list, &at, max_mode, &pattern, &is_prefix))
            return false;
        if (is_prefix)
            rules->prefix_count++;
        else
            rules->exact_count++;
        rules->hides |= pattern.mode != MODE_SHOW;
    }
    return true;
}

static struct pattern *slot_for(const struct rules *rules, sbx_bytes name)
{
    uint32_t slot = hash_lower(name) & rules->exact_mask;
    while (rules->exact[slot].name.data && !equal_lower(rules->exact[slot].name, name))
        slot = (slot + 1) & rules->exact_mask;
    return &rules->exact[slot];
}

bool rules_build(struct rules *rules, sbx_bytes list, uint8_t max_mode)
{
    *rules = (struct rules){0};
    if (!count_entries(list, max_mode, rules))
        return false;
    uint32_t slots = 1;
    while (slots < 2 * rules->exact_count)
        slots *= 2;
    rules->exact_mask = slots - 1;
    rules->exact = rules->exact_count ? calloc(slots, sizeof *rules->exact) : NULL;
    rules->prefixes = rules->prefix_count ? calloc(rules->prefix_count, sizeof *rules->prefixes) : NULL;
    if ((rules->exact_count && !rules->exact) || (rules->prefix_count && !rules->prefixes))
        return false;
    struct pattern pattern;
    bool is_prefix;
    uint32_t prefix = 0;
    for (size_t at = 0; at < list.len;) {
        rules_read(list, &at, max_mode, &pattern, &is_prefix);
        if (is_prefix)
            rules->prefixes[prefix++] = pattern;
        else
            *slot_for(rules, pattern.name) = pattern;
    }
    return true;
}

void rules_free(struct rules *rules)
{
    free(rules->exact);
    free(rules->prefixes);
}

const struct pattern *rules_find(const struct rules *rules, sbx_bytes name)
{
    if (rules->exact_count) {
        const struct pattern *found = slot_for(rules, name);
        if (found->name.data)
            return found;
    }
    for (uint32_t i = 0; i < rules->prefix_count; i++) {
        sbx_bytes start = rules->prefixes[i].name;
        if (start.len <= name.len && equal_lower(start, (sbx_bytes){name.data, start.len}))
            return &rules->prefixes[i];
    }
    return NULL;
}
