/* The streams, HTTP exchanges and connections alike: what is known of each, and what is done to it. */
#ifndef SANDBOXD_STREAM_H
#define SANDBOXD_STREAM_H

#include "hostcore.h"

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

/* ---- what is done to them ---------------------------------------------------------------------------------------- */

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

#endif
