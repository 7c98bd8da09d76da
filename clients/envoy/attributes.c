/* Envoy's attributes as Proxy-Wasm properties: read only for plugins that can ask for properties. */
#include "module.h"

#include <string.h>

enum type { TEXT, NUMBER, TRUTH };

struct attribute {
    const char *path; /* segments joined by NUL */
    size_t len;
    int id;
    enum type type;
};

#define ATTRIBUTE(first, second, id, type) {first "\0" second, sizeof first + sizeof second - 1, id, type}

static const struct attribute request_known[] = {
    ATTRIBUTE("request", "path", ENVOY_REQUEST_PATH, TEXT),
    ATTRIBUTE("request", "url_path", ENVOY_REQUEST_URL_PATH, TEXT),
    ATTRIBUTE("request", "host", ENVOY_REQUEST_HOST, TEXT),
    ATTRIBUTE("request", "scheme", ENVOY_REQUEST_SCHEME, TEXT),
    ATTRIBUTE("request", "method", ENVOY_REQUEST_METHOD, TEXT),
    ATTRIBUTE("request", "referer", ENVOY_REQUEST_REFERER, TEXT),
    ATTRIBUTE("request", "useragent", ENVOY_REQUEST_USERAGENT, TEXT),
    ATTRIBUTE("request", "id", ENVOY_REQUEST_ID, TEXT),
    ATTRIBUTE("request", "protocol", ENVOY_REQUEST_PROTOCOL, TEXT),
    ATTRIBUTE("request", "query", ENVOY_REQUEST_QUERY, TEXT),
    ATTRIBUTE("source", "address", ENVOY_SOURCE_ADDRESS, TEXT),
    ATTRIBUTE("source", "port", ENVOY_SOURCE_PORT, NUMBER),
    ATTRIBUTE("destination", "address", ENVOY_DESTINATION_ADDRESS, TEXT),
    ATTRIBUTE("destination", "port", ENVOY_DESTINATION_PORT, NUMBER),
    ATTRIBUTE("connection", "id", ENVOY_CONNECTION_ID, NUMBER),
    ATTRIBUTE("connection", "mtls", ENVOY_CONNECTION_MTLS, TRUTH),
    ATTRIBUTE("xds", "route_name", ENVOY_XDS_ROUTE_NAME, TEXT),
};

static const struct attribute response_known[] = {
    ATTRIBUTE("response", "code", ENVOY_RESPONSE_CODE, NUMBER),
    ATTRIBUTE("response", "code_details", ENVOY_RESPONSE_CODE_DETAILS, TEXT),
    ATTRIBUTE("upstream", "address", ENVOY_UPSTREAM_ADDRESS, TEXT),
};

static void keep(struct attributes *into, const void *data, size_t len, sbx_bytes *value)
{
    if (len > sizeof into->space - into->used)
        return;
    memcpy(into->space + into->used, data, len);
    *value = (sbx_bytes){into->space + into->used, len};
    into->used += len;
}

static bool read(void *envoy, const struct attribute *attribute, struct attributes *into, sbx_bytes *value)
{
    struct envoy_bytes text = {NULL, 0};
    uint64_t number = 0;
    bool truth = false;
    switch (attribute->type) {
    case TEXT:
        if (!ENVOY_CALL(http_filter_get_attribute_string)(envoy, attribute->id, &text))
            return false;
        *value = (sbx_bytes){(const uint8_t *)text.at, text.len};
        return true;
    case NUMBER:
        if (!ENVOY_CALL(http_filter_get_attribute_int)(envoy, attribute->id, &number))
            return false;
        keep(into, &number, sizeof number, value); /* little-endian, as the guests expect it */
        return true;
    default:
        /* Of a connection without TLS Envoy has no such attribute: it is not mutual either. */
        (void)ENVOY_CALL(http_filter_get_attribute_bool)(envoy, attribute->id, &truth);
        keep(into, &truth, 1, value);
        return true;
    }
}

static void collect(const struct filter *filter, const struct attribute *known, size_t count, struct attributes *into)
{
    const sbx_policy *policy = sbx_channel_policy(filter->lane->channel);
    into->count = into->used = 0;
    if (!(sbx_policy_needs(policy) & SBX_NEEDS_PROPERTIES))
        return;
    for (size_t i = 0; i < count; i++) {
        sbx_bytes value = {NULL, 0};
        if (!sbx_policy_property_visible(policy, known[i].path, known[i].len) ||
            !read(filter->envoy, &known[i], into, &value))
            continue;
        into->pairs[into->count++] = (sbx_pair){{(const uint8_t *)known[i].path, known[i].len}, value};
    }
}

void request_attributes(const struct filter *filter, struct attributes *into)
{
    collect(filter, request_known, sizeof request_known / sizeof request_known[0], into);
}

void response_attributes(const struct filter *filter, struct attributes *into)
{
    collect(filter, response_known, sizeof response_known / sizeof response_known[0], into);
}
