/*
 * Proxy-Wasm's layout of a header map: u32 count; count x {u32 name length, u32 value length}; count x {name, NUL, value,
 * NUL}. The empty map is no bytes at all.
 */
#include "internal.h"

int pairs_decode(sbx_bytes data, struct arena *arena, struct map *map)
{
    *map = (struct map){NULL, 0};
    if (data.len == 0)
        return SBX_OK;
    if (data.len < 4 || data.len > MAX_PAIRS_BYTES)
        return SBX_BROKEN;
    size_t count = get_u32(data.data);
    if (count > MAX_PAIRS_COUNT || 4 + 8 * count > data.len)
        return SBX_BROKEN;
    sbx_pair *entries = arena_array(arena, count, sizeof *entries);
    if (!entries)
        return SBX_NO_MEMORY;
    const uint8_t *lengths = data.data + 4;
    size_t at = 4 + 8 * count;
    for (size_t i = 0; i < 2 * count; i++) {
        size_t len = get_u32(lengths + 4 * i);
        if (len >= data.len - at || data.data[at + len] != 0)
            return SBX_BROKEN;
        sbx_bytes *part = i % 2 ? &entries[i / 2].value : &entries[i / 2].name;
        *part = (sbx_bytes){data.data + at, len};
        at += len + 1;
    }
    if (at != data.len)
        return SBX_BROKEN;
    *map = (struct map){entries, count};
    return SBX_OK;
}

uint64_t pairs_bytes(struct map map)
{
    if (!map.count)
        return 0;
    uint64_t bytes = 4;
    for (size_t i = 0; i < map.count; i++)
        bytes += 10 + (uint64_t)map.entries[i].name.len + map.entries[i].value.len;
    return bytes;
}

static uint8_t *put_string(uint8_t *to, sbx_bytes string)
{
    if (string.len)
        memcpy(to, string.data, string.len);
    to[string.len] = 0;
    return to + string.len + 1;
}

void pairs_encode(struct map map, uint8_t *to)
{
    if (!map.count)
        return;
    uint8_t *lengths = to + 4, *data = lengths + 8 * map.count;
    put_u32(to, (uint32_t)map.count);
    for (size_t i = 0; i < map.count; i++, lengths += 8) {
        const sbx_pair *pair = &map.entries[i];
        put_u32(lengths, (uint32_t)pair->name.len);
        put_u32(lengths + 4, (uint32_t)pair->value.len);
        data = put_string(put_string(data, pair->name), pair->value);
    }
}
