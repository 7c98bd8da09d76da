/* The compiled policy that the daemon hands over; docs/attach.md. */
#include "internal.h"

#include <stdlib.h>

#define POLICY_MAGIC 0x50584253u /* SBXP */
#define POLICY_VERSION 1u
#define MAX_POLICY_BYTES (16u * MIB)
#define MIN_KEY_BYTES 16u
#define MAX_KEY_BYTES 64u

enum tag {
    TAG_TENANT = 1,
    TAG_PLUGIN,
    TAG_KEY,
    TAG_NEEDS,
    TAG_LIMITS,
    TAG_FAILURE,
    TAG_WRITE,
    TAG_DENIED_HEADERS,
    TAG_ALLOWED_HEADERS,
    TAG_REDACT, /* four of them, in the order of enum section */
    TAG_PROPERTIES = TAG_REDACT + SECTIONS,
    TAG_IMPORTS,
    TAG_LAST = TAG_IMPORTS,
};

#define REQUIRED (1u << TAG_TENANT | 1u << TAG_PLUGIN | 1u << TAG_KEY | 1u << TAG_NEEDS | 1u << TAG_LIMITS | \
                  1u << TAG_FAILURE | 1u << TAG_WRITE | 15u << TAG_REDACT)

/* Reads `count` u64; false: another length. */
static bool numbers(sbx_bytes content, uint64_t *to, size_t count)
{
    if (content.len != 8 * count)
        return false;
    for (size_t i = 0; i < count; i++)
        to[i] = get_u64(content.data + 8 * i);
    return true;
}

static bool read_limits(sbx_policy *policy, sbx_bytes content)
{
    uint64_t given[6];
    if (!numbers(content, given, 6))
        return false;
    for (size_t i = 0; i < 3; i++)
        if (given[i] > 1ull << 40)
            return false;
    uint64_t body = given[0], lines = given[1], bytes = given[2];
    policy->limits = (sbx_limits){
        /* As EventLimits.of in sandboxd/channel/completions.py. */
        .max_effects = 16384 + lines + body / 4096,
        .max_bytes = 4 * body + bytes + 64 * lines + 8 * MIB,
        .body_buffer_bytes = body,
        .time_per_event_ns = given[3],
        .open_streams = given[4],
        .time_per_pause_ns = given[5],
    };
    policy->loose_per_window = 8192 + lines;
    return true;
}

static bool read_failure(sbx_policy *policy, sbx_bytes content)
{
    uint64_t given[2];
    if (!numbers(content, given, 2) || given[0] > ON_FAILURE_RELOAD || given[1] < 200 || given[1] > 599)
        return false;
    policy->failure = given[0];
    policy->failure_status = given[1];
    return true;
}

static bool read_write(sbx_policy *policy, sbx_bytes content)
{
    uint64_t given[4];
    if (!numbers(content, given, 4))
        return false;
    policy->write_flags = given[0];
    policy->max_headers = given[1];
    policy->max_header_bytes = given[2];
    policy->max_headers_bytes = given[3];
    return true;
}

/* Paths are not looked up by hash: a policy has few, their case matters, and so does each segment's end. */
static bool read_properties(sbx_policy *policy, sbx_bytes content)
{
    struct pattern pattern;
    bool is_prefix;
    uint32_t count = 0;
    for (size_t at = 0; at < content.len; count++)
        if (!rules_read(content, &at, 1, &pattern, &is_prefix) || is_prefix)
            return false;
    policy->properties = count ? calloc(count, sizeof *policy->properties) : NULL;
    if (count && !policy->properties)
        return false;
    for (size_t at = 0; at < content.len; policy->property_count++)
        rules_read(content, &at, 1, &policy->properties[policy->property_count], &is_prefix);
    return true;
}

static bool read_entry(sbx_policy *policy, uint32_t tag, sbx_bytes content)
{
    switch (tag) {
    case TAG_TENANT:
        policy->tenant = content;
        return true;
    case TAG_PLUGIN:
        policy->plugin = content;
        return true;
    case TAG_KEY:
        policy->key = content;
        return content.len >= MIN_KEY_BYTES && content.len <= MAX_KEY_BYTES;
    case TAG_NEEDS:
        return numbers(content, &policy->needs, 1);
    case TAG_LIMITS:
        return read_limits(policy, content);
    case TAG_FAILURE:
        return read_failure(policy, content);
    case TAG_WRITE:
        return read_write(policy, content);
    case TAG_DENIED_HEADERS:
        return rules_build(&policy->denied, content, 1);
    case TAG_ALLOWED_HEADERS:
        policy->has_allowed = true;
        return rules_build(&policy->allowed, content, 1);
    case TAG_PROPERTIES:
        return read_properties(policy, content);
    case TAG_IMPORTS:
        policy->imports = content;
        return content.len == 0 || content.data[content.len - 1] == 0;
    default:
        return rules_build(&policy->redact[tag - TAG_REDACT], content, MODES - 1);
    }
}

/* Returns NULL, or what is wrong. */
static const char *read_blob(sbx_policy *policy, const uint8_t *data, size_t len)
{
    if (len < 8 || get_u32(data) != POLICY_MAGIC || get_u32(data + 4) != POLICY_VERSION)
        return "has another magic or version";
    uint32_t seen = 0;
    for (size_t at = 8; at < len;) {
        if (len - at < 8)
            return "ends inside an entry";
        uint32_t tag = get_u32(data + at);
        size_t size = get_u32(data + at + 4), padded = (size + 7) & ~(size_t)7;
        at += 8;
        if (size > len - at || padded > len - at)
            return "ends inside an entry";
        if (tag == 0 || tag > TAG_LAST || seen >> tag & 1)
            return "has an unknown entry, or one twice";
        if (!read_entry(policy, tag, (sbx_bytes){data + at, size}))
            return "has a malformed entry";
        seen |= 1u << tag;
        at += padded;
    }
    return (seen & REQUIRED) == REQUIRED ? NULL : "lacks an entry";
}

int sbx_policy_load(const void *data, size_t len, sbx_policy **policy, sbx_error *error)
{
    *policy = NULL;
    if (len > MAX_POLICY_BYTES)
        return fail(error, SBX_PROTOCOL, "compiled policy of %zu bytes, at most %u are allowed", len, MAX_POLICY_BYTES);
    sbx_policy *made = calloc(1, sizeof *made);
    if (!made || !(made->blob = malloc(len + 1))) {
        free(made);
        return fail(error, SBX_NO_MEMORY, "no memory for a policy");
    }
    made->owners = 1;
    if (len)
        memcpy(made->blob, data, len);
    const char *problem = read_blob(made, made->blob, len);
    if (problem) {
        sbx_policy_release(made);
        return fail(error, SBX_PROTOCOL, "compiled policy %s", problem);
    }
    *policy = made;
    return SBX_OK;
}

sbx_policy *sbx_policy_keep(sbx_policy *policy)
{
    __atomic_fetch_add(&policy->owners, 1, __ATOMIC_RELAXED);
    return policy;
}

void sbx_policy_release(sbx_policy *policy)
{
    if (!policy || __atomic_fetch_sub(&policy->owners, 1, __ATOMIC_ACQ_REL) != 1)
        return;
    for (int i = 0; i < SECTIONS; i++)
        rules_free(&policy->redact[i]);
    rules_free(&policy->denied);
    rules_free(&policy->allowed);
    free(policy->properties);
    free(policy->blob);
    free(policy);
}

uint32_t sbx_policy_needs(const sbx_policy *policy)
{
    return (uint32_t)policy->needs;
}

void sbx_policy_limits(const sbx_policy *policy, sbx_limits *limits)
{
    *limits = policy->limits;
}

sbx_bytes sbx_policy_tenant(const sbx_policy *policy)
{
    return policy->tenant;
}

sbx_bytes sbx_policy_plugin(const sbx_policy *policy)
{
    return policy->plugin;
}

sbx_bytes sbx_policy_import(const sbx_policy *policy, uint64_t index)
{
    sbx_bytes left = policy->imports;
    while (left.len) {
        const uint8_t *end = memchr(left.data, 0, left.len); /* the last one ends with NUL as well */
        size_t len = (size_t)(end - left.data);
        if (index-- == 0)
            return (sbx_bytes){left.data, len};
        left = (sbx_bytes){left.data + len + 1, left.len - len - 1};
    }
    return (sbx_bytes){NULL, 0};
}
