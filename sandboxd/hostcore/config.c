/* The configuration blob: a sequence of {u32 tag, u32 length, bytes, padding to 8}; docs/hostcore.md. */
#include "hostcore.h"

enum tag {
    TAG_PLUGIN_NAME = 1,
    TAG_ROOT_ID,
    TAG_VM_ID,
    TAG_VM_CONFIGURATION,
    TAG_PLUGIN_CONFIGURATION,
    TAG_ENVIRONMENT,
    TAG_LIMITS,
    TAG_FLAGS,
    TAG_ENTROPY,
    TAG_START_TIME_NS,
    TAG_DENIED_PROPERTIES,
    TAG_CALLBACKS,
    TAG_ABI,
    TAG_GENERATION,
    TAG_RING_BYTES,
    TAG_SHARED,
    TAG_UPSTREAMS,
    TAG_FOLDERS,
    TAG_OPEN_FILES,
    TAG_COUNT,
};
#define REQUIRED                                                                                                       \
    (1u << TAG_PLUGIN_NAME | 1u << TAG_ROOT_ID | 1u << TAG_VM_ID | 1u << TAG_LIMITS | 1u << TAG_FLAGS |               \
     1u << TAG_ENTROPY | 1u << TAG_START_TIME_NS | 1u << TAG_CALLBACKS | 1u << TAG_ABI | 1u << TAG_GENERATION |       \
     1u << TAG_RING_BYTES)
#define BAD_ENTRY 1000u
#define MIN_HEAP_BYTES (1u * MIB)
#define MIN_RING_BYTES (64u * KIB)
#define MAX_RING_BYTES (4u * MIB)
#define MIN_SHARED_BYTES (64u * KIB)
#define MAX_SHARED_BYTES (32u * MIB)
#define LOG_LEVEL_SHIFT 8
#define LOG_LEVEL_MASK 7u

static bool read_u32(struct bytes data, u32 *to)
{
    if (data.len != 4)
        return false;
    *to = load_u32(data.at);
    return true;
}

static bool read_u64(struct bytes data, u64 *to)
{
    if (data.len != 8)
        return false;
    *to = load_u64(data.at);
    return true;
}

static bool read_limits(struct bytes data, struct limits *limits)
{
    if (data.len != sizeof *limits)
        return false;
    memcpy(limits, data.at, sizeof *limits);
    return limits->heap_bytes >= MIN_HEAP_BYTES;
}

static bool read_flags(struct bytes data, struct config *config)
{
    if (!read_u64(data, &config->flags))
        return false;
    config->min_log_level = config->flags >> LOG_LEVEL_SHIFT & LOG_LEVEL_MASK;
    config->flags &= (1u << LOG_LEVEL_SHIFT) - 1;
    return true;
}

static bool read_pairs(struct bytes data, struct bytes *to)
{
    struct pairs_cursor cursor;
    *to = data;
    return pairs_open(data, &cursor);
}

static bool read_text(struct bytes data, struct bytes *to)
{
    *to = data;
    return true;
}

static bool ring_size_ok(u32 bytes)
{
    return bytes >= MIN_RING_BYTES && bytes <= MAX_RING_BYTES && (bytes & (bytes - 1)) == 0;
}

/* The shared region's size, and this VM's number in it. */
static bool read_shared(struct bytes data, struct config *config)
{
    if (data.len != 8)
        return false;
    config->shared_bytes = load_u32(data.at);
    config->vm_number = load_u32(data.at + 4);
    bool sized = config->shared_bytes >= MIN_SHARED_BYTES && config->shared_bytes <= MAX_SHARED_BYTES &&
                 config->shared_bytes % 4096 == 0;
    return sized && config->vm_number != 0 && config->vm_number != UINT32_MAX;
}

static bool read_entry(u32 tag, struct bytes data, struct config *config)
{
    switch (tag) {
    case TAG_PLUGIN_NAME:
        return read_text(data, &config->plugin_name);
    case TAG_ROOT_ID:
        return read_text(data, &config->root_id);
    case TAG_VM_ID:
        return read_text(data, &config->vm_id);
    case TAG_VM_CONFIGURATION:
        return read_text(data, &config->vm_configuration);
    case TAG_PLUGIN_CONFIGURATION:
        return read_text(data, &config->plugin_configuration);
    case TAG_ENVIRONMENT:
        return read_pairs(data, &config->environment);
    case TAG_LIMITS:
        return read_limits(data, &config->limits);
    case TAG_FLAGS:
        return read_flags(data, config);
    case TAG_ENTROPY:
        return read_text(data, &config->entropy) && data.len == 32;
    case TAG_START_TIME_NS:
        return read_u64(data, &config->start_time_ns);
    case TAG_DENIED_PROPERTIES:
        return read_pairs(data, &config->denied_properties);
    case TAG_CALLBACKS:
        return read_u64(data, &config->callbacks);
    case TAG_ABI:
        return read_u32(data, &config->abi) && config->abi >= ABI_0_1_0 && config->abi <= ABI_0_2_1;
    case TAG_GENERATION:
        return read_u32(data, &config->generation);
    case TAG_RING_BYTES:
        return read_u32(data, &config->ring_bytes) && ring_size_ok(config->ring_bytes);
    case TAG_SHARED:
        return read_shared(data, config);
    case TAG_UPSTREAMS:
        return read_pairs(data, &config->upstreams);
    case TAG_FOLDERS:
        return read_text(data, &config->folders);
    case TAG_OPEN_FILES:
        return read_u32(data, &config->open_files);
    default:
        return false;
    }
}

/* Returns 0, or 1000 plus the tag of the entry that is bad, repeated or missing; 1000 if the blob ends inside one. */
u32 config_parse(struct bytes blob, struct config *config)
{
    u32 seen = 0;
    *config = (struct config){0};
    while (blob.len) {
        if (blob.len < 8)
            return BAD_ENTRY;
        u32 tag = load_u32(blob.at), len = load_u32(blob.at + 4);
        u64 whole = 8 + (((u64)len + 7) & ~7ull);
        if (whole > blob.len)
            return BAD_ENTRY;
        if (tag == 0 || tag >= TAG_COUNT || seen & 1u << tag)
            return BAD_ENTRY + tag;
        if (!read_entry(tag, (struct bytes){blob.at + 8, len}, config))
            return BAD_ENTRY + tag;
        seen |= 1u << tag;
        blob.at += whole;
        blob.len -= (u32)whole;
    }
    for (u32 tag = 1; tag < TAG_COUNT; tag++)
        if (REQUIRED & 1u << tag && !(seen & 1u << tag))
            return BAD_ENTRY + tag;
    return 0;
}
