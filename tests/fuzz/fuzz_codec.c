/* Fuzzers of the pairs codec and of the heap. */
#include <stdlib.h>

#include "native.h"

/* ---- pairs ------------------------------------------------------------------------------------------------------- */

#define MOST_BYTES 4096u

static u32 random_text(u8 *to, u32 most)
{
    u32 len = chance(20) ? 0 : pick(most);
    for (u32 i = 0; i < len; i++)
        to[i] = (u8)(chance(5) ? pick(256) : 'a' + pick(26));
    return len;
}

/* A valid encoding of random entries. */
static u32 random_pairs(u8 *to)
{
    u32 count = pick(12);
    u8 *lengths = to + 4, *data = to + 4 + 8 * count;
    store_u32(to, count);
    for (u32 i = 0; i < 2 * count; i++) {
        u32 len = random_text(data, chance(10) ? 150 : 20);
        store_u32(lengths + 4 * i, len);
        data += len;
        *data++ = 0;
    }
    return (u32)(data - to);
}

static u32 damage(u8 *bytes, u32 len)
{
    static const u32 nasty[] = {0, 1, 2, 0x7fffffff, 0x80000000, 0xfffffffe, 0xffffffff, 1024, 1025, 1048576};
    for (u32 times = 1 + pick(4); times; times--) {
        switch (pick(5)) {
        case 0:
            if (len)
                bytes[pick(len)] = (u8)pick(256);
            break;
        case 1:
            if (len >= 4)
                store_u32(bytes + (pick(len - 3) & ~3u), nasty[pick(sizeof nasty / sizeof *nasty)]);
            break;
        case 2:
            len -= pick(len < 8 ? len + 1 : 8);
            break;
        case 3:
            for (u32 more = pick(8); more && len < MOST_BYTES; more--)
                bytes[len++] = (u8)pick(3);
            break;
        default:
            if (len)
                bytes[pick(len)] ^= (u8)(1u << pick(8));
        }
    }
    return len;
}

/* The rules of the encoding once more, in the plainest form. */
static bool valid(const u8 *bytes, u32 len)
{
    if (len == 0 || (len == 1 && bytes[0] == 0))
        return true;
    if (len < 4)
        return false;
    u64 count = load_u32(bytes);
    if (count > MAX_PAIRS_COUNT || 4 + 8 * count > len)
        return false;
    u64 at = 4 + 8 * count;
    for (u64 i = 0; i < 2 * count; i++) {
        u64 text = load_u32(bytes + 4 + 4 * i);
        if (at + text + 1 > len || bytes[at + text] != 0)
            return false;
        at += text + 1;
    }
    return at == len;
}

static void check_map(struct map *map, const u8 *bytes, u32 len)
{
    u32 size = pairs_size(map);
    u8 *again = malloc(size);
    if (!again)
        abort();
    pairs_write(map, again);
    bool empty = len < 4 || map->count == 0;
    if (!empty && (size != len || memcmp(again, bytes, len) != 0))
        finding("a map does not encode to what it was decoded from");
    free(again);
}

/* Edits on a map that was decoded keep its book-keeping true. */
static void edit_map(struct map *map)
{
    for (u32 times = pick(20); times; times--) {
        u8 key_text[24], value_text[200];
        struct bytes key = {key_text, random_text(key_text, sizeof key_text)};
        struct bytes value = {value_text, random_text(value_text, sizeof value_text)};
        if (map->count && chance(50)) { /* an existing name */
            struct bytes old = map_key(map, pick(map->count));
            key.len = old.len < sizeof key_text ? old.len : sizeof key_text;
            memcpy(key_text, old.at, key.len);
        }
        i32 at = map_find(map, key, 0);
        if (chance(30)) {
            map_remove(map, key, 0);
            if (map_find(map, key, 0) >= 0)
                finding("a removed name is still there");
        } else if (at >= 0 && chance(50)) {
            u8 *room = map_reserve(map, 0, value.len);
            if (!room)
                continue;
            memcpy(room, value.at, value.len);
            map_replace_at(map, (u32)at, value.len);
            if (!bytes_equal(map_value(map, (u32)at), value) || !bytes_equal(map_key(map, (u32)at), key))
                finding("a replaced entry is not what it was replaced by");
        } else if (map_add(map, key, value)) {
            if (!bytes_equal(map_value(map, map->count - 1), value))
                finding("an added entry is not what was added");
        }
    }
    u64 live = 0;
    for (u32 i = 0; i < map->count; i++)
        live += map_key(map, i).len + map_value(map, i).len;
    if (live != map->live)
        finding("a map's live bytes are counted wrong");
}

void fuzz_pairs(void)
{
    u8 made[MOST_BYTES + 64];
    u32 len = random_pairs(made);
    if (chance(60))
        len = damage(made, len);
    else if (chance(20))
        for (u32 i = len = pick(64); i; i--)
            made[i - 1] = (u8)(chance(60) ? pick(4) : pick(256));
    u8 *bytes = malloc(len ? len : 1); /* exactly as long: the sanitizer sees every byte read past the end */
    if (!bytes)
        abort();
    memcpy(bytes, made, len);
    struct map map = {0};
    struct pairs_cursor cursor;
    bool good = pairs_open((struct bytes){bytes, len}, &cursor);
    if (good != valid(bytes, len))
        finding("pairs_open judges an encoding wrongly");
    if (map_decode(&map, (struct bytes){bytes, len}) != good)
        finding("map_decode and pairs_open disagree");
    if (good) {
        check_map(&map, bytes, len);
        edit_map(&map);
        u32 size = pairs_size(&map);
        u8 *encoded = malloc(size);
        if (!encoded)
            abort();
        pairs_write(&map, encoded);
        if (!valid(encoded, size))
            finding("an edited map does not encode to valid pairs");
        free(encoded);
    }
    map_free(&map);
    free(bytes);
    if (heap_used)
        finding("a map leaks");
}

/* ---- heap -------------------------------------------------------------------------------------------------------- */

void region_init(u8 *base);
void region_set_limit(u64 bytes);
u32 region_used(void);
void *region_alloc(u32 len);
u32 region_usable(const void *block);
void region_free(void *block);

#define LIVE 64u
#define REGION (128u * MIB)

static u32 random_size(void)
{
    switch (pick(8)) {
    case 0:
        return pick(4 * MIB);
    case 1:
        return 1u << pick(28);
    case 2:
        return (u32)(0u - pick(1000)); /* past everything */
    case 3:
        return 2040 + pick(20);
    default:
        return pick(3000);
    }
}

static void fill(u8 *block, u32 len, u8 value)
{
    memset(block, value, len < 64 ? len : 64);
    if (len)
        block[len - 1] = value;
}

static bool filled(const u8 *block, u32 len, u8 value)
{
    for (u32 i = 0; i < (len < 64 ? len : 64); i++)
        if (block[i] != value)
            return false;
    return !len || block[len - 1] == value;
}

void fuzz_heap(void)
{
    static u8 *base;
    struct {
        u8 *at;
        u32 len;
        u8 value;
    } live[LIVE] = {0};
    if (!base && !(base = aligned_alloc(4096, REGION)))
        abort();
    region_init(base);
    region_set_limit(1 * MIB + pick(64) * MIB);
    u32 idle = region_used();
    for (u32 step = 0; step < 200; step++) {
        u32 which = pick(LIVE);
        if (live[which].at) {
            if (!filled(live[which].at, live[which].len, live[which].value))
                finding("a heap block was overwritten");
            region_free(live[which].at);
            live[which].at = NULL;
            continue;
        }
        u32 len = random_size();
        u8 *at = region_alloc(len);
        if (!at)
            continue;
        if (at < base || at + len > base + REGION || region_usable(at) < len || (size_t)(at - base) % 16)
            finding("a heap block lies outside the heap, is too small, or not aligned");
        live[which].at = at;
        live[which].len = len;
        live[which].value = (u8)pick(256);
        fill(at, len, live[which].value);
    }
    for (u32 which = 0; which < LIVE; which++)
        region_free(live[which].at);
    if (idle != 0 || region_used() > 8u * 4096 * LIVE)
        finding("the heap does not get its pages back");
    region_set_limit(128u * MIB);
}
