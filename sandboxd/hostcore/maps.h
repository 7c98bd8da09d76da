/* Header maps (map.c) and their encoding (pairs.c). */
#ifndef SANDBOXD_MAPS_H
#define SANDBOXD_MAPS_H

#include "memory.h"

#define MAX_PAIRS_COUNT 1024u /* entries of one map: the reference host's cap */
#define MAX_PAIRS_BYTES MIB   /* serialised size of one map: the reference host's cap */

struct entry {
    u32 key, key_len, value, value_len; /* key and value are offsets into the map's text */
};

struct map {
    u8 *text;
    struct entry *entries;
    u32 text_len, text_cap;
    u32 count, cap;
    u32 live;     /* sum of key and value lengths of the entries */
    u32 wire_len; /* text[0..wire_len) is the encoding of the map as it is now; 0: encode it */
    bool present; /* the message has this map */
    bool open;    /* the guest may read and write it */
    bool modified;
};

/* Walks an encoded map that `pairs_open` has found valid. */
struct pairs_cursor {
    const u8 *lengths;
    const u8 *data;
    u32 left;
};

bool pairs_open(struct bytes encoded, struct pairs_cursor *cursor);
bool pairs_next(struct pairs_cursor *cursor, struct bytes *key, struct bytes *value);
u32 pairs_size(const struct map *map);
void pairs_write(const struct map *map, u8 *to);

bool map_decode(struct map *map, struct bytes encoded); /* false: malformed, or no memory: not present */
bool map_take(struct map *map, u8 *text, u32 len);      /* as map_decode, owns `text` from now on */
void map_clear(struct map *map);
void map_free(struct map *map);
i32 map_find(const struct map *map, struct bytes key, u32 from); /* -1: none */
u8 *map_reserve(struct map *map, u32 key_len, u32 value_len);    /* room at the text's end; NULL: limit */
void map_commit(struct map *map, u32 key_len, u32 value_len);    /* makes the reserved room an entry */
bool map_add(struct map *map, struct bytes key, struct bytes value);
void map_replace_at(struct map *map, u32 index, u32 value_len);  /* the reserved room becomes that entry's value */
u32 map_remove(struct map *map, struct bytes key, u32 from);
static inline struct bytes map_key(const struct map *map, u32 index)
{
    return (struct bytes){map->text + map->entries[index].key, map->entries[index].key_len};
}
static inline struct bytes map_value(const struct map *map, u32 index)
{
    return (struct bytes){map->text + map->entries[index].value, map->entries[index].value_len};
}

#endif
