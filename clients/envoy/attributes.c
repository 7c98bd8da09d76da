/*
 * Envoy's attributes as Proxy-Wasm properties.
 *
 * Nothing can ask Envoy for one in the middle of a callback, so they are sent with the stream. FEW are always sent to a
 * plugin that can ask for properties; the others once it has asked for them: the VM tells what it could not answer.
 */
#include "module.h"

#include <stdlib.h>
#include <string.h>

enum type { TEXT, NUMBER, TRUTH };

/* When an attribute is read. */
enum when {
    ALWAYS,
    ASKED,   /* from the moment that the plugin has asked for it */
    DERIVED, /* only if the plugin gets no request headers: otherwise the VM makes it from these, as they are by then */
};

struct attribute {
    const char *path; /* segments joined by NUL */
    size_t len;
    int id;
    enum type type;
    enum when when;
};

#define ATTRIBUTE(first, second, id, type, when) \
    {first "\0" second, sizeof first + sizeof second - 1, ENVOY_##id, type, when}

static const struct attribute request_known[] = {
    ATTRIBUTE("request", "path", REQUEST_PATH, TEXT, DERIVED),
    ATTRIBUTE("request", "url_path", REQUEST_URL_PATH, TEXT, DERIVED),
    ATTRIBUTE("request", "host", REQUEST_HOST, TEXT, DERIVED),
    ATTRIBUTE("request", "scheme", REQUEST_SCHEME, TEXT, DERIVED),
    ATTRIBUTE("request", "method", REQUEST_METHOD, TEXT, DERIVED),
    ATTRIBUTE("request", "referer", REQUEST_REFERER, TEXT, DERIVED),
    ATTRIBUTE("request", "useragent", REQUEST_USERAGENT, TEXT, DERIVED),
    ATTRIBUTE("request", "query", REQUEST_QUERY, TEXT, DERIVED),
    ATTRIBUTE("request", "id", REQUEST_ID, TEXT, DERIVED),
    ATTRIBUTE("request", "protocol", REQUEST_PROTOCOL, TEXT, ALWAYS),
    ATTRIBUTE("source", "address", SOURCE_ADDRESS, TEXT, ALWAYS),
    ATTRIBUTE("source", "port", SOURCE_PORT, NUMBER, ALWAYS),
    ATTRIBUTE("destination", "address", DESTINATION_ADDRESS, TEXT, ALWAYS),
    ATTRIBUTE("destination", "port", DESTINATION_PORT, NUMBER, ALWAYS),
    ATTRIBUTE("connection", "id", CONNECTION_ID, NUMBER, ALWAYS),
    ATTRIBUTE("connection", "mtls", CONNECTION_MTLS, TRUTH, ALWAYS),
    ATTRIBUTE("xds", "route_name", XDS_ROUTE_NAME, TEXT, ALWAYS),
    ATTRIBUTE("xds", "virtual_host_name", XDS_VIRTUAL_HOST_NAME, TEXT, ASKED),
    ATTRIBUTE("xds", "cluster_name", XDS_CLUSTER_NAME, TEXT, ASKED),
    ATTRIBUTE("connection", "requested_server_name", CONNECTION_REQUESTED_SERVER_NAME, TEXT, ASKED),
    ATTRIBUTE("connection", "tls_version", CONNECTION_TLS_VERSION, TEXT, ASKED),
    ATTRIBUTE("connection", "subject_local_certificate", CONNECTION_SUBJECT_LOCAL_CERTIFICATE, TEXT, ASKED),
    ATTRIBUTE("connection", "subject_peer_certificate", CONNECTION_SUBJECT_PEER_CERTIFICATE, TEXT, ASKED),
    ATTRIBUTE("connection", "dns_san_local_certificate", CONNECTION_DNS_SAN_LOCAL_CERTIFICATE, TEXT, ASKED),
    ATTRIBUTE("connection", "dns_san_peer_certificate", CONNECTION_DNS_SAN_PEER_CERTIFICATE, TEXT, ASKED),
    ATTRIBUTE("connection", "uri_san_local_certificate", CONNECTION_URI_SAN_LOCAL_CERTIFICATE, TEXT, ASKED),
    ATTRIBUTE("connection", "uri_san_peer_certificate", CONNECTION_URI_SAN_PEER_CERTIFICATE, TEXT, ASKED),
    ATTRIBUTE("connection", "sha256_peer_certificate_digest", CONNECTION_SHA256_PEER_CERTIFICATE_DIGEST, TEXT, ASKED),
};

static const struct attribute response_known[] = {
    ATTRIBUTE("response", "code", RESPONSE_CODE, NUMBER, ALWAYS),
    ATTRIBUTE("response", "code_details", RESPONSE_CODE_DETAILS, TEXT, ALWAYS),
    ATTRIBUTE("upstream", "address", UPSTREAM_ADDRESS, TEXT, ALWAYS),
    ATTRIBUTE("response", "flags", RESPONSE_FLAGS, NUMBER, ASKED),
    ATTRIBUTE("upstream", "port", UPSTREAM_PORT, NUMBER, ASKED),
    ATTRIBUTE("upstream", "local_address", UPSTREAM_LOCAL_ADDRESS, TEXT, ASKED),
    ATTRIBUTE("upstream", "tls_version", UPSTREAM_TLS_VERSION, TEXT, ASKED),
    ATTRIBUTE("upstream", "transport_failure_reason", UPSTREAM_TRANSPORT_FAILURE_REASON, TEXT, ASKED),
    ATTRIBUTE("upstream", "request_attempt_count", UPSTREAM_REQUEST_ATTEMPT_COUNT, NUMBER, ASKED),
    ATTRIBUTE("connection", "transport_failure_reason", CONNECTION_TRANSPORT_FAILURE_REASON, TEXT, ASKED),
    ATTRIBUTE("connection", "termination_details", CONNECTION_TERMINATION_DETAILS, TEXT, ASKED),
};

#define REQUEST_KNOWN (sizeof request_known / sizeof *request_known)
#define RESPONSE_KNOWN (sizeof response_known / sizeof *response_known)
_Static_assert(REQUEST_KNOWN <= MAX_ATTRIBUTES && RESPONSE_KNOWN <= MAX_ATTRIBUTES, "an attribute too many");
_Static_assert(REQUEST_KNOWN + RESPONSE_KNOWN <= 64, "each has a bit");

/* ---- what was asked for ------------------------------------------------------------------------------------------ */

/* Of one plugin, for all threads: what one of its VMs asked for, the others will. Kept for good, as the module is. */
struct asked {
    struct asked *next;
    struct target target;
    char path[PATH_MAX_BYTES + 1];
    _Atomic uint64_t bits;
};

static struct asked *all_asked;
static pthread_mutex_t asked_lock = PTHREAD_MUTEX_INITIALIZER;

_Atomic uint64_t *attributes_asked(const struct link *link)
{
    const struct target *target = &link->target;
    pthread_mutex_lock(&asked_lock);
    struct asked *asked = all_asked;
    while (asked && (strcmp(asked->target.tenant, target->tenant) || strcmp(asked->target.plugin, target->plugin) ||
                     strcmp(asked->path, link->path)))
        asked = asked->next;
    if (!asked && (asked = calloc(1, sizeof *asked))) {
        asked->target = *target;
        memcpy(asked->path, link->path, sizeof asked->path);
        asked->next = all_asked;
        all_asked = asked;
    }
    pthread_mutex_unlock(&asked_lock);
    return asked ? &asked->bits : NULL;
}

static uint64_t bits_of(const struct attribute *known, size_t count, unsigned first, sbx_bytes path)
{
    uint64_t found = 0;
    for (size_t i = 0; i < count; i++)
        if (known[i].when == ASKED && known[i].len == path.len && !memcmp(known[i].path, path.data, path.len))
            found |= 1ull << (first + i);
    return found;
}

void attribute_asked(struct link *link, sbx_bytes path)
{
    uint64_t bits = bits_of(request_known, REQUEST_KNOWN, 0, path);
    bits |= bits_of(response_known, RESPONSE_KNOWN, REQUEST_KNOWN, path);
    if (bits)
        atomic_fetch_or_explicit(link->asked, bits, memory_order_relaxed);
}

/* ---- reading ----------------------------------------------------------------------------------------------------- */

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

static bool is_due(const struct attribute *attribute, bool asked, uint32_t needs)
{
    switch (attribute->when) {
    case ALWAYS: return true;
    case ASKED: return asked;
    default: return !(needs & SBX_NEEDS_REQUEST_HEADERS);
    }
}

static void collect(const struct filter *filter, const struct attribute *known, size_t count, unsigned first,
                    struct attributes *into)
{
    const sbx_policy *policy = sbx_channel_policy(filter->lane->channel);
    uint32_t needs = sbx_policy_needs(policy);
    into->count = into->used = 0;
    if (!(needs & SBX_NEEDS_PROPERTIES))
        return;
    uint64_t asked = atomic_load_explicit(filter->link->asked, memory_order_relaxed);
    for (size_t i = 0; i < count; i++) {
        sbx_bytes value = {NULL, 0};
        if (!is_due(&known[i], asked >> (first + i) & 1, needs) ||
            !sbx_policy_property_visible(policy, known[i].path, known[i].len) ||
            !read(filter->envoy, &known[i], into, &value))
            continue;
        into->pairs[into->count++] = (sbx_pair){{(const uint8_t *)known[i].path, known[i].len}, value};
    }
}

void request_attributes(const struct filter *filter, struct attributes *into)
{
    collect(filter, request_known, REQUEST_KNOWN, 0, into);
}

void response_attributes(const struct filter *filter, struct attributes *into)
{
    collect(filter, response_known, RESPONSE_KNOWN, REQUEST_KNOWN, into);
}
