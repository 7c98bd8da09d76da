/*
 * Header maps: proxy_get/add/replace/remove_header_map_value, proxy_get/set_header_map_pairs, ..._size.
 *
 * A map is readable and writable from its callback until it goes on, and readable in proxy_on_log. What an unavailable
 * map answers depends on LENIENT_MAPS: Envoy's statuses make a Rust guest trap, the lenient ones do not.
 */
#include "callouts.h"
#include "stream.h"

#define LAST_MAP 7u

static bool lenient(void)
{
    return vm.config.flags & FLAG_LENIENT_MAPS;
}

/* Map of the acting stream; NULL for the maps of callouts, and without a stream. */
static struct map *map_of(struct stream *stream, u32 id)
{
    if (!stream || id > 3)
        return NULL;
    struct direction *direction = &stream->direction[id / 2];
    return id % 2 ? &direction->trailers : &direction->headers;
}

static struct map *readable(u32 id)
{
    struct stream *stream = acting_stream();
    struct map *map = map_of(stream, id);
    if (id >= 4)
        return callout_map(id);
    return map && (map->open || (stream->logging && map->present)) ? map : NULL;
}

/* Trailers may be added to a message that has none while its last body bytes are in the guest's hands. */
static bool may_add_trailers(const struct stream *stream, u32 id)
{
    const struct direction *direction = &stream->direction[id / 2];
    return id % 2 && direction->body.open && direction->end_held;
}

static struct map *writable(u32 id, bool adding)
{
    struct stream *stream = acting_stream();
    struct map *map = map_of(stream, id);
    if (!map || stream->logging)
        return NULL;
    if (!map->open && adding && may_add_trailers(stream, id)) {
        map->open = map->present = true;
        stream->direction[id / 2].trailers_added = true;
    }
    if (!map->open)
        return NULL;
    return map;
}

/* Status of a write to a map that is not available now. */
static u32 refuse_write(u32 id)
{
    if (id > LAST_MAP || !lenient())
        return STATUS_BAD_ARGUMENT;
    note(acting_stream(), NOTE_MAP_NOT_AVAILABLE);
    return STATUS_OK;
}

#define EACH_BYTE 0x0101010101010101ull

/* Gives eight bytes lower case at once: bit 7 of each byte of `upper` says whether it is from A to Z. */
static u64 lower_eight(u64 eight)
{
    u64 low_bits = eight & 0x7f * EACH_BYTE;
    u64 from_a = low_bits + (0x80 - 'A') * EACH_BYTE, after_z = low_bits + (0x7f - 'Z') * EACH_BYTE;
    u64 upper = (from_a ^ after_z) & ~eight & 0x80 * EACH_BYTE;
    return eight | upper >> 2;
}

static void lower_case(u8 *text, u32 len)
{
    for (; len >= 8; len -= 8, text += 8)
        store_u64(text, lower_eight(load_u64(text)));
    for (u32 i = 0; i < len; i++)
        if (text[i] >= 'A' && text[i] <= 'Z')
            text[i] |= 0x20;
}

/* The key in lower case, in the scratch buffer; its range and length have been checked. */
static struct bytes read_key(u32 key, u32 key_len)
{
    guest_read(key, scratch, key_len);
    lower_case(scratch, (key_len + 7) & ~7u); /* the scratch buffer has room for the last eight */
    return (struct bytes){scratch, key_len};
}

u32 EXPORT(proxy_get_header_map_value)(u32 id, u32 key, u32 key_len, u32 value_out, u32 size_out)
{
    host_call(IN_CALLBACKS);
    bool old_abi = vm.config.abi == ABI_0_1_0;
    if (id > LAST_MAP)
        return STATUS_BAD_ARGUMENT;
    if (!guest_ok(key, key_len))
        return STATUS_INVALID_MEMORY_ACCESS;
    const struct map *map = readable(id);
    if (!map && !lenient())
        return STATUS_BAD_ARGUMENT;
    i32 at = map && key_len <= MAX_KEY_BYTES ? map_find(map, read_key(key, key_len), 0) : -1;
    if (at >= 0)
        return return_bytes(map_value(map, (u32)at), value_out, size_out);
    return old_abi ? return_bytes((struct bytes){0}, value_out, size_out) : STATUS_NOT_FOUND;
}

u32 EXPORT(proxy_add_header_map_value)(u32 id, u32 key, u32 key_len, u32 value, u32 value_len)
{
    host_call(IN_CALLBACKS);
    if (id > LAST_MAP)
        return STATUS_BAD_ARGUMENT;
    if (!guest_ok(key, key_len) || !guest_ok(value, value_len))
        return STATUS_INVALID_MEMORY_ACCESS;
    if (key_len > MAX_KEY_BYTES)
        return STATUS_BAD_ARGUMENT;
    struct map *map = writable(id, true);
    if (!map)
        return refuse_write(id);
    u8 *room = map_reserve(map, key_len, value_len);
    if (!room)
        return STATUS_BAD_ARGUMENT;
    guest_read(key, room, key_len);
    lower_case(room, key_len);
    guest_read(value, room + key_len, value_len);
    map_commit(map, key_len, value_len);
    map->modified = true;
    return STATUS_OK;
}

/* The first entry of that name gets the value, the others go; without one, a new entry is added at the end. */
u32 EXPORT(proxy_replace_header_map_value)(u32 id, u32 key, u32 key_len, u32 value, u32 value_len)
{
    host_call(IN_CALLBACKS);
    if (id > LAST_MAP)
        return STATUS_BAD_ARGUMENT;
    if (!guest_ok(key, key_len) || !guest_ok(value, value_len))
        return STATUS_INVALID_MEMORY_ACCESS;
    if (key_len > MAX_KEY_BYTES)
        return STATUS_BAD_ARGUMENT;
    struct map *map = writable(id, true);
    if (!map)
        return refuse_write(id);
    struct bytes name = read_key(key, key_len);
    i32 at = map_find(map, name, 0);
    u8 *room = map_reserve(map, at < 0 ? key_len : 0, value_len);
    if (!room)
        return STATUS_BAD_ARGUMENT;
    if (at < 0) {
        memcpy(room, name.at, key_len);
        guest_read(value, room + key_len, value_len);
        map_commit(map, key_len, value_len);
    } else {
        guest_read(value, room, value_len);
        map_replace_at(map, (u32)at, value_len);
        map_remove(map, name, (u32)at + 1);
    }
    map->modified = true;
    return STATUS_OK;
}

u32 EXPORT(proxy_remove_header_map_value)(u32 id, u32 key, u32 key_len)
{
    host_call(IN_CALLBACKS);
    if (id > LAST_MAP)
        return STATUS_BAD_ARGUMENT;
    if (!guest_ok(key, key_len))
        return STATUS_INVALID_MEMORY_ACCESS;
    struct map *map = writable(id, false);
    if (!map)
        return refuse_write(id);
    if (key_len <= MAX_KEY_BYTES && map_remove(map, read_key(key, key_len), 0))
        map->modified = true;
    return STATUS_OK;
}

/* The empty map, and one that is not available, is address 0 and size 0. */
u32 EXPORT(proxy_get_header_map_pairs)(u32 id, u32 pairs_out, u32 size_out)
{
    host_call(IN_CALLBACKS);
    if (id > LAST_MAP)
        return STATUS_BAD_ARGUMENT;
    const struct map *map = readable(id);
    if (!map || !map->count)
        return return_bytes((struct bytes){0}, pairs_out, size_out);
    if (map->wire_len)
        return return_bytes((struct bytes){map->text, map->wire_len}, pairs_out, size_out);
    u32 size = pairs_size(map);
    u8 *encoded = heap_alloc(size);
    if (!encoded)
        return STATUS_INTERNAL_FAILURE;
    pairs_write(map, encoded);
    u32 status = return_bytes((struct bytes){encoded, size}, pairs_out, size_out);
    heap_free(encoded);
    return status;
}

u32 EXPORT(proxy_set_header_map_pairs)(u32 id, u32 pairs, u32 size)
{
    host_call(IN_CALLBACKS);
    if (id > LAST_MAP)
        return STATUS_BAD_ARGUMENT;
    if (!guest_ok(pairs, size))
        return STATUS_INVALID_MEMORY_ACCESS;
    if (size > MAX_PAIRS_BYTES)
        return STATUS_BAD_ARGUMENT;
    struct map *map = writable(id, false);
    if (!map)
        return refuse_write(id);
    u8 *text = heap_alloc(size);
    if (!text)
        return STATUS_INTERNAL_FAILURE;
    guest_read(pairs, text, size);
    struct pairs_cursor cursor;
    if (!pairs_open((struct bytes){text, size}, &cursor)) {
        heap_free(text);
        return STATUS_BAD_ARGUMENT;
    }
    if (!map_take(map, text, size)) {
        map_clear(map);
        return STATUS_INTERNAL_FAILURE;
    }
    for (u32 i = 0; i < map->count; i++)
        lower_case(map->text + map->entries[i].key, map->entries[i].key_len);
    map->modified = true;
    return STATUS_OK;
}

/* Envoy's reading of "size": the sum of all key and value lengths. */
u32 EXPORT(proxy_get_header_map_size)(u32 id, u32 size_out)
{
    host_call(IN_CALLBACKS);
    if (id > LAST_MAP)
        return STATUS_BAD_ARGUMENT;
    const struct map *map = readable(id);
    if (!map && !lenient())
        return STATUS_BAD_ARGUMENT;
    return guest_write_u32(size_out, map ? map->live : 0) ? STATUS_OK : STATUS_INVALID_MEMORY_ACCESS;
}
