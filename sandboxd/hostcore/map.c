/*
 * Header maps in memory: a text block, and entries that point into it.
 *
 * A map that came from the client keeps its encoding as the beginning of its text, so that an unchanged map goes to the
 * guest or the channel as it is. Text of removed and replaced entries is reclaimed when the block has to grow.
 */
#include "hostcore.h"

#define TEXT_SLACK 256u /* room for what a filter typically adds */
#define FIRST_ENTRIES 8u
#define MAX_TEXT_BYTES (2 * MAX_PAIRS_BYTES)

static bool entries_room(struct map *map, u32 count)
{
    if (count <= map->cap)
        return true;
    if (count > MAX_PAIRS_COUNT)
        return false;
    u32 cap = count + FIRST_ENTRIES;
    struct entry *entries = heap_grow(map->entries, map->count * (u32)sizeof *entries, cap * (u32)sizeof *entries);
    if (!entries)
        return false;
    map->entries = entries;
    map->cap = heap_usable(entries) / (u32)sizeof *entries;
    return true;
}

/* Finds the entries of the valid encoding text[0..len). */
static bool index_text(struct map *map, u32 len)
{
    struct pairs_cursor cursor;
    struct bytes key, value;
    map->count = map->live = map->wire_len = 0;
    map->text_len = len;
    if (!pairs_open((struct bytes){map->text, len}, &cursor) || !entries_room(map, cursor.left))
        return false;
    while (pairs_next(&cursor, &key, &value)) {
        map->entries[map->count++] =
            (struct entry){(u32)(key.at - map->text), key.len, (u32)(value.at - map->text), value.len};
        map->live += key.len + value.len;
    }
    map->wire_len = map->count ? len : 0;
    return true;
}

bool map_decode(struct map *map, struct bytes encoded)
{
    u32 len = encoded.len;
    if (len > MAX_PAIRS_BYTES)
        return false;
    if (!map->text || map->text_cap < len) {
        u8 *text = heap_alloc(len + TEXT_SLACK);
        if (!text)
            return false;
        heap_free(map->text);
        map->text = text;
        map->text_cap = heap_usable(text);
    }
    memcpy(map->text, encoded.at, len);
    map->present = index_text(map, len);
    return map->present;
}

bool map_take(struct map *map, u8 *text, u32 len)
{
    heap_free(map->text);
    map->text = text;
    map->text_cap = heap_usable(text);
    return index_text(map, len);
}

void map_clear(struct map *map)
{
    map->count = map->live = map->text_len = map->wire_len = 0;
}

void map_free(struct map *map)
{
    heap_free(map->text);
    heap_free(map->entries);
    *map = (struct map){0};
}

i32 map_find(const struct map *map, struct bytes key, u32 from)
{
    for (u32 i = from; i < map->count; i++) {
        const struct entry *entry = &map->entries[i];
        if (entry->key_len != key.len)
            continue;
        const u8 *text = map->text + entry->key;
        if (key.len == 0 || (text[0] == key.at[0] && memcmp(text, key.at, key.len) == 0))
            return (i32)i;
    }
    return -1;
}

/* A new text block with nothing but the live text and room for `more` bytes. */
static bool compact(struct map *map, u32 more)
{
    u32 wanted = map->live + more;
    wanted += wanted / 2 + TEXT_SLACK;
    if (wanted > MAX_TEXT_BYTES)
        return false;
    u8 *text = heap_alloc(wanted);
    if (!text)
        return false;
    u32 at = 0;
    for (u32 i = 0; i < map->count; i++) {
        struct entry *entry = &map->entries[i];
        memcpy(text + at, map->text + entry->key, entry->key_len);
        entry->key = at;
        at += entry->key_len;
        memcpy(text + at, map->text + entry->value, entry->value_len);
        entry->value = at;
        at += entry->value_len;
    }
    heap_free(map->text);
    map->text = text;
    map->text_len = at;
    map->text_cap = heap_usable(text);
    map->wire_len = 0;
    return true;
}

u8 *map_reserve(struct map *map, u32 key_len, u32 value_len)
{
    u64 more = (u64)key_len + value_len;
    if (pairs_size(map) + 10 + more > MAX_PAIRS_BYTES || !entries_room(map, map->count + 1))
        return NULL;
    /* Also the first time that nothing is reserved: NULL says that there is no room. */
    if ((!map->text || (u64)map->text_len + more > map->text_cap) && !compact(map, (u32)more))
        return NULL;
    return map->text + map->text_len;
}

void map_commit(struct map *map, u32 key_len, u32 value_len)
{
    map->entries[map->count++] = (struct entry){map->text_len, key_len, map->text_len + key_len, value_len};
    map->text_len += key_len + value_len;
    map->live += key_len + value_len;
    map->wire_len = 0;
}

bool map_add(struct map *map, struct bytes key, struct bytes value)
{
    u8 *room = map_reserve(map, key.len, value.len);
    if (!room)
        return false;
    memcpy(room, key.at, key.len);
    memcpy(room + key.len, value.at, value.len);
    map_commit(map, key.len, value.len);
    return true;
}

void map_replace_at(struct map *map, u32 index, u32 value_len)
{
    struct entry *entry = &map->entries[index];
    map->live += value_len - entry->value_len;
    entry->value = map->text_len;
    entry->value_len = value_len;
    map->text_len += value_len;
    map->wire_len = 0;
}

u32 map_remove(struct map *map, struct bytes key, u32 from)
{
    u32 kept = from, removed = 0;
    for (u32 i = from; i < map->count; i++) {
        if (bytes_equal(map_key(map, i), key)) {
            map->live -= map->entries[i].key_len + map->entries[i].value_len;
            removed++;
        } else {
            map->entries[kept++] = map->entries[i];
        }
    }
    map->count -= removed;
    if (removed)
        map->wire_len = 0;
    return removed;
}
