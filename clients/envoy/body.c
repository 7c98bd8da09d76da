/* Bodies: what Envoy holds of them, first what it kept because this filter stopped, then what the running hook brought. */
#include "module.h"

#include <stdlib.h>
#include <string.h>

void buffer_free(struct buffer *buffer)
{
    free(buffer->at);
    *buffer = (struct buffer){0};
}

bool buffer_add(struct buffer *buffer, const void *data, size_t len)
{
    if (len > buffer->room - buffer->len) {
        size_t room = buffer->len + len;
        uint8_t *grown = room < len ? NULL : realloc(buffer->at, room + room / 2);
        if (!grown)
            return false;
        buffer->at = grown;
        buffer->room = room + room / 2;
    }
    if (len)
        memcpy(buffer->at + buffer->len, data, len);
    buffer->len += len;
    return true;
}

static int kept(enum direction direction)
{
    return direction == REQUEST ? ENVOY_BUFFERED_REQUEST : ENVOY_BUFFERED_RESPONSE;
}

static int received(enum direction direction)
{
    return direction == REQUEST ? ENVOY_RECEIVED_REQUEST : ENVOY_RECEIVED_RESPONSE;
}

static bool has_received(const struct filter *filter, enum direction direction)
{
    return filter->inside_body && filter->inside == (int)direction;
}

size_t body_size(struct filter *filter, enum direction direction)
{
    size_t size = ENVOY_CALL(http_get_body_size)(filter->envoy, kept(direction));
    if (has_received(filter, direction))
        size += ENVOY_CALL(http_get_body_size)(filter->envoy, received(direction));
    return size;
}

static bool copy_from(struct filter *filter, int body, size_t *skip, size_t *len, struct buffer *into)
{
    size_t count = ENVOY_CALL(http_get_body_chunks_size)(filter->envoy, body);
    if (!count || !*len)
        return true;
    struct envoy_bytes few[BODY_PIECES], *chunks = count <= BODY_PIECES ? few : calloc(count, sizeof *chunks);
    bool well = chunks && ENVOY_CALL(http_get_body_chunks)(filter->envoy, body, chunks);
    for (size_t i = 0; well && i < count && *len; i++) {
        size_t over = *skip < chunks[i].len ? *skip : chunks[i].len;
        size_t left = chunks[i].len - over;
        left = left < *len ? left : *len;
        *skip -= over;
        *len -= left;
        well = buffer_add(into, chunks[i].at + over, left);
    }
    if (chunks != few)
        free(chunks);
    return well;
}

bool body_copy(struct filter *filter, enum direction direction, size_t skip, size_t len, struct buffer *into)
{
    return copy_from(filter, kept(direction), &skip, &len, into) &&
           (!has_received(filter, direction) || copy_from(filter, received(direction), &skip, &len, into));
}

void body_drop(struct filter *filter, enum direction direction, size_t len)
{
    size_t first = ENVOY_CALL(http_get_body_size)(filter->envoy, kept(direction));
    first = first < len ? first : len;
    if (first)
        ENVOY_CALL(http_drain_body)(filter->envoy, kept(direction), first);
    if (len > first && has_received(filter, direction))
        ENVOY_CALL(http_drain_body)(filter->envoy, received(direction), len - first);
}

/* Gives Envoy what goes on. It has nothing else of this body then, or it stands behind this. */
void body_put(struct filter *filter, enum direction direction)
{
    struct way *way = &filter->ways[direction];
    int where = has_received(filter, direction) ? received(direction) : kept(direction);
    if (!way->out.len)
        return;
    struct envoy_bytes data = {(const char *)way->out.at, way->out.len};
    if (!ENVOY_CALL(http_append_body)(filter->envoy, where, data)) {
        static const char text[] = "sandboxd: Envoy has no buffer for a body that the plugin let go";
        ENVOY_CALL(log)(ENVOY_LOG_ERROR, (struct envoy_bytes){text, sizeof text - 1});
        filter->close = true;
    }
    buffer_free(&way->out);
}
