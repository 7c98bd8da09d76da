/* The bytes of a body that have not gone on: borrowed from the event's record, or held in a block of their own. */
#include "stream.h"

#define FIRST_CAP 4096u

struct bytes body_visible(const struct body *body)
{
    if (body->borrowed)
        return body->chunk;
    if (!body->data)
        return (struct bytes){0};
    return (struct bytes){body->data + body->hidden, body->len - body->hidden};
}

/* Room for `more` bytes at the end; grows by half, so that n chunks cost O(n). */
static bool body_room(struct body *body, u32 more)
{
    u64 wanted = (u64)body->len + more;
    if (wanted <= body->cap)
        return true;
    u64 cap = wanted > body->cap * 3ull / 2 ? wanted : body->cap * 3ull / 2;
    if (cap < FIRST_CAP)
        cap = FIRST_CAP;
    u8 *data = cap > UINT32_MAX ? NULL : heap_grow(body->data, body->len, (u32)cap);
    if (!data)
        return false;
    body->data = data;
    body->cap = heap_usable(data);
    return true;
}

bool body_append(struct body *body, struct bytes chunk)
{
    if (!body_room(body, chunk.len))
        return false;
    if (chunk.len)
        memcpy(body->data + body->len, chunk.at, chunk.len);
    body->len += chunk.len;
    return true;
}

bool body_own(struct body *body)
{
    if (!body->borrowed)
        return true;
    if (!body_append(body, body->chunk))
        return false;
    body->borrowed = false;
    return true;
}

/*
 * Replace `size` visible bytes at `start` by a gap of `len` bytes and return the gap's address; NULL: no memory.
 * `start` and `size` are already inside what is visible, and the body is owned.
 */
u8 *body_splice(struct body *body, u32 start, u32 size, u32 len)
{
    if (len > size && !body_room(body, len - size))
        return NULL;
    u8 *at = body->data + body->hidden + start;
    u32 tail = body->len - body->hidden - start - size;
    if (len != size && tail)
        memmove(at + len, at + size, tail);
    body->len = body->len - size + len;
    return at;
}

/* Forget the bytes; a small block is kept for the next chunk. */
void body_clear(struct body *body)
{
    if (body->cap > 64 * KIB) {
        heap_free(body->data);
        body->data = NULL;
        body->cap = 0;
    }
    body->len = body->hidden = 0;
    body->borrowed = body->queued = false;
}
