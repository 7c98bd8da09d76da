/*
 * Bodies: what of them has no verdict yet, and what goes on.
 *
 * Envoy has one buffer for the bodies of all filters of a chain. Before the headers have gone, all in it is this filter's,
 * since no later one has seen the exchange; so what comes stays there, and Envoy's watermarks hold the sender back. Afterwards
 * a later filter may keep bytes in it, and lets go all that is in it when it goes on. So from then on what has no verdict is
 * kept here (`in`), and Envoy's buffer only takes what goes on.
 */
#include "module.h"

#include <stdlib.h>
#include <string.h>

/* ---- bytes of this module ---------------------------------------------------------------------------------------- */

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

static void buffer_drop(struct buffer *buffer, size_t len)
{
    if (len >= buffer->len) {
        buffer_free(buffer);
        return;
    }
    memmove(buffer->at, buffer->at + len, buffer->len - len);
    buffer->len -= len;
}

static bool buffer_move(struct buffer *into, struct buffer *from)
{
    bool well = true;
    if (into->len) {
        well = buffer_add(into, from->at, from->len);
        buffer_free(from);
    } else {
        buffer_free(into);
        *into = *from;
        *from = (struct buffer){0};
    }
    return well;
}

/* ---- what has no verdict yet ------------------------------------------------------------------------------------- */

static int buffered(enum direction direction)
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

static bool received_is_buffered(const struct filter *filter, enum direction direction)
{
    return direction == REQUEST ? ENVOY_CALL(http_received_buffered_request_body)(filter->envoy)
                                : ENVOY_CALL(http_received_buffered_response_body)(filter->envoy);
}

/* Whether what came before the running hook stands in Envoy's buffer, in front of what the hook brought. */
static bool kept_by_envoy(const struct filter *filter, enum direction direction)
{
    return !filter->ways[direction].gone && !(has_received(filter, direction) && received_is_buffered(filter, direction));
}

static size_t kept_size(const struct filter *filter, enum direction direction)
{
    if (kept_by_envoy(filter, direction))
        return ENVOY_CALL(http_get_body_size)(filter->envoy, buffered(direction));
    return filter->ways[direction].in.len;
}

size_t body_size(const struct filter *filter, enum direction direction)
{
    size_t size = kept_size(filter, direction);
    if (has_received(filter, direction))
        size += ENVOY_CALL(http_get_body_size)(filter->envoy, received(direction));
    return size;
}

static void pieces_begin(struct pieces *pieces)
{
    pieces->list = pieces->few;
    pieces->count = 0;
}

static bool add_pieces(const struct filter *filter, int body, struct pieces *into)
{
    size_t count = ENVOY_CALL(http_get_body_chunks_size)(filter->envoy, body), all = into->count + count;
    if (!count)
        return true;
    struct envoy_bytes few[FEW_PIECES], *chunks = count <= FEW_PIECES ? few : calloc(count, sizeof *chunks);
    sbx_bytes *list = all <= FEW_PIECES ? into->few : calloc(all, sizeof *list);
    bool well = chunks && list && ENVOY_CALL(http_get_body_chunks)(filter->envoy, body, chunks);
    if (list && list != into->list) {
        memcpy(list, into->list, into->count * sizeof *list);
        pieces_free(into);
        into->list = list;
    }
    for (size_t i = 0; well && i < count; i++)
        list[into->count++] = (sbx_bytes){(const uint8_t *)chunks[i].at, chunks[i].len};
    if (chunks != few)
        free(chunks);
    return well;
}

void pieces_free(struct pieces *pieces)
{
    if (pieces->list != pieces->few)
        free(pieces->list);
}

bool body_pieces(const struct filter *filter, enum direction direction, struct pieces *into)
{
    const struct buffer *in = &filter->ways[direction].in;
    pieces_begin(into);
    bool well = true;
    if (kept_by_envoy(filter, direction))
        well = add_pieces(filter, buffered(direction), into);
    else if (in->len)
        into->few[into->count++] = (sbx_bytes){in->at, in->len};
    return well && (!has_received(filter, direction) || add_pieces(filter, received(direction), into));
}

/* Adds bytes from the beginning of what has no verdict to what goes on. */
static bool copy_out(struct filter *filter, enum direction direction, size_t len)
{
    struct pieces pieces;
    bool well = body_pieces(filter, direction, &pieces);
    for (size_t i = 0; well && i < pieces.count; i++) {
        size_t part = pieces.list[i].len < len ? pieces.list[i].len : len;
        well = buffer_add(&filter->ways[direction].out, pieces.list[i].data, part);
        len -= part;
    }
    pieces_free(&pieces);
    return well && !len;
}

void body_drop(struct filter *filter, enum direction direction, size_t len)
{
    size_t first = kept_size(filter, direction);
    first = first < len ? first : len;
    if (first && kept_by_envoy(filter, direction))
        ENVOY_CALL(http_drain_body)(filter->envoy, buffered(direction), first);
    else if (first)
        buffer_drop(&filter->ways[direction].in, first);
    if (len > first && has_received(filter, direction))
        ENVOY_CALL(http_drain_body)(filter->envoy, received(direction), len - first);
}

/* ---- what goes on ------------------------------------------------------------------------------------------------ */

bool body_let_go(struct filter *filter, enum direction direction, size_t len)
{
    bool well = !len || copy_out(filter, direction, len);
    body_drop(filter, direction, len);
    return well;
}

bool body_keep(struct filter *filter, enum direction direction)
{
    struct way *way = &filter->ways[direction];
    struct pieces pieces;
    if (!way->gone)
        return true;
    pieces_begin(&pieces);
    bool well = add_pieces(filter, received(direction), &pieces);
    for (size_t i = 0; well && i < pieces.count; i++)
        well = buffer_add(&way->in, pieces.list[i].data, pieces.list[i].len);
    pieces_free(&pieces);
    ENVOY_CALL(http_drain_body)(filter->envoy, received(direction),
                                ENVOY_CALL(http_get_body_size)(filter->envoy, received(direction)));
    return well;
}

/* Gives Envoy what goes on, behind what later filters have kept. */
static bool put(struct filter *filter, enum direction direction)
{
    struct way *way = &filter->ways[direction];
    int where = has_received(filter, direction) ? received(direction) : buffered(direction);
    struct envoy_bytes data = {(const char *)way->out.at, way->out.len};
    bool well = !data.len || ENVOY_CALL(http_append_body)(filter->envoy, where, data);
    if (!well) {
        static const char text[] = "sandboxd: Envoy has no buffer for a body that the plugin let go";
        ENVOY_CALL(log)(ENVOY_LOG_ERROR, (struct envoy_bytes){text, sizeof text - 1});
    }
    buffer_free(&way->out);
    return well;
}

/*
 * Whether a filter behind has kept a part of a request without a length, and would be shown it again with what goes now.
 * Envoy's `buffer` counts it twice then, and what it makes the length of the request is wrong.
 */
static bool would_be_counted_twice(const struct filter *filter, enum direction direction)
{
    static const struct envoy_bytes name = {"content-length", sizeof "content-length" - 1};
    const struct way *way = &filter->ways[direction];
    struct envoy_bytes value;
    return direction == REQUEST && way->gone && way->stopped &&
           ENVOY_CALL(http_get_body_size)(filter->envoy, ENVOY_BUFFERED_REQUEST) &&
           !chain_has_keeper(filter, direction) &&
           !ENVOY_CALL(http_get_header)(filter->envoy, ENVOY_REQUEST_HEADERS, name, &value, 0, NULL);
}

bool body_hand_over(struct filter *filter, enum direction direction)
{
    struct way *way = &filter->ways[direction];
    bool well = true, ours = way->out.len || way->in.len;
    if (would_be_counted_twice(filter, direction)) {
        static const char text[] = "sandboxd: a filter behind this one keeps bodies of requests without a content-length; "
                                   "put it before this one";
        ENVOY_CALL(log)(ENVOY_LOG_ERROR, (struct envoy_bytes){text, sizeof text - 1});
        return false;
    }
    if (has_received(filter, direction)) {
        /* Were something left in Envoy's buffer, and Envoy not stopped, it would stay behind. */
        if (ours || kept_size(filter, direction))
            well = body_let_go(filter, direction, body_size(filter, direction));
    } else if (way->gone) {
        well = buffer_move(&way->out, &way->in);
    } else if (way->out.len) {
        well = body_let_go(filter, direction, body_size(filter, direction));
    }
    way->same = way->stopped = false;
    way->submitted = 0;
    way->gone = true;
    chain_keeps(filter, direction, false);
    return put(filter, direction) && well;
}
