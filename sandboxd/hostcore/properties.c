/*
 * proxy_get_property and proxy_set_property.
 *
 * Looked up in this order: what the policy denies, the plugin's own names, attributes that the client sent, what follows
 * from the header maps, values that the guest has set. A path is its segments joined by NUL; one NUL at the end is
 * optional.
 */
#include "stream.h"

static bool path_equal(struct bytes path, struct bytes other)
{
    return bytes_equal(path, other);
}

static u8 lower(u8 c)
{
    return c >= 'A' && c <= 'Z' ? c | 0x20 : c;
}

/* `prefix` is the path or ends at one of its segments' ends. Header names have no case, so neither has this. */
static bool is_prefix(struct bytes prefix, struct bytes path)
{
    if (prefix.len > path.len || (prefix.len < path.len && path.at[prefix.len] != 0))
        return false;
    for (u32 i = 0; i < prefix.len; i++)
        if (lower(prefix.at[i]) != lower(path.at[i]))
            return false;
    return true;
}

bool property_denied(struct bytes path)
{
    struct pairs_cursor cursor;
    struct bytes prefix, nothing;
    if (!vm.config.denied_properties.len)
        return false;
    pairs_open(vm.config.denied_properties, &cursor);
    while (pairs_next(&cursor, &prefix, &nothing))
        if (is_prefix(prefix, path))
            return true;
    return false;
}

/* ---- attributes -------------------------------------------------------------------------------------------------- */

bool attributes_add(struct stream *stream, struct bytes payload)
{
    struct pairs_cursor cursor;
    if (!pairs_open(payload, &cursor))
        return false;
    if (!cursor.left)
        return true;
    struct attribute_block *block = NULL;
    if (stream->attribute_blocks < MAX_ATTRIBUTE_BLOCKS)
        block = heap_alloc((u32)sizeof *block + payload.len);
    if (!block)
        return false;
    memcpy(block->data, payload.at, payload.len);
    pairs_open((struct bytes){block->data, payload.len}, &block->entries);
    block->next = stream->attributes; /* the newest first: it replaces what is known */
    stream->attributes = block;
    stream->attribute_blocks++;
    return true;
}

static bool attribute_find(const struct stream *stream, struct bytes path, struct bytes *value)
{
    struct bytes key;
    for (const struct attribute_block *block = stream->attributes; block; block = block->next) {
        struct pairs_cursor cursor = block->entries;
        while (pairs_next(&cursor, &key, value))
            if (path_equal(path, key))
                return true;
    }
    return false;
}

/* ---- values that the guest sets ---------------------------------------------------------------------------------- */

static struct property **property_slot(struct stream *stream, struct bytes path)
{
    struct property **at = &stream->properties;
    while (*at && !path_equal(path, (struct bytes){(*at)->data, (*at)->path_len}))
        at = &(*at)->next;
    return at;
}

static void property_send(const struct stream *stream, const struct property *property)
{
    struct entry entry = {0, property->path_len, property->path_len, property->value_len};
    struct map map = {
        .text = (u8 *)(uintptr_t)property->data,
        .entries = &entry,
        .count = 1,
        .live = property->path_len + property->value_len,
    };
    u32 size = pairs_size(&map);
    if (size <= ring_max_payload()) {
        pairs_write(&map, ring_put(COMPLETE_PROPERTY_SET, 0, stream->id, 0, size));
        return;
    }
    u8 *encoded = heap_alloc(size);
    if (!encoded)
        violate(VIOLATION_HEAP);
    pairs_write(&map, encoded);
    ring_put_bytes(COMPLETE_PROPERTY_SET, 0, stream->id, 0, (struct bytes){encoded, size});
    heap_free(encoded);
}

/* What was set in this event, each value once, as it is at the event's end. */
void properties_send(struct stream *stream)
{
    for (struct property *property = stream->properties; property; property = property->next) {
        if (property->unsent)
            property_send(stream, property);
        property->unsent = false;
    }
    stream->touched = false;
}

void properties_free(struct stream *stream)
{
    while (stream->properties) {
        struct property *property = stream->properties;
        stream->properties = property->next;
        heap_free(property);
    }
    while (stream->attributes) {
        struct attribute_block *block = stream->attributes;
        stream->attributes = block->next;
        heap_free(block);
    }
}

/* The path in `text`, without the optional NUL at its end. */
static struct bytes read_path(u32 path, u32 path_len, u8 *text)
{
    guest_read(path, text, path_len);
    if (path_len && text[path_len - 1] == 0)
        path_len--;
    return (struct bytes){text, path_len};
}

/* What the guest has declared of its properties: names, and whether they may be set only once. */
#define MAX_DECLARED 64u

STATE static struct {
    struct declared {
        u8 *name;
        u32 len;
        bool readonly;
    } items[MAX_DECLARED];
    u32 count;
} declared;

static const struct declared *find_declared(struct bytes name)
{
    for (u32 i = 0; i < declared.count; i++)
        if (bytes_equal(name, (struct bytes){declared.items[i].name, declared.items[i].len}))
            return &declared.items[i];
    return NULL;
}

bool property_declare(struct bytes name, bool readonly)
{
    if (name.len > MAX_PATH_BYTES || declared.count == MAX_DECLARED || find_declared(name))
        return false;
    u8 *copy = heap_alloc(name.len ? name.len : 1);
    if (!copy)
        return false;
    memcpy(copy, name.at, name.len);
    declared.items[declared.count++] = (struct declared){copy, name.len, readonly};
    return true;
}

u32 property_put(struct stream *stream, struct bytes name, u32 value_len, u8 **room)
{
    struct property **slot = property_slot(stream, name), *old = *slot;
    const struct declared *rule = old ? find_declared(name) : NULL;
    if (rule && rule->readonly)
        return STATUS_BAD_ARGUMENT;
    u32 freed = old ? old->path_len + old->value_len : 0;
    u64 total = (u64)stream->property_bytes - freed + name.len + value_len;
    if (total > vm.config.limits.property_bytes || total > MAX_PAIRS_BYTES)
        return STATUS_BAD_ARGUMENT;
    struct property *property = heap_alloc((u32)sizeof *property + name.len + value_len);
    if (!property)
        return STATUS_INTERNAL_FAILURE;
    *property = (struct property){old ? old->next : NULL, name.len, value_len, true};
    memcpy(property->data, name.at, name.len);
    *room = property->data + name.len;
    *slot = property;
    heap_free(old);
    stream->property_bytes = (u32)total;
    stream_touch(stream);
    return STATUS_OK;
}

u32 EXPORT(proxy_set_property)(u32 path, u32 path_len, u32 value, u32 value_len)
{
    u8 text[MAX_PATH_BYTES], *room;
    host_call(IN_CALLBACKS);
    if (!guest_ok(path, path_len) || !guest_ok(value, value_len))
        return STATUS_INVALID_MEMORY_ACCESS;
    struct stream *stream = acting_stream();
    if (!stream)
        return STATUS_NOT_FOUND;
    if (path_len > MAX_PATH_BYTES)
        return STATUS_BAD_ARGUMENT;
    u32 status = property_put(stream, read_path(path, path_len, text), value_len, &room);
    if (status == STATUS_OK)
        guest_read(value, room, value_len);
    return status;
}

/* ---- looking up -------------------------------------------------------------------------------------------------- */

static bool plugin_name(struct bytes path, struct bytes *value)
{
    if (path_equal(path, TEXT("plugin_name")))
        *value = vm.config.plugin_name;
    else if (path_equal(path, TEXT("plugin_root_id")))
        *value = vm.config.root_id;
    else if (path_equal(path, TEXT("plugin_vm_id")))
        *value = vm.config.vm_id;
    else
        return false;
    return true;
}

/* An object, not a value: it cannot be serialised. */
static bool is_object(struct bytes path)
{
    return path_equal(path, TEXT("request")) || path_equal(path, TEXT("response")) ||
           path_equal(path, TEXT("connection")) || path_equal(path, TEXT("source")) ||
           path_equal(path, TEXT("destination")) || path_equal(path, TEXT("upstream"));
}

/* ---- what nobody knows ------------------------------------------------------------------------------------------- */

#define MAX_MISSED 64u
#define MAX_MISSED_BYTES 256u

STATE static struct {
    u64 hashes[MAX_MISSED];
    u32 count;
} missed;

/* The client has these in the events: one that is missing there is missing. */
static bool in_header_map(struct bytes path)
{
    return is_prefix(TEXT("request\0headers"), path) || is_prefix(TEXT("response\0headers"), path) ||
           is_prefix(TEXT("response\0trailers"), path);
}

/*
 * Tells the client of an attribute that the plugin would have liked to have, so that it can send it with later streams.
 * Once for each, and a bounded number for each VM; two that collide cost the guest one of them.
 */
static void tell_missed(const struct stream *stream, struct bytes path)
{
    u64 hash = 0xcbf29ce484222325ull; /* FNV-1a */
    if (missed.count == MAX_MISSED || path.len > MAX_MISSED_BYTES || in_header_map(path))
        return;
    for (u32 i = 0; i < path.len; i++)
        hash = (hash ^ path.at[i]) * 0x100000001b3ull;
    for (u32 i = 0; i < missed.count; i++)
        if (missed.hashes[i] == hash)
            return;
    missed.hashes[missed.count++] = hash;
    memcpy(ring_put(COMPLETE_NOTE, 0, stream->id, NOTE_PROPERTY_MISSING, path.len), path.at, path.len);
}

u32 EXPORT(proxy_get_property)(u32 path, u32 path_len, u32 value_out, u32 size_out)
{
    u8 text[MAX_PATH_BYTES];
    struct bytes value;
    host_call(IN_CALLBACKS);
    if (!guest_ok(path, path_len))
        return STATUS_INVALID_MEMORY_ACCESS;
    if (path_len > MAX_PATH_BYTES)
        return STATUS_NOT_FOUND;
    struct bytes name = read_path(path, path_len, text);
    if (!name.len)
        return STATUS_SERIALIZATION_FAILURE;
    if (property_denied(name))
        return STATUS_NOT_FOUND;
    if (plugin_name(name, &value))
        return return_bytes(value, value_out, size_out);
    struct stream *stream = acting_stream();
    if (!stream)
        return STATUS_NOT_FOUND;
    if (attribute_find(stream, name, &value))
        return return_bytes(value, value_out, size_out);
    if (is_object(name))
        return STATUS_SERIALIZATION_FAILURE;
    struct derived_value derived = {0};
    switch (property_derive(stream, name, &derived)) {
    case DERIVED_VALUE: {
        u32 status = return_bytes(derived.bytes, value_out, size_out);
        heap_free(derived.block);
        return status;
    }
    case DERIVED_UNSERIALIZABLE:
        return STATUS_SERIALIZATION_FAILURE;
    case DERIVED_NONE:
        break;
    }
    const struct property *property = *property_slot(stream, name);
    if (!property) {
        tell_missed(stream, name);
        return STATUS_NOT_FOUND;
    }
    value = (struct bytes){property->data + property->path_len, property->value_len};
    return return_bytes(value, value_out, size_out);
}
