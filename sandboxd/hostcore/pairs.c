/*
 * Proxy-Wasm's serialisation of header maps ("pairs"):
 * u32 count; count x {u32 key length, u32 value length}; count x {key, NUL, value, NUL}.
 *
 * The empty map is also written as nothing, or as one zero byte.
 */
#include "hostcore.h"

static const u8 no_bytes[1];

/* Checks everything, so that pairs_next cannot leave `encoded`. */
bool pairs_open(struct bytes encoded, struct pairs_cursor *cursor)
{
    *cursor = (struct pairs_cursor){no_bytes, no_bytes, 0};
    if (encoded.len == 0 || (encoded.len == 1 && encoded.at[0] == 0))
        return true;
    if (encoded.len < 4 || encoded.len > MAX_PAIRS_BYTES)
        return false;
    u32 count = load_u32(encoded.at);
    if (count > MAX_PAIRS_COUNT)
        return false;
    u64 at = 4 + 8ull * count;
    if (at > encoded.len)
        return false;
    const u8 *lengths = encoded.at + 4;
    for (u32 i = 0; i < 2 * count; i++) {
        at += load_u32(lengths + 4 * i);
        if (at >= encoded.len || encoded.at[at] != 0)
            return false;
        at++;
    }
    if (at != encoded.len)
        return false;
    *cursor = (struct pairs_cursor){lengths, lengths + 8 * count, count};
    return true;
}

bool pairs_next(struct pairs_cursor *cursor, struct bytes *key, struct bytes *value)
{
    if (!cursor->left)
        return false;
    *key = (struct bytes){cursor->data, load_u32(cursor->lengths)};
    *value = (struct bytes){cursor->data + key->len + 1, load_u32(cursor->lengths + 4)};
    cursor->data = value->at + value->len + 1;
    cursor->lengths += 8;
    cursor->left--;
    return true;
}

u32 pairs_size(const struct map *map)
{
    return 4 + 10 * map->count + map->live;
}

void pairs_write(const struct map *map, u8 *to)
{
    u8 *lengths = to + 4;
    u8 *data = lengths + 8 * map->count;
    store_u32(to, map->count);
    for (u32 i = 0; i < map->count; i++, lengths += 8) {
        const struct entry *entry = &map->entries[i];
        store_u32(lengths, entry->key_len);
        store_u32(lengths + 4, entry->value_len);
        copy_short(data, map->text + entry->key, entry->key_len);
        data += entry->key_len;
        *data++ = 0;
        copy_short(data, map->text + entry->value, entry->value_len);
        data += entry->value_len;
        *data++ = 0;
    }
}
