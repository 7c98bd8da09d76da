/* Blocks that are freed together. */
#include "internal.h"

#include <stdlib.h>

#define SMALL_CHUNK 2048u
#define LARGE_CHUNK 65536u

struct chunk {
    struct chunk *next;
    size_t size;
    uint8_t data[];
};

static bool add_chunk(struct arena *arena, size_t size)
{
    size_t want = arena->chunks ? LARGE_CHUNK : SMALL_CHUNK;
    if (want < size)
        want = size;
    struct chunk *chunk = malloc(sizeof *chunk + want);
    if (!chunk)
        return false;
    chunk->next = arena->chunks;
    chunk->size = want;
    arena->chunks = chunk;
    arena->at = chunk->data;
    arena->left = want;
    return true;
}

void *arena_alloc(struct arena *arena, size_t size)
{
    if (size > SIZE_MAX / 2)
        return NULL;
    size = size ? (size + 7) & ~(size_t)7 : 8;
    if (size > arena->left && !add_chunk(arena, size))
        return NULL;
    void *at = arena->at;
    arena->at += size;
    arena->left -= size;
    arena->total += size;
    return at;
}

void *arena_array(struct arena *arena, size_t count, size_t size)
{
    return count > SIZE_MAX / size ? NULL : arena_alloc(arena, count * size);
}

bool arena_copy(struct arena *arena, sbx_bytes *bytes)
{
    uint8_t *copy = arena_alloc(arena, bytes->len);
    if (!copy)
        return false;
    if (bytes->len)
        memcpy(copy, bytes->data, bytes->len);
    bytes->data = copy;
    return true;
}

void arena_reset(struct arena *arena)
{
    struct chunk *kept = NULL;
    while (arena->chunks) {
        struct chunk *next = arena->chunks->next;
        if (!kept && arena->chunks->size <= LARGE_CHUNK)
            kept = arena->chunks;
        else
            free(arena->chunks);
        arena->chunks = next;
    }
    *arena = (struct arena){.chunks = kept};
    if (kept) {
        kept->next = NULL;
        arena->at = kept->data;
        arena->left = kept->size;
    }
}

void arena_free(struct arena *arena)
{
    while (arena->chunks) {
        struct chunk *next = arena->chunks->next;
        free(arena->chunks);
        arena->chunks = next;
    }
    *arena = (struct arena){0};
}

bool grow(void **array, size_t count, size_t *capacity, size_t size)
{
    if (count < *capacity)
        return true;
    size_t want = *capacity ? *capacity * 2 : 4;
    if (want > SIZE_MAX / size)
        return false;
    void *larger = realloc(*array, want * size);
    if (!larger)
        return false;
    *array = larger;
    *capacity = want;
    return true;
}
