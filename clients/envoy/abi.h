/*
 * The part of Envoy's dynamic-module ABI that this module uses: names, argument lists and numbers, as Envoy 1.40 has them.
 *
 * ENVOY_ABI_VERSION is Envoy 1.40's version of it. The next minor version of the ABI takes such a module too; a string
 * that is not Envoy's own brings a warning and nothing else, but a missing hook the refusal of the filter.
 */
#ifndef SANDBOXD_ENVOY_ABI_H
#define SANDBOXD_ENVOY_ABI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ENVOY_ABI_VERSION "v0.2.0"
#define ENVOY_HOOK __attribute__((visibility("default")))
#define HOOK(name) envoy_dynamic_module_on_##name

/* Bytes: Envoy's until the end of the hook, or the module's for the length of the call. */
struct envoy_bytes {
    const char *at;
    size_t len;
};

struct envoy_header {
    const char *name;
    size_t name_len;
    const char *value;
    size_t value_len;
};

enum envoy_map { ENVOY_REQUEST_HEADERS, ENVOY_REQUEST_TRAILERS, ENVOY_RESPONSE_HEADERS, ENVOY_RESPONSE_TRAILERS };

/* Received: of the body hook that is running. Buffered: what Envoy holds because a filter, any of the chain, stopped the
   body. Both are the same if a filter before this one has let go what it had stopped. */
enum envoy_body {
    ENVOY_RECEIVED_REQUEST,
    ENVOY_BUFFERED_REQUEST,
    ENVOY_RECEIVED_RESPONSE,
    ENVOY_BUFFERED_RESPONSE,
};

enum envoy_headers_status { ENVOY_HEADERS_CONTINUE = 0, ENVOY_HEADERS_STOP = 1 };
enum envoy_data_status { ENVOY_DATA_CONTINUE = 0, ENVOY_DATA_STOP_AND_WATERMARK = 2, ENVOY_DATA_STOP_NO_BUFFER = 3 };
enum envoy_trailers_status { ENVOY_TRAILERS_CONTINUE = 0, ENVOY_TRAILERS_STOP = 1 };
enum envoy_reset_reason { ENVOY_LOCAL_RESET = 0 };
enum envoy_log_level { ENVOY_LOG_DEBUG = 1, ENVOY_LOG_INFO = 2, ENVOY_LOG_WARNING = 3, ENVOY_LOG_ERROR = 4 };

enum envoy_attribute {
    ENVOY_REQUEST_PATH = 0,
    ENVOY_REQUEST_URL_PATH = 1,
    ENVOY_REQUEST_HOST = 2,
    ENVOY_REQUEST_SCHEME = 3,
    ENVOY_REQUEST_METHOD = 4,
    ENVOY_REQUEST_REFERER = 6,
    ENVOY_REQUEST_USERAGENT = 7,
    ENVOY_REQUEST_ID = 9,
    ENVOY_REQUEST_PROTOCOL = 10,
    ENVOY_REQUEST_QUERY = 11,
    ENVOY_RESPONSE_CODE = 15,
    ENVOY_RESPONSE_CODE_DETAILS = 16,
    ENVOY_RESPONSE_FLAGS = 17,
    ENVOY_SOURCE_ADDRESS = 24,
    ENVOY_SOURCE_PORT = 25,
    ENVOY_DESTINATION_ADDRESS = 26,
    ENVOY_DESTINATION_PORT = 27,
    ENVOY_CONNECTION_ID = 28,
    ENVOY_CONNECTION_MTLS = 29,
    ENVOY_CONNECTION_REQUESTED_SERVER_NAME = 30,
    ENVOY_CONNECTION_TLS_VERSION = 31,
    ENVOY_CONNECTION_SUBJECT_LOCAL_CERTIFICATE = 32,
    ENVOY_CONNECTION_SUBJECT_PEER_CERTIFICATE = 33,
    ENVOY_CONNECTION_DNS_SAN_LOCAL_CERTIFICATE = 34,
    ENVOY_CONNECTION_DNS_SAN_PEER_CERTIFICATE = 35,
    ENVOY_CONNECTION_URI_SAN_LOCAL_CERTIFICATE = 36,
    ENVOY_CONNECTION_URI_SAN_PEER_CERTIFICATE = 37,
    ENVOY_CONNECTION_SHA256_PEER_CERTIFICATE_DIGEST = 38,
    ENVOY_CONNECTION_TRANSPORT_FAILURE_REASON = 39,
    ENVOY_CONNECTION_TERMINATION_DETAILS = 40,
    ENVOY_UPSTREAM_ADDRESS = 41,
    ENVOY_UPSTREAM_PORT = 42,
    ENVOY_UPSTREAM_TLS_VERSION = 43,
    ENVOY_UPSTREAM_LOCAL_ADDRESS = 51,
    ENVOY_UPSTREAM_TRANSPORT_FAILURE_REASON = 52,
    ENVOY_UPSTREAM_REQUEST_ATTEMPT_COUNT = 53,
    ENVOY_XDS_CLUSTER_NAME = 57,
    ENVOY_XDS_ROUTE_NAME = 61,
    ENVOY_XDS_VIRTUAL_HOST_NAME = 63,
};

#define ENVOY_CALL(name) envoy_dynamic_module_callback_##name

void ENVOY_CALL(log)(int level, struct envoy_bytes text);

size_t ENVOY_CALL(http_get_headers_size)(void *filter, int map);
bool ENVOY_CALL(http_get_headers)(void *filter, int map, struct envoy_header *into);
bool ENVOY_CALL(http_get_header)(void *filter, int map, struct envoy_bytes name, struct envoy_bytes *value, size_t index,
                                 size_t *count);
bool ENVOY_CALL(http_set_header)(void *filter, int map, struct envoy_bytes name, struct envoy_bytes value);
bool ENVOY_CALL(http_add_header)(void *filter, int map, struct envoy_bytes name, struct envoy_bytes value);

size_t ENVOY_CALL(http_get_body_size)(void *filter, int body);
size_t ENVOY_CALL(http_get_body_chunks_size)(void *filter, int body);
bool ENVOY_CALL(http_get_body_chunks)(void *filter, int body, struct envoy_bytes *into);
bool ENVOY_CALL(http_received_buffered_request_body)(void *filter); /* whether they are the same */
bool ENVOY_CALL(http_received_buffered_response_body)(void *filter);
bool ENVOY_CALL(http_append_body)(void *filter, int body, struct envoy_bytes data);
bool ENVOY_CALL(http_drain_body)(void *filter, int body, size_t count);

void ENVOY_CALL(http_send_response)(void *filter, uint32_t status, struct envoy_header *headers, size_t count,
                                    struct envoy_bytes body, struct envoy_bytes details);
void ENVOY_CALL(http_filter_reset_stream)(void *filter, int reason, struct envoy_bytes details);
void ENVOY_CALL(http_filter_continue_decoding)(void *filter);
void ENVOY_CALL(http_filter_continue_encoding)(void *filter);
void ENVOY_CALL(http_clear_route_cache)(void *filter);
void ENVOY_CALL(http_set_dynamic_metadata_string)(void *filter, struct envoy_bytes space, struct envoy_bytes key,
                                                  struct envoy_bytes value);
bool ENVOY_CALL(http_set_filter_state_bytes)(void *filter, struct envoy_bytes key, struct envoy_bytes value);
bool ENVOY_CALL(http_get_filter_state_bytes)(void *filter, struct envoy_bytes key, struct envoy_bytes *value);
const void *ENVOY_CALL(get_most_specific_route_config)(void *filter);

bool ENVOY_CALL(http_filter_get_attribute_string)(void *filter, int attribute, struct envoy_bytes *result);
bool ENVOY_CALL(http_filter_get_attribute_int)(void *filter, int attribute, uint64_t *result);
bool ENVOY_CALL(http_filter_get_attribute_bool)(void *filter, int attribute, bool *result);

void *ENVOY_CALL(http_filter_scheduler_new)(void *filter);
void ENVOY_CALL(http_filter_scheduler_commit)(void *scheduler, uint64_t event);
void ENVOY_CALL(http_filter_scheduler_delete)(void *scheduler);

int ENVOY_CALL(http_filter_config_define_counter)(void *config, struct envoy_bytes name, struct envoy_bytes *labels,
                                                  size_t label_count, size_t *id);
int ENVOY_CALL(http_filter_increment_counter)(void *filter, size_t id, struct envoy_bytes *labels, size_t label_count,
                                              uint64_t by);

#endif
