/* Memory, bytes, hashes and pairs: what knows of no channel. */
#ifndef SBX_DATA_H
#define SBX_DATA_H

#include "sandboxd.h"

#include <string.h>

#define KIB 1024u
#define MIB (1024u * 1024u)

/* ---- memory.c: blocks that are freed together -------------------------------------------------------------------- */

struct chunk;

struct arena {
    struct chunk *chunks;
    uint8_t *at;
    size_t left;
    uint64_t total; /* bytes given out since arena_reset */
};

/* 8-aligned, not cleared; NULL: no memory. `size` 0 gives a pointer that must not be read. */
void *arena_alloc(struct arena *arena, size_t size);
void *arena_array(struct arena *arena, size_t count, size_t size);
bool arena_copy(struct arena *arena, sbx_bytes *bytes); /* replaces it by a copy */
void arena_reset(struct arena *arena);                  /* keeps one small chunk */
void arena_free(struct arena *arena);

/* Room for one more in an array on the heap; false: no memory. */
bool grow(void **array, size_t count, size_t *capacity, size_t size);

/* ---- bytes.c ----------------------------------------------------------------------------------------------------- */

static inline uint8_t lower(uint8_t c)
{
    return c >= 'A' && c <= 'Z' ? (uint8_t)(c + 32) : c;
}

static inline bool is_pseudo(sbx_bytes name)
{
    return name.len && name.data[0] == ':';
}

static inline bool equal(sbx_bytes a, sbx_bytes b)
{
    return a.len == b.len && (a.len == 0 || memcmp(a.data, b.data, a.len) == 0);
}

static inline uint32_t get_u32(const uint8_t *at)
{
    return (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

static inline uint16_t get_u16(const uint8_t *at)
{
    return (uint16_t)(at[0] | at[1] << 8);
}

static inline uint64_t get_u64(const uint8_t *at)
{
    return get_u32(at) | (uint64_t)get_u32(at + 4) << 32;
}

static inline void put_u32(uint8_t *at, uint32_t value)
{
    for (int i = 0; i < 4; i++)
        at[i] = (uint8_t)(value >> 8 * i);
}

static inline void put_u64(uint8_t *at, uint64_t value)
{
    put_u32(at, (uint32_t)value);
    put_u32(at + 4, (uint32_t)(value >> 32));
}

#define LITERAL_INIT(text) {(const uint8_t *)(text), sizeof(text) - 1}
#define LITERAL(text) ((sbx_bytes)LITERAL_INIT(text))

bool equal_lower(sbx_bytes a, sbx_bytes b); /* ASCII case does not matter */
uint32_t hash_lower(sbx_bytes name); /* for tables whose names the policy chose */
/* SipHash-1-3 with a key of 16 bytes: for tables whose names a peer chose, who must not make them collide. */
uint32_t hash_keyed(const uint8_t *key, sbx_bytes name);
bool lowered(struct arena *arena, sbx_bytes *name); /* replaces it by a lower-case copy if it is not lower case */
bool is_utf8(sbx_bytes text);
/* Writes at most size - 1 bytes and a NUL; what does not print becomes '?'. */
void put_text(char *to, size_t size, const char *format, ...) __attribute__((format(printf, 3, 4)));
int fail(sbx_error *error, int status, const char *format, ...) __attribute__((format(printf, 3, 4)));
int fail_errno(sbx_error *error, const char *what);
uint64_t monotonic_ns(void);

/* ---- blake2b.c --------------------------------------------------------------------------------------------------- */

/* RFC 7693; key_len 0 to 64, out_len 1 to 64. */
void blake2b(uint8_t *out, size_t out_len, const uint8_t *key, size_t key_len, const uint8_t *data, size_t len);

/* ---- pairs.c ----------------------------------------------------------------------------------------------------- */

struct map {
    const sbx_pair *entries;
    size_t count;
};

/* Entries point into `data`, which stays where it is. SBX_OK, SBX_BROKEN (malformed or past the bounds), SBX_NO_MEMORY. */
int pairs_decode(sbx_bytes data, struct arena *arena, struct map *map);
uint64_t pairs_bytes(struct map map); /* 0 for the empty map */
void pairs_encode(struct map map, uint8_t *to);

#endif
