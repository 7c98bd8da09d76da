/*
 * hostcore: the Proxy-Wasm host in C, compiled to WebAssembly and linked to the guest inside one store.
 *
 * Shared types, tables and declarations. The contract with the linker, the worker and the channel's clients is
 * docs/hostcore.md and docs/channel.md; function and enumeration names are Proxy-Wasm's own.
 *
 * Everything that comes from the guest is an address and a length in the guest's memory and is reached through guest.c
 * alone. Everything that comes from the channel is read through ring.c alone.
 */
#ifndef SANDBOXD_HOSTCORE_H
#define SANDBOXD_HOSTCORE_H

#include "channel.h"
#include "maps.h"
#include "memory.h"

/* `EXPORT(name)` defines hc_name, exported to WebAssembly as plain `name`. */
#ifdef SANDBOXD_NATIVE
#define EXPORT(name) hc_##name
#define IMPORT(module, name)
#else
#define EXPORT(name) __attribute__((export_name(#name))) hc_##name
#define IMPORT(module, name) __attribute__((import_module(#module), import_name(#name)))
#endif

/* Marks what changes while the VM runs, so that a native harness can set it back. */
#ifdef SANDBOXD_NATIVE
#define STATE __attribute__((section("hostcore_state")))
#else
#define STATE
#endif

/* ---- tables ------------------------------------------------------------------------------------------------------ */

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

/* ---- streams ----------------------------------------------------------------------------------------------------- */

enum direction_id { REQUEST = 0, RESPONSE = 1 };

/* What holds a direction back. */
enum hold {
    HOLD_NONE,
    HOLD_HEADERS,  /* StopIteration from headers: body and trailers callbacks do run */
    HOLD_ALL,      /* StopAllIteration from headers: body and trailers wait unseen */
    HOLD_BODY,     /* pause from a body callback */
    HOLD_TRAILERS, /* pause from the trailers callback */
};

/* Body bytes of one direction that have not gone on. The guest sees data[hidden..len), or `chunk` while borrowed. */
struct body {
    u8 *data;
    u32 len, cap;
    u32 hidden;         /* bytes that StopIterationAndWatermark keeps out of the guest's sight */
    struct bytes chunk; /* the event's own bytes, where the event's record lies */
    bool borrowed;      /* nothing is held and nothing was changed: the guest sees `chunk` */
    bool open;          /* the guest may read and write it */
    bool queued;        /* arrived during HOLD_ALL, not shown yet */
};

struct direction {
    struct map headers, trailers;
    struct body body;
    u64 body_bytes_seen;
    u8 hold;
    bool headers_seen, headers_released;
    bool ended;          /* the client has sent the end: in the headers, in the body, or by trailers */
    bool ended_in_headers, ended_in_body;
    bool end_held;       /* the body's end was shown to the guest, and the direction is held */
    bool trailers_shown;
    bool trailers_added; /* by the guest, to a message that had none */
};

struct local_response {
    u8 *data; /* details, then headers (pairs), then body */
    u32 details_len, headers_len, body_len;
    u32 status;
    i32 grpc_status;
    bool direct; /* sent after the response's own headers were seen: no callbacks on it */
};

/* Attributes as the client sent them: one block for each STREAM_OPEN or ATTRIBUTES record. */
struct attribute_block {
    struct attribute_block *next;
    struct pairs_cursor entries;
    u8 data[];
};

/* A value that the guest has set. */
struct property {
    struct property *next;
    u32 path_len, value_len;
    bool unsent;
    u8 data[]; /* path, value */
};

/* A payload that arrives in several records. */
struct assembly {
    u8 *data;
    u32 len;
    u32 event_seq;
    u16 kind;
    bool active;
    bool failed; /* no memory: the event's verdict is LIMIT */
};

struct stream {
    u64 id;
    u32 context_id; /* 0: the guest has not heard of it */
    struct direction direction[2];
    struct local_response local;
    struct attribute_block *attributes;
    struct property *properties;
    struct assembly assembly;
    struct stream *next_touched; /* list of streams with properties to send when the event ends */
    u32 attribute_blocks, property_bytes;
    u32 route_cleared_turn;
    u8 deferred; /* bits of the actions that are queued */
    bool local_sent;      /* the guest has called proxy_send_local_response with effect */
    bool answering;       /* the response direction carries the local response */
    bool over;            /* answered or reset: events are not shown any more */
    bool limited;         /* memory ran out for it: verdicts are LIMIT */
    bool logging;         /* inside proxy_on_log: all maps are readable */
    bool done_called;     /* proxy_done was called inside proxy_on_done */
    bool in_done;
    bool touched;
    bool tcp;             /* a connection, not an HTTP exchange */
};

/* ---- the VM ------------------------------------------------------------------------------------------------------ */

/* Read by the worker at `status_ptr()`. */
struct vm_status {
    u32 in_callback, context_id, event_seq, stream_id_low, stream_id_high, streams_open, heap_used_bytes,
        heap_peak_bytes, exited, exit_code, violation, host_calls, metrics, next_tick_low, next_tick_high,
        queues_watched;
};

struct limits {
    u64 heap_bytes, body_buffer_bytes, open_streams, log_message_bytes, log_bytes_per_event, log_lines_per_event,
        metrics, host_calls_per_event, local_response_bytes, property_bytes, min_tick_ms, callouts,
        callout_bytes, shared_value_bytes, queue_items;
};

struct config {
    struct bytes plugin_name, root_id, vm_id, vm_configuration, plugin_configuration, environment, denied_properties,
        entropy, upstreams, folders;
    struct limits limits;
    u64 flags, callbacks, start_time_ns;
    u32 abi, generation, ring_bytes, min_log_level;
    u32 open_files;
    u32 shared_bytes, vm_number; /* size of the shared region, 0: none; this VM's name in it */
};

/* What host calls the guest may make now; each host function names the phases it is allowed in. */
enum phase { PHASE_CALLBACK = 1, PHASE_INITIALIZE = 2, PHASE_ALLOC = 4 };

struct vm {
    struct vm_status status;
    struct config config;
    u32 phase;
    bool starting, stopped, configuring;
    struct stream *current;   /* of the running callback; NULL: the root context or none */
    struct stream *effective; /* what host calls act on */
    struct table streams;     /* by the client's stream id */
    struct table contexts;    /* stream contexts by context id */
    struct stream *last_stream;
    struct stream *first_touched;
    u32 next_context_id;
    u64 now_ns;       /* the event's instant */
    u64 monotonic_ns; /* virtual, moves a little with every look */
    u64 calls_left;   /* host calls of this event */
    u64 log_bytes, log_lines, logs_dropped; /* of this event */
    u32 notes;        /* bits of the notes sent in this event */
    u32 turn;         /* counts events and what runs outside them */
    u64 tick_ns, next_tick_ns; /* period, and wall clock of the next tick; 0: none */
    u32 event_seq;
    u64 event_stream;
};

extern struct vm vm;
extern u8 scratch[SCRATCH_BYTES]; /* for the duration of one host call; never across a call into the guest */

#define ROOT_CONTEXT_ID 1u

_Noreturn void violate(enum violation reason);
_Noreturn void trap(void);

/* First line of every host function. */
static inline void host_call(u32 allowed_phases)
{
    vm.status.host_calls++;
    if (UNLIKELY(!(vm.phase & allowed_phases)))
        violate(VIOLATION_RESTRICTED_CALL);
    if (UNLIKELY(vm.calls_left-- == 0))
        violate(VIOLATION_HOST_CALLS);
}
#define IN_CALLBACKS PHASE_CALLBACK
#define AT_START (PHASE_CALLBACK | PHASE_INITIALIZE)
#define ANYWHERE (PHASE_CALLBACK | PHASE_INITIALIZE | PHASE_ALLOC)

/* config.c */
u32 config_parse(struct bytes blob, struct config *config);

/* guest.c: the guest's memory, and calls into the guest */
bool guest_ok(u32 address, u32 len);
bool guest_read(u32 address, void *to, u32 len);
bool guest_write(u32 address, const void *from, u32 len);
bool guest_write_u32(u32 address, u32 value);
bool guest_write_u64(u32 address, u64 value);
u32 return_bytes(struct bytes data, u32 data_out, u32 size_out);
struct arguments {
    u32 a, b, c, d;
};
u32 call_guest_with(enum callback callback, struct stream *stream, struct arguments arguments);
static inline u32 call_guest(enum callback callback, struct stream *stream, u32 a, u32 b)
{
    return call_guest_with(callback, stream, (struct arguments){a, b, 0, 0});
}
static inline bool callback_granted(enum callback callback)
{
    return vm.config.callbacks >> callback & 1;
}

/* poll.c */
void event_begin(const struct record *record);
void event_end(void);
void note(const struct stream *stream, enum note_code code);

/* inbox.c: what runs outside the client's events; outbox: what the worker has to do for the VM */
enum outbox_kind {
    OUT_HTTP_CALL = 1,
    OUT_GRPC_CALL = 2,
    OUT_GRPC_STREAM = 3,
    OUT_GRPC_SEND = 4,
    OUT_GRPC_CANCEL = 5,
    OUT_GRPC_CLOSE = 6,
    OUT_QUEUE_NOTIFY = 7,
    OUT_METRICS = 8,
    OUT_FILE = 9, /* a change in a preopened folder */
};
#define OUT_PARTS 5u
struct message; /* heap_free drops one that is not sent */
struct message *outbox_make(enum outbox_kind kind, u32 id, u32 argument, const u32 lens[OUT_PARTS]); /* NULL: full */
u8 *outbox_parts(struct message *message); /* room for the parts, one after the other */
void outbox_send(struct message *message);
bool outbox_waiting(void);
bool tick_due(void);

/* shared.c, queues.c */
void shared_start(void);
bool queues_deliver(void); /* true: there is more */

/* callouts.c */
enum callout_answer {
    ANSWER_HTTP_RESPONSE,
    ANSWER_GRPC_INITIAL_METADATA,
    ANSWER_GRPC_MESSAGE,
    ANSWER_GRPC_TRAILING_METADATA,
    ANSWER_GRPC_CLOSE,
};
/* `status` is 0 or why an HTTP call failed, or the gRPC status of a close. */
void callout_answer(enum callout_answer answer, u32 id, u32 status, struct bytes headers, struct bytes body,
                    struct bytes trailers);
struct map *callout_map(u32 map_id);                   /* of maps 4 to 7; NULL: not now */
bool callout_buffer(u32 buffer_id, struct bytes *data); /* of buffers 4 and 5 */

/* contexts.c */
struct stream *acting_stream(void); /* of the effective context; NULL: root */
struct stream *stream_find(u64 id);
struct stream *stream_create(u64 id); /* NULL: over a limit */
bool stream_context(struct stream *stream); /* makes the guest's context on first need; false: no memory */
void stream_close(struct stream *stream);
void streams_close_all(void);
void root_close(void);
void stream_touch(struct stream *stream);

/* deferred.c: actions that wait for the outermost callback to end */
enum deferred_action {
    DEFER_CONTINUE_REQUEST = 1,
    DEFER_CONTINUE_RESPONSE = 2,
    DEFER_CLOSE = 4,
    DEFER_LOCAL_RESPONSE = 8,
};
void defer(struct stream *stream, enum deferred_action action, u32 argument);
void run_deferred(void);

/* stream.c: the state machine of one direction */
u32 direction_headers(struct stream *stream, enum direction_id which, struct bytes payload, bool end);
u32 direction_body(struct stream *stream, enum direction_id which, struct bytes payload, bool end);
u32 direction_trailers(struct stream *stream, enum direction_id which, struct bytes payload);
void direction_resume(struct stream *stream, enum direction_id which);
void show_headers(struct stream *stream, enum direction_id which, bool end);
void show_body(struct stream *stream, enum direction_id which);
void stream_reset(struct stream *stream, u32 type);
u32 verdict_state(const struct stream *stream);

/* tcp.c */
u32 tcp_event(struct stream *stream, u16 kind, struct bytes payload, bool end);
void tcp_resume(struct stream *stream, enum direction_id which);

/* body.c */
struct bytes body_visible(const struct body *body);
bool body_append(struct body *body, struct bytes chunk);
bool body_own(struct body *body); /* copies what is borrowed */
u8 *body_splice(struct body *body, u32 start, u32 size, u32 len);
void body_clear(struct body *body);

/* local_response.c */
void local_response_run(struct stream *stream);
bool local_response_generate(struct stream *stream, u32 status, struct bytes details, struct bytes body);
void local_response_finish(struct stream *stream, struct bytes body);
void local_response_free(struct stream *stream);

/* properties.c: attributes from the client, values that the guest sets */
bool attributes_add(struct stream *stream, struct bytes payload); /* false: malformed, or over a limit */
void properties_send(struct stream *stream);
void properties_free(struct stream *stream);
bool property_denied(struct bytes path);
/* Makes room for a value that the guest sets; the caller fills it at once. Else the status. */
u32 property_put(struct stream *stream, struct bytes name, u32 value_len, u8 **room);
bool property_declare(struct bytes name, bool readonly); /* false: declared before, or too many */

/* derived.c: properties that follow from the header maps */
enum derived { DERIVED_NONE, DERIVED_VALUE, DERIVED_UNSERIALIZABLE };
struct derived_value {
    struct bytes bytes;
    u64 number; /* storage of a number that `bytes` points to */
    u8 *block;  /* storage of a text that was put together; the caller frees it */
};
enum derived property_derive(struct stream *stream, struct bytes path, struct derived_value *value);

/* logging.c */
void log_lines_flush(void);
void log_write(u32 level, u32 address, u32 len); /* guest memory, checked before */
bool log_stdio(u32 fd, u32 address, u32 len);

/* metrics.c */
void metrics_send(void); /* all metrics and their values, to the outbox */

/* time.c, random.c */
u64 clock_now(u32 clock_id);
void clock_advance(u64 ns);
void random_seed(const u8 *key);
void random_fill(u8 *to, u32 len);

#endif
