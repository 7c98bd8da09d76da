/* The numbers that Proxy-Wasm, the linker, the worker and the configuration have in common with us, and fixed caps. */
#ifndef SANDBOXD_CONTRACT_H
#define SANDBOXD_CONTRACT_H

#include "memory.h"

/* Numbers of the guest's callbacks: `vm_status.in_callback`, and the bits of the configuration's `callbacks` mask. */
enum callback {
    CALLBACK_NONE = 0,
    CALLBACK_INITIALIZE = 1,
    CALLBACK_ALLOC = 2,
    CALLBACK_CONTEXT_CREATE = 3,
    CALLBACK_VM_START = 4,
    CALLBACK_CONFIGURE = 5,
    CALLBACK_REQUEST_HEADERS = 6,
    CALLBACK_REQUEST_BODY = 7,
    CALLBACK_REQUEST_TRAILERS = 8,
    CALLBACK_RESPONSE_HEADERS = 9,
    CALLBACK_RESPONSE_BODY = 10,
    CALLBACK_RESPONSE_TRAILERS = 11,
    CALLBACK_DONE = 12,
    CALLBACK_LOG = 13,
    CALLBACK_DELETE = 14,
    CALLBACK_TICK = 15,
    CALLBACK_QUEUE_READY = 16,
    CALLBACK_HTTP_CALL_RESPONSE = 17,
    CALLBACK_GRPC_RECEIVE_INITIAL_METADATA = 18,
    CALLBACK_GRPC_RECEIVE = 19,
    CALLBACK_GRPC_RECEIVE_TRAILING_METADATA = 20,
    CALLBACK_GRPC_CLOSE = 21,
    CALLBACK_NEW_CONNECTION = 22,
    CALLBACK_DOWNSTREAM_DATA = 23,
    CALLBACK_UPSTREAM_DATA = 24,
    CALLBACK_DOWNSTREAM_CONNECTION_CLOSE = 25,
    CALLBACK_UPSTREAM_CONNECTION_CLOSE = 26,
};

/* `vm_status.violation`: why hostcore itself raised the trap. */
enum violation {
    VIOLATION_NONE = 0,
    VIOLATION_RESTRICTED_CALL = 1, /* a host call that is not allowed during initialisation or inside the allocator */
    VIOLATION_HOST_CALLS = 2,      /* more host calls in one event than the limit */
    VIOLATION_HEAP = 3,            /* what the event produced does not fit in the heap */
    VIOLATION_CHANNEL = 4,         /* the client broke the completion ring's counters */
};

/* proxy_status_t */
enum status {
    STATUS_OK = 0,
    STATUS_NOT_FOUND = 1,
    STATUS_BAD_ARGUMENT = 2,
    STATUS_SERIALIZATION_FAILURE = 3,
    STATUS_PARSE_FAILURE = 4,
    STATUS_INVALID_MEMORY_ACCESS = 6,
    STATUS_EMPTY = 7,
    STATUS_CAS_MISMATCH = 8,
    STATUS_INTERNAL_FAILURE = 10,
    STATUS_BROKEN_CONNECTION = 11,
    STATUS_UNIMPLEMENTED = 12,
};

enum log_level { LOG_TRACE, LOG_DEBUG, LOG_INFO, LOG_WARN, LOG_ERROR, LOG_CRITICAL };

enum { STREAM_HTTP_REQUEST, STREAM_HTTP_RESPONSE, STREAM_DOWNSTREAM, STREAM_UPSTREAM }; /* proxy_stream_type_t */

enum abi_version { ABI_0_1_0 = 1, ABI_0_2_0 = 2, ABI_0_2_1 = 3 };

enum config_flag { FLAG_HEADERS_STOP_ITERATION = 1, FLAG_LENIENT_MAPS = 2, FLAG_LIVE_CLOCK = 4, FLAG_REMOTE_SHARED = 8 };

/* ---- caps that no configuration lifts ---------------------------------------------------------------------------- */

#define MAX_KEY_BYTES (16u * KIB)       /* a key that a guest may look up or write */
#define MAX_PATH_BYTES (4u * KIB)       /* a property path */
#define MAX_METRIC_NAME_BYTES 512u
#define MAX_DETAILS_BYTES (4u * KIB)    /* details text of a local response */
#define MAX_FOREIGN_NAME_BYTES 256u
#define MAX_RANDOM_BYTES (64u * KIB)    /* one random_get: the reference host's cap */
#define MAX_IOVECS 1024u                /* one fd_write */
#define MAX_WRITE_BYTES (64u * KIB)     /* one fd_write takes no more; the rest is the guest's next call */
#define MAX_SUBSCRIPTIONS 256u          /* one poll_oneoff */
#define MAX_ATTRIBUTE_BLOCKS 64u        /* STREAM_OPEN plus ATTRIBUTES of one stream */
#define SCRATCH_BYTES (64u * KIB)

#endif
