/* Basic types, the heap (memory.c), texts, and maps from number to pointer (table.c). */
#ifndef SANDBOXD_MEMORY_H
#define SANDBOXD_MEMORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int32_t i32;
typedef int64_t i64;

#define KIB 1024u
#define MIB (1024u * 1024u)
#define LIKELY(x) __builtin_expect(!!(x), 1)
#define UNLIKELY(x) __builtin_expect(!!(x), 0)

/* ---- memory ------------------------------------------------------------------------------------------------------ */

struct bytes {
    const u8 *at;
    u32 len;
};

void heap_init(void);
void heap_set_limit(u64 bytes);
void *heap_alloc(u32 len);           /* NULL: over the limit. Not zeroed. */
void heap_free(void *block);         /* NULL is fine */
u32 heap_usable(const void *block);  /* bytes that the block really has */
/* Move `used` bytes to a block of at least `len`; NULL leaves the old block alone. */
void *heap_grow(void *block, u32 used, u32 len);

#ifdef SANDBOXD_NATIVE
#include <string.h>
#else
void *memcpy(void *restrict to, const void *restrict from, size_t len);
void *memmove(void *to, const void *from, size_t len);
void *memset(void *to, int value, size_t len);
int memcmp(const void *a, const void *b, size_t len);
#endif

/* For short texts: memcpy of unknown length is a call into the engine, which costs more than such a copy. */
static inline void copy_short(u8 *to, const u8 *from, u32 len)
{
    if (UNLIKELY(len > 64)) {
        memcpy(to, from, len);
    } else if (len >= 8) {
        for (u32 at = 0; at < len - 8; at += 8)
            memcpy(to + at, from + at, 8);
        memcpy(to + len - 8, from + len - 8, 8);
    } else {
        for (u32 at = 0; at < len; at++)
            to[at] = from[at];
    }
}

static inline bool bytes_equal(struct bytes a, struct bytes b)
{
    return a.len == b.len && (a.len == 0 || (a.at[0] == b.at[0] && memcmp(a.at, b.at, a.len) == 0));
}

/* A string literal as bytes, without its NUL. */
#define TEXT(literal) ((struct bytes){(const u8 *)(literal), sizeof(literal) - 1})

static inline u32 load_u32(const u8 *at)
{
    u32 value;
    memcpy(&value, at, 4);
    return value;
}

static inline u64 load_u64(const u8 *at)
{
    u64 value;
    memcpy(&value, at, 8);
    return value;
}

static inline void store_u32(u8 *at, u32 value)
{
    memcpy(at, &value, 4);
}

static inline void store_u64(u8 *at, u64 value)
{
    memcpy(at, &value, 8);
}

/* u64 -> pointer; open addressing, linear probing. */
struct table {
    struct slot {
        u64 key;
        void *value; /* NULL: free */
    } *slots;
    u32 cap, count;
};

void *table_get(const struct table *table, u64 key);
bool table_put(struct table *table, u64 key, void *value); /* false: no memory */
void table_remove(struct table *table, u64 key);

#endif
