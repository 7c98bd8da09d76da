/* Which properties the plugin may be told; as Redactor.property_visible in sandboxd/policy/redact.py. */
#include "internal.h"

struct alias {
    sbx_bytes path; /* two segments */
    enum section section;
    sbx_bytes header;
};

#define ALIAS(path, section, header) {LITERAL_INIT(path), section, LITERAL_INIT(header)}

/* Properties whose value is one header's: a header that is hidden must not come in through them. */
static const struct alias aliases[] = {
    ALIAS("request\0path", SECTION_REQUEST_HEADERS, ":path"),
    ALIAS("request\0url_path", SECTION_REQUEST_HEADERS, ":path"),
    ALIAS("request\0query", SECTION_REQUEST_HEADERS, ":path"),
    ALIAS("request\0host", SECTION_REQUEST_HEADERS, ":authority"),
    ALIAS("request\0scheme", SECTION_REQUEST_HEADERS, ":scheme"),
    ALIAS("request\0method", SECTION_REQUEST_HEADERS, ":method"),
    ALIAS("request\0referer", SECTION_REQUEST_HEADERS, "referer"),
    ALIAS("request\0useragent", SECTION_REQUEST_HEADERS, "user-agent"),
    ALIAS("request\0id", SECTION_REQUEST_HEADERS, "x-request-id"),
    ALIAS("response\0code", SECTION_RESPONSE_HEADERS, ":status"),
    ALIAS("response\0grpc_status", SECTION_RESPONSE_TRAILERS, "grpc-status"),
};

/* Properties that are header maps; the next segment is a header's name. */
static const struct alias maps[] = {
    ALIAS("request\0headers", SECTION_REQUEST_HEADERS, ""),
    ALIAS("response\0headers", SECTION_RESPONSE_HEADERS, ""),
    ALIAS("response\0trailers", SECTION_RESPONSE_TRAILERS, ""),
};

/* Whether `path` is `start` or lies under it. */
static bool under(sbx_bytes path, sbx_bytes start)
{
    if (!start.len)
        return true;
    return path.len >= start.len && memcmp(path.data, start.data, start.len) == 0 &&
           (path.len == start.len || path.data[start.len] == 0);
}

static bool shown_by_rules(const sbx_policy *policy, sbx_bytes path)
{
    const struct pattern *longest = NULL;
    for (uint32_t i = 0; i < policy->property_count; i++) {
        const struct pattern *rule = &policy->properties[i];
        bool hidden_inside = !rule->mode && rule->name.len > path.len && under(rule->name, path);
        if (hidden_inside)
            return false;
        if (under(path, rule->name) && (!longest || rule->name.len > longest->name.len))
            longest = rule;
    }
    return !longest || longest->mode;
}

static bool header_shown(const sbx_policy *policy, enum section section, sbx_bytes name)
{
    return header_mode(policy, section, name) == MODE_SHOW;
}

bool sbx_policy_property_visible(const sbx_policy *policy, const void *data, size_t len)
{
    sbx_bytes path = {data, len};
    if (!shown_by_rules(policy, path))
        return false;
    for (size_t i = 0; i < sizeof maps / sizeof *maps; i++) {
        size_t start = maps[i].path.len + 1;
        if (path.len >= start && under(path, maps[i].path)) {
            const uint8_t *name = path.data + start, *end = memchr(name, 0, path.len - start);
            return header_shown(policy, maps[i].section, (sbx_bytes){name, end ? (size_t)(end - name) : path.len - start});
        }
    }
    for (size_t i = 0; i < sizeof aliases / sizeof *aliases; i++)
        if (under(path, aliases[i].path))
            return header_shown(policy, aliases[i].section, aliases[i].header);
    return true;
}
