/* The channel's tables, docs/channel.md, and the record reader and writer (ring.c). */
#ifndef SANDBOXD_CHANNEL_H
#define SANDBOXD_CHANNEL_H

#include "memory.h"

/* Channel record kinds: submissions, and completions with the same numbers for what goes on. */
enum record_kind {
    RECORD_PAD = 0,
    SUBMIT_STREAM_OPEN = 1,
    SUBMIT_REQUEST_HEADERS = 2,
    SUBMIT_REQUEST_BODY = 3,
    SUBMIT_REQUEST_TRAILERS = 4,
    SUBMIT_RESPONSE_HEADERS = 5,
    SUBMIT_RESPONSE_BODY = 6,
    SUBMIT_RESPONSE_TRAILERS = 7,
    SUBMIT_ATTRIBUTES = 8,
    SUBMIT_STREAM_CLOSE = 9,
    SUBMIT_SHUTDOWN = 10,
    SUBMIT_NEW_CONNECTION = 16,
    SUBMIT_DOWNSTREAM_DATA = 17,
    SUBMIT_UPSTREAM_DATA = 18,
    SUBMIT_DOWNSTREAM_CLOSE = 19,
    SUBMIT_UPSTREAM_CLOSE = 20,
    COMPLETE_VERDICT = 1,
    COMPLETE_HEADERS = 2, /* request; + RESPONSE_KINDS for the response */
    COMPLETE_BODY = 3,
    COMPLETE_TRAILERS = 4,
    COMPLETE_LOCAL_RESPONSE = 8,
    COMPLETE_PROPERTY_SET = 9,
    COMPLETE_CLEAR_ROUTE_CACHE = 10,
    COMPLETE_CLOSE_STREAM = 11,
    COMPLETE_LOG = 12,
    COMPLETE_DENIED = 13,
    COMPLETE_VM_STARTED = 14,
    COMPLETE_LOGS_DROPPED = 15,
    COMPLETE_NOTE = 16,
    COMPLETE_DOWNSTREAM_DATA = 17, /* + 1 for upstream */
};
#define RESPONSE_KINDS 3 /* kind of a response record minus kind of the same request record */

enum record_flag {
    RECORD_MORE = 1,
    RECORD_END_OF_STREAM = 2,
    RECORD_MODIFIED = 4,
    RECORD_AS_SUBMITTED = 8,
    RECORD_TRUNCATED = 16,
    RECORD_RESET = 32,
};

enum verdict {
    VERDICT_OK = 0,
    VERDICT_UNKNOWN_STREAM = 1,
    VERDICT_OUT_OF_ORDER = 2,
    VERDICT_LIMIT = 3,
    VERDICT_STREAM_OVER = 4,
    VERDICT_NONE = 255, /* not sent: the event has no verdict */
};

enum note_code {
    NOTE_LOCAL_RESPONSE_IGNORED = 1,
    NOTE_LOCAL_RESPONSE_TOO_LATE = 2,
    NOTE_MAP_NOT_AVAILABLE = 3,
    NOTE_BUFFER_NOT_AVAILABLE = 4,
    NOTE_BODY_LIMIT = 5,
    NOTE_DONE_NEVER_CAME = 6,
    NOTE_WITHOUT_EFFECT = 7,
    NOTE_PROPERTY_MISSING = 8, /* with the property's path */
    NOTE_METRICS_LIMIT = 9,
};

/* In the argument of poll: look only while streams come one by one. */
#define SPIN_ALONE 0x80000000u
#define STREAMS_ALONE 64 /* so many one by one, and there is but one at a time */

/* Bits of poll's result. */
enum poll_result {
    POLL_SLEEP = 1,
    POLL_WAKE_CLIENT = 2,
    POLL_NO_SPACE = 4,
    POLL_STOPPED = 8,
    POLL_PROTOCOL = 16,
    POLL_INBOX = 32,
    POLL_OUTBOX = 64,
    POLL_YIELD = 128, /* nothing to do so far, and call again */
};

/* ring.c: the channel */
struct record {
    u16 kind, flags;
    u64 stream_id;
    u32 event_seq;
    u64 arg;
    struct bytes payload;
};
enum ring_state { RING_EMPTY, RING_RECORD, RING_BROKEN };
void ring_init(u32 ring_bytes, u32 generation);
enum ring_state ring_next(struct record *record); /* `record` stays valid until ring_done */
void ring_done(void);
u32 ring_max_payload(void);
/* Room for a record's payload of at most ring_max_payload(); it is sent with the next ring_publish. */
u8 *ring_put(u16 kind, u16 flags, u64 stream_id, u64 arg, u32 payload_len);
void ring_put_bytes(u16 kind, u16 flags, u64 stream_id, u64 arg, struct bytes payload); /* any length */
void ring_publish(void);
bool ring_flush(void);     /* false: the completion ring has no room for all that is queued */
bool ring_client_sleeps(void); /* true: the client has to be woken (asked once per wake) */
bool ring_prepare_sleep(bool wants_space); /* true: nothing came meanwhile; sleep */
void ring_awake(void);
void ring_stamp(void);
bool ring_inbox(void);    /* the worker has something for the VM */
u32 ring_records(void);   /* completions ever written, modulo 2^32 */

#endif
