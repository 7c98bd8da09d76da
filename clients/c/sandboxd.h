/*
 * libsandboxd: runs Proxy-Wasm plugins out of process, over shared memory.
 *
 * A *channel* joins one thread of the caller to one VM of a plugin, in a worker process that the daemon keeps. HTTP
 * streams and TCP connections are opened on it, their events are submitted, and each event brings a *verdict*: what goes
 * on, changed how.
 *
 *     sbx_attach            get a channel from the daemon
 *     sbx_stream_open       one HTTP exchange
 *     sbx_submit_headers    an event ...
 *     sbx_wait              ... and its verdict (or sbx_spin, sbx_arm and sbx_next without blocking)
 *     sbx_stream_close
 *     sbx_channel_close
 *
 * The worker is hostile. Nothing that it writes is used before it was copied out of the shared memory and checked; what
 * one event may make this library allocate is bounded (see sbx_limits). What the policy hides never reaches the ring,
 * and what it does not let the plugin write never reaches the caller: redaction and write rules are applied here.
 *
 * OWNERSHIP. Every object has one owner, the caller, and one function that ends it:
 *     sbx_attachment   sbx_attach_cancel, or sbx_attach_step when it returns anything but SBX_AGAIN
 *     sbx_channel      sbx_channel_close; ends all its streams and events as well
 *     sbx_stream       sbx_stream_close
 *     sbx_event        sbx_event_free; may come at any time, and cancels an event that has no verdict yet
 *     sbx_policy       sbx_policy_release
 * Input is only read during the call. A verdict, and all it points to, lives as long as its event and its channel.
 *
 * THREADS. Nothing global is written: channels of different threads are independent. One channel with its streams and
 * events belongs to one thread at a time. Two exceptions: any thread may poll() the descriptors of sbx_channel_fd and
 * sbx_channel_socket, and a policy may be kept, read and released by any thread.
 *
 * UNITS. Times are nanoseconds. `time_ns` is wall clock since the epoch (it is what the guest's clock shows), time-outs
 * are durations, `now_ns` is CLOCK_MONOTONIC. Sizes are bytes. Strings are bytes with a length, any byte is legal.
 *
 * ERRORS. Functions that can fail return an enum sbx_status. They leave nothing half done: an event that was not
 * submitted does not exist. Arguments that can only be a bug of the caller give SBX_INVALID where that can be told.
 *
 * Byte layouts: docs/channel.md, docs/attach.md.
 */
#ifndef SANDBOXD_H
#define SANDBOXD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define SBX_VERSION "0.1.0"

#if defined(SBX_BUILD) && (defined(__GNUC__) || defined(__clang__))
#define SBX_API __attribute__((visibility("default")))
#else
#define SBX_API
#endif

typedef struct sbx_policy sbx_policy;
typedef struct sbx_attachment sbx_attachment;
typedef struct sbx_channel sbx_channel;
typedef struct sbx_stream sbx_stream;
typedef struct sbx_event sbx_event;

/* ---- errors ------------------------------------------------------------------------------------------------------ */

enum sbx_status {
    SBX_OK = 0,
    SBX_AGAIN = 1,     /* not yet; nothing is wrong */
    SBX_TIMEOUT = 2,   /* no verdict in time */
    SBX_DOWN = 3,      /* the VM failed, was started anew, or is not up: the failure policy answers */
    SBX_BROKEN = 4,    /* the VM broke the channel's rules; the channel is dead */
    SBX_DETACHED = 5,  /* the daemon took the channel away, or is gone: attach again */
    SBX_DRAIN = 6,     /* a newer version serves: attach again for new streams, close this channel after its last */
    SBX_FULL = 7,      /* too much waits for the VM already */
    SBX_LIMIT = 8,     /* past a limit of the policy or of the protocol */
    SBX_REFUSED = 9,   /* the daemon does not give the channel; see sbx_error.code */
    SBX_INVALID = 10,  /* a bug of the caller */
    SBX_NO_MEMORY = 11,
    SBX_SYSTEM = 12,   /* a system call failed; see sbx_error.sys_errno */
    SBX_PROTOCOL = 13, /* what the daemon sent is malformed, or its socket belongs to somebody else */
};

/* Why the daemon refuses. */
enum sbx_refusal_code {
    SBX_REFUSED_UNKNOWN = 1,   /* no such tenant or plugin: never fail open on it */
    SBX_REFUSED_FORBIDDEN = 2, /* this user may not have it */
    SBX_REFUSED_LIMIT = 3,     /* too many channels */
    SBX_REFUSED_MALFORMED = 4, /* the request makes no sense to this daemon */
};

typedef struct sbx_error {
    int status;     /* enum sbx_status */
    int code;       /* enum sbx_refusal_code, with SBX_REFUSED */
    int sys_errno;  /* with SBX_SYSTEM */
    char text[256]; /* for people; printable, ends with NUL */
} sbx_error;

/* Names a status, for log lines. Never NULL. */
SBX_API const char *sbx_status_name(int status);

/* ---- data -------------------------------------------------------------------------------------------------------- */

typedef struct sbx_bytes {
    const uint8_t *data;
    size_t len;
} sbx_bytes;

typedef struct sbx_pair {
    sbx_bytes name, value;
} sbx_pair;

/* What can be submitted; header maps and bodies have the same numbers when they come back as effects. */
enum sbx_kind {
    SBX_REQUEST_HEADERS = 2,
    SBX_REQUEST_BODY = 3,
    SBX_REQUEST_TRAILERS = 4,
    SBX_RESPONSE_HEADERS = 5,
    SBX_RESPONSE_BODY = 6,
    SBX_RESPONSE_TRAILERS = 7,
    SBX_LOCAL_RESPONSE = 8,     /* sbx_effect.local */
    SBX_PROPERTY_SET = 9,       /* sbx_effect.property */
    SBX_CLEAR_ROUTE_CACHE = 10, /* choose the route again */
    SBX_CLOSE_STREAM = 11,      /* reset the exchange; sbx_effect.arg is a proxy_stream_type_t */
    SBX_NEW_CONNECTION = 16,    /* this one and the next four are of connections alone */
    SBX_DOWNSTREAM_DATA = 17,
    SBX_UPSTREAM_DATA = 18,
    SBX_DOWNSTREAM_CLOSE = 19,
    SBX_UPSTREAM_CLOSE = 20,
};

enum sbx_flag {
    SBX_END_OF_STREAM = 2, /* the direction ends here */
    SBX_MODIFIED = 4,      /* the plugin wrote to the map; sbx_effect.changes says what differs, if anything */
    SBX_AS_SUBMITTED = 8,  /* a body: exactly the bytes of this event, which you have; data is NULL */
};

/* Why something that the plugin did was left out. */
enum sbx_reason {
    SBX_ALLOWED = 0,
    SBX_ILLEGAL_NAME = 1,
    SBX_ILLEGAL_VALUE = 2,
    SBX_ILLEGAL_PSEUDO_HEADER = 3,
    SBX_CONNECTION_HEADER = 4,
    SBX_DENIED_BY_POLICY = 5,
    SBX_TOO_MANY = 6,
    SBX_TOO_LARGE = 7,
    SBX_ILLEGAL_STATUS = 8,
    SBX_ILLEGAL_PATH = 9,
};

/* The reason as a word, as in the daemon's metrics: "illegal_name". Never NULL. */
SBX_API const char *sbx_reason_name(uint32_t reason);

typedef struct sbx_refusal {
    uint32_t reason; /* enum sbx_reason */
    sbx_bytes name;  /* a header's name or a word such as "body"; printable, at most 64 bytes */
} sbx_refusal;

/* A name whose values are replaced. count is never 0. */
typedef struct sbx_set {
    sbx_bytes name;
    const sbx_bytes *values;
    size_t count;
} sbx_set;

/*
 * What to change in your header map, in this order: remove every value of each of `removed`; replace all values of each
 * of `set`; append `added` behind what is there. Names are lower case and legal, a name is in one of the three alone.
 * What the plugin was not shown is not touched, even if it rewrote the whole map.
 */
typedef struct sbx_changes {
    const sbx_bytes *removed;
    size_t removed_count;
    const sbx_set *set;
    size_t set_count;
    const sbx_pair *added;
    size_t added_count;
} sbx_changes;

/* A response of the plugin in the upstream's place, as it may be sent. */
typedef struct sbx_local_response {
    uint32_t status;     /* 200 to 599 */
    int32_t grpc_status; /* 0 to 16, -1: none */
    bool already_begun;  /* the response had begun when the plugin sent this one: reset instead */
    sbx_bytes details;   /* printable, without white space, at most 256 bytes */
    const sbx_pair *headers;
    size_t header_count; /* no pseudo-headers, no content-length */
    sbx_bytes body;
} sbx_local_response;

/* One thing that the plugin did or let go on. */
typedef struct sbx_effect {
    uint32_t kind;      /* enum sbx_kind */
    uint32_t flags;     /* enum sbx_flag */
    uint32_t refused;   /* enum sbx_reason; if not 0 the effect must not happen, see below */
    uint64_t stream_id;
    uint64_t arg;
    sbx_bytes data;     /* a body that goes on, unless SBX_AS_SUBMITTED (then only len is set) */
    const sbx_changes *changes;        /* of a header map; NULL: goes on as it is */
    const sbx_local_response *local;   /* of SBX_LOCAL_RESPONSE */
    sbx_pair property;                 /* of SBX_PROPERTY_SET: path (segments joined by NUL) and value */
} sbx_effect;
/*
 * Refused effects: a LOCAL_RESPONSE still has to end the exchange (with a 500 of yours; `local` is NULL). A body must not
 * go on, and neither may the original: end the exchange. A property is left out. Changes to headers are never refused as
 * a whole; what was left out of them is in sbx_verdict.refusals.
 */

enum sbx_notice_kind {
    SBX_LOG = 12,          /* arg: level 0 (trace) to 5; data: text of any bytes, at most 8 KiB */
    SBX_DENIED = 13,       /* arg: index of the import, see sbx_policy_import */
    SBX_VM_STARTED = 14,   /* arg: generation; only through sbx_hooks.notice */
    SBX_LOGS_DROPPED = 15, /* arg: how many */
    SBX_NOTE = 16,         /* arg: note code of docs/channel.md; data: with SBX_PROPERTY_MISSING alone */
};

/* Of SBX_NOTE: the plugin asked for a property that the VM does not know. data: its path, segments joined by NUL, of any
   bytes but at most 256; the policy shows it, otherwise the notice does not come. Told once by each VM, so that the
   attribute can be sent with later streams. Take it as a hint from a stranger: look it up among those that you know. */
enum { SBX_PROPERTY_MISSING = 8 };

typedef struct sbx_notice {
    uint32_t kind; /* enum sbx_notice_kind */
    uint32_t flags;
    uint64_t stream_id;
    uint64_t arg;
    sbx_bytes data;
} sbx_notice;

enum sbx_verdict_code {
    SBX_VERDICT_OK = 0,
    SBX_VERDICT_UNKNOWN_STREAM = 1,
    SBX_VERDICT_OUT_OF_ORDER = 2, /* you broke the protocol */
    SBX_VERDICT_LIMIT = 3,        /* streams, buffered bytes or memory */
    SBX_VERDICT_STREAM_OVER = 4,  /* the stream was answered or reset before */
};

enum sbx_state {
    SBX_REQUEST_PAUSED = 1,
    SBX_RESPONSE_PAUSED = 2,
    SBX_REQUEST_HEADERS_HELD = 4,
    SBX_RESPONSE_HEADERS_HELD = 8,
    SBX_REQUEST_ALL_STOPPED = 16,
    SBX_RESPONSE_ALL_STOPPED = 32,
};

/* What came of one event. Effects are in order, and all on the event's own stream. */
typedef struct sbx_verdict {
    uint32_t code;  /* enum sbx_verdict_code */
    uint32_t state; /* enum sbx_state, of the stream after the event */
    const sbx_effect *effects;
    size_t effect_count;
    const sbx_notice *notices;
    size_t notice_count;
    const sbx_refusal *refusals;
    size_t refusal_count;
} sbx_verdict;

/* ---- policy ------------------------------------------------------------------------------------------------------ */

/* What the plugin can read at all. Not sending the rest is this library's duty; of bodies for which it has not even a
   callback it is yours: it saves the copy, and sbx_submit_body refuses them with SBX_INVALID. */
enum sbx_needs {
    SBX_NEEDS_REQUEST_HEADERS = 1,
    SBX_NEEDS_REQUEST_BODY = 2,
    SBX_NEEDS_REQUEST_TRAILERS = 4,
    SBX_NEEDS_RESPONSE_HEADERS = 8,
    SBX_NEEDS_RESPONSE_BODY = 16,
    SBX_NEEDS_RESPONSE_TRAILERS = 32,
    SBX_NEEDS_PROPERTIES = 64,
    SBX_HAS_REQUEST_TRAILERS_CALLBACK = 128,
    SBX_HAS_RESPONSE_TRAILERS_CALLBACK = 256,
    SBX_HAS_REQUEST_BODY_CALLBACK = 512, /* called for bodies, even if it cannot read them */
    SBX_HAS_RESPONSE_BODY_CALLBACK = 1024,
    SBX_NEEDS_DOWNSTREAM_DATA = 2048, /* of connections: without it the plugin sees zeros, which this library does */
    SBX_NEEDS_UPSTREAM_DATA = 4096,
    SBX_HAS_TCP_CALLBACKS = 0x3e000,  /* any of them: a connection is shown to the plugin */
};

/* What one event may bring from the worker before the channel counts as broken. Memory for one event is at most
   4 x max_bytes; the rest of a channel is its rings and 4 KiB per stream and outstanding event, beside copies of header
   maps that you submitted and of bodies that wait for room. */
typedef struct sbx_limits {
    uint64_t max_effects;       /* records */
    uint64_t max_bytes;         /* payloads, plus 64 for each record, plus what is derived from them */
    uint64_t body_buffer_bytes; /* largest body that the plugin may hold or leave behind */
    uint64_t time_per_event_ns; /* from submission to verdict */
    uint64_t time_per_pause_ns; /* that a plugin may hold a message of which nothing more can come */
    uint64_t open_streams;
} sbx_limits;

/*
 * Reads a compiled policy (docs/attach.md). Every length in it is checked.
 *
 * SBX_PROTOCOL: malformed. SBX_NO_MEMORY.
 */
SBX_API int sbx_policy_load(const void *data, size_t len, sbx_policy **policy, sbx_error *error);
SBX_API sbx_policy *sbx_policy_keep(sbx_policy *policy); /* one more owner */
SBX_API void sbx_policy_release(sbx_policy *policy);

SBX_API uint32_t sbx_policy_needs(const sbx_policy *policy); /* enum sbx_needs */
SBX_API void sbx_policy_limits(const sbx_policy *policy, sbx_limits *limits);
SBX_API sbx_bytes sbx_policy_tenant(const sbx_policy *policy);
SBX_API sbx_bytes sbx_policy_plugin(const sbx_policy *policy);
/* Name of an import of the guest, by the index of SBX_DENIED; empty if there is none. */
SBX_API sbx_bytes sbx_policy_import(const sbx_policy *policy, uint64_t index);
/* Whether the plugin may be told a property; segments joined by NUL. */
SBX_API bool sbx_policy_property_visible(const sbx_policy *policy, const void *path, size_t len);

enum sbx_phase {
    SBX_PHASE_REQUEST_HEADERS = 2,
    SBX_PHASE_REQUEST_BODY = 3,
    SBX_PHASE_REQUEST_TRAILERS = 4,
    SBX_PHASE_RESPONSE_HEADERS = 5,
    SBX_PHASE_RESPONSE_BODY = 6,
    SBX_PHASE_RESPONSE_TRAILERS = 7,
    SBX_PHASE_END = 9,
};

enum sbx_cause {
    SBX_CAUSE_TRAP = 0,           /* SBX_DOWN of an event that was submitted: see sbx_channel_down_cause */
    SBX_CAUSE_CPU_LIMIT = 1,
    SBX_CAUSE_TIMEOUT = 2,        /* SBX_TIMEOUT */
    SBX_CAUSE_WORKER_GONE = 3,    /* SBX_DETACHED */
    SBX_CAUSE_VM_DOWN = 4,        /* SBX_DOWN of a submission */
    SBX_CAUSE_UNKNOWN_PLUGIN = 5, /* SBX_REFUSED_UNKNOWN */
    SBX_CAUSE_LIMIT = 6,          /* SBX_LIMIT, SBX_FULL, SBX_VERDICT_LIMIT */
    SBX_CAUSE_PROTOCOL = 7,       /* SBX_BROKEN, SBX_VERDICT_OUT_OF_ORDER */
    SBX_CAUSE_MEMORY_LIMIT = 8,
    SBX_CAUSE_HOST_CALL_LIMIT = 9,
};

enum sbx_action {
    SBX_CONTINUE = 0, /* go on as if the plugin were not there */
    SBX_RESPOND = 1,  /* answer in the upstream's place, with status and details */
    SBX_RESET = 2,    /* end the stream: its response has begun */
};

typedef struct sbx_failure {
    uint32_t action; /* enum sbx_action */
    uint32_t status; /* with SBX_RESPOND */
    const char *details; /* response code details; a constant, never NULL */
} sbx_failure;

/* What a failure means for a stream. `policy` NULL: no policy is known, which is never fail-open. */
SBX_API sbx_failure sbx_failure_decide(const sbx_policy *policy, enum sbx_phase phase, enum sbx_cause cause,
                                       bool response_started);

/* ---- attaching --------------------------------------------------------------------------------------------------- */

#define SBX_ANY_UID UINT32_MAX

typedef struct sbx_attach_options {
    const char *socket_path; /* the daemon's attach socket; a path, at most 107 bytes */
    const char *tenant;
    const char *plugin;      /* "" or NULL: the tenant's only one */
    uint32_t daemon_uid;     /* who must own the other end; SBX_ANY_UID: whoever the file's permissions let in */
    uint64_t max_backlog_bytes; /* what may wait for room in the ring; 0: 16 MiB */
} sbx_attach_options;

/*
 * Connects and asks for a channel, without waiting. Poll sbx_attachment_fd for POLLIN and call sbx_attach_step.
 *
 * SBX_OK: *attachment is yours. SBX_SYSTEM: the daemon cannot be reached. SBX_PROTOCOL: not the daemon's user.
 */
SBX_API int sbx_attach_begin(const sbx_attach_options *options, sbx_attachment **attachment, sbx_error *error);
SBX_API int sbx_attachment_fd(const sbx_attachment *attachment);
/*
 * Goes on. Anything but SBX_AGAIN ends the attachment.
 *
 * SBX_OK: *channel is yours. SBX_AGAIN: poll again; the plugin may be down, see sbx_attachment_policy, and the channel
 * comes when it runs. SBX_REFUSED, SBX_DETACHED (the daemon closed), SBX_PROTOCOL, SBX_SYSTEM, SBX_NO_MEMORY.
 */
SBX_API int sbx_attach_step(sbx_attachment *attachment, sbx_channel **channel, sbx_error *error);
/* The plugin's policy while the daemon has no VM for it (for sbx_failure_decide); NULL: not said. Borrowed. */
SBX_API sbx_policy *sbx_attachment_policy(const sbx_attachment *attachment);
/* Why the daemon has no VM for it; printable, "" if it did not say so. */
SBX_API const char *sbx_attachment_reason(const sbx_attachment *attachment);
SBX_API void sbx_attach_cancel(sbx_attachment *attachment);

/* As begin and step, but waits. SBX_TIMEOUT: no channel in time. */
SBX_API int sbx_attach(const sbx_attach_options *options, uint64_t timeout_ns, sbx_channel **channel, sbx_error *error);

/* A channel that came some other way. All descriptors become the channel's, also when this fails. */
typedef struct sbx_descriptors {
    int memfd, vm_event_fd, client_event_fd;
    int socket; /* of the attachment; -1: none */
    uint32_t ring_bytes;
    uint64_t max_backlog_bytes; /* 0: 16 MiB */
    uint64_t spin_ns;           /* longest busy wait of sbx_wait and sbx_spin */
} sbx_descriptors;

/* SBX_PROTOCOL: not a sealed channel of this size. The channel keeps the policy for itself (sbx_policy_keep). */
SBX_API int sbx_channel_open(const sbx_descriptors *descriptors, sbx_policy *policy, sbx_channel **channel,
                             sbx_error *error);

/* ---- channel ----------------------------------------------------------------------------------------------------- */

/*
 * What may come at any time. Called from within functions of this channel that look for completions (sbx_wait, sbx_spin,
 * sbx_next, sbx_arm, sbx_ready, submissions), in the same thread. What is passed lives as long as the call. They may
 * call nothing but sbx_stream_find, sbx_stream_id, sbx_stream_user, sbx_policy_*, and sbx_event_status, _verdict, _kind.
 * Events whose verdicts came before `late` have ended by then, though nobody may have been told of them: apply them first.
 */
typedef struct sbx_hooks {
    void *user;
    /* Outside any event, or of an event that nobody waits for. */
    void (*notice)(void *user, const sbx_notice *notice);
    /* An effect on `stream` arose outside its own events (in an event of another stream, in a tick, at the answer to a
       callout): it goes on, or is answered, now. Copy what you need. SBX_AS_SUBMITTED comes this way for a body alone that the
       plugin does not need: it stands for yours. */
    void (*late)(void *user, sbx_stream *stream, const sbx_effect *effect);
} sbx_hooks;

SBX_API void sbx_channel_hooks(sbx_channel *channel, const sbx_hooks *hooks);
SBX_API void sbx_channel_close(sbx_channel *channel);
/* Borrowed; never NULL. */
SBX_API sbx_policy *sbx_channel_policy(const sbx_channel *channel);
/* Whether events may be submitted now. If not, the failure policy answers with SBX_CAUSE_VM_DOWN. */
SBX_API bool sbx_ready(sbx_channel *channel);
/* Why the channel is broken or detached; "" while it is neither. Printable. */
SBX_API const char *sbx_channel_reason(const sbx_channel *channel);
/* Cause of SBX_DOWN for an event that was submitted: SBX_CAUSE_CPU_LIMIT, _MEMORY_LIMIT or _HOST_CALL_LIMIT if the worker names
   that limit, else SBX_CAUSE_TRAP. */
SBX_API enum sbx_cause sbx_channel_down_cause(const sbx_channel *channel);
/* Generation of the VM; 0 before the first. */
SBX_API uint32_t sbx_channel_generation(const sbx_channel *channel);
SBX_API uint64_t sbx_channel_spin_ns(const sbx_channel *channel);
SBX_API void sbx_channel_set_spin_ns(sbx_channel *channel, uint64_t spin_ns);
/* A VM that sleeps is woken for every submission, unless so many of them may wait for the next: then whoever submits has to
   call sbx_call, or sbx_wait, sbx_next or sbx_arm, before it leaves the channel alone. It saves wake-ups, which are dear. */
SBX_API void sbx_channel_set_batch(sbx_channel *channel, uint32_t submissions);
/* Wakes the VM if it sleeps and something waits. */
SBX_API void sbx_call(sbx_channel *channel);

/* Readable when the VM wants attention after sbx_arm returned SBX_OK. Never read it yourself. */
SBX_API int sbx_channel_fd(const sbx_channel *channel);
/* The attach socket, -1 if there is none: readable when sbx_channel_check has news. */
SBX_API int sbx_channel_socket(const sbx_channel *channel);
/*
 * Reads the daemon's notices. SBX_OK: none. SBX_DRAIN (every time from then on). SBX_DETACHED: the worker is dead, or
 * the daemon is; all outstanding events end with SBX_DETACHED, close the channel. A dead daemon says so here alone: the
 * worker dies with it.
 */
SBX_API int sbx_channel_check(sbx_channel *channel, sbx_error *error);

/* ---- streams ----------------------------------------------------------------------------------------------------- */

/*
 * Opens an HTTP stream. Attributes: path (segments joined by NUL) to encoded value; what the plugin may not see is left
 * out here. The header maps as attributes (request.headers) are left out as well: the VM has them from the events.
 *
 * SBX_DOWN, SBX_BROKEN, SBX_DETACHED, SBX_FULL, SBX_LIMIT (open streams, or a map past 1 MiB or 1024 entries),
 * SBX_NO_MEMORY.
 */
SBX_API int sbx_stream_open(sbx_channel *channel, const sbx_pair *attributes, size_t count, uint64_t time_ns,
                            void *user, sbx_stream **stream);
/* Adds to what is known of a stream, or replaces it. As sbx_stream_open. */
SBX_API int sbx_stream_attributes(sbx_stream *stream, const sbx_pair *attributes, size_t count, uint64_t time_ns);
/* Ends a stream; `reset`: early. Events of it that are outstanding stay yours. What the end brings goes to the hooks. */
SBX_API void sbx_stream_close(sbx_stream *stream, bool reset, uint64_t time_ns);
SBX_API uint64_t sbx_stream_id(const sbx_stream *stream);
SBX_API void *sbx_stream_user(const sbx_stream *stream);
/* The VM that had the stream is gone: submissions give SBX_DOWN, closing it costs nothing. */
SBX_API bool sbx_stream_lost(const sbx_stream *stream);
/* Bytes of a body (SBX_REQUEST_BODY, SBX_RESPONSE_BODY) of events that have ended which are kept until the plugin lets them go,
   and with nobody else: without the plugin they cannot go on. */
SBX_API size_t sbx_stream_kept(const sbx_stream *stream, enum sbx_kind kind);
/* NULL: not open. */
SBX_API sbx_stream *sbx_stream_find(const sbx_channel *channel, uint64_t stream_id);
SBX_API size_t sbx_stream_count(const sbx_channel *channel);

/* ---- events ------------------------------------------------------------------------------------------------------ */

/*
 * Submits a header map (SBX_REQUEST_HEADERS, _TRAILERS, SBX_RESPONSE_...) in your order; repeated names are repeated
 * entries. The plugin sees the redacted view of it. A copy is kept until the stream ends, to tell changes from.
 *
 * SBX_OK: *event is yours. Errors as sbx_stream_open; SBX_INVALID: the kind is no map, or was submitted before.
 */
SBX_API int sbx_submit_headers(sbx_stream *stream, enum sbx_kind kind, const sbx_pair *headers, size_t count,
                               bool end_of_stream, uint64_t time_ns, void *user, sbx_event **event);
/*
 * Submits a piece of a body, gathered from `count` places. Of one that the plugin cannot read the VM sees the size alone,
 * and of one that it cannot read or may not write a copy is kept until it goes on: then these bytes come out, all that the
 * VM has answered for, whatever it says; those that it left behind before the trailers.
 *
 * `sbx_submit_nothing`, in place of a body that the plugin has no callback for, tells the VM of an empty one, which lets
 * headers go that wait for it; effects of it stand for your body.
 */
SBX_API int sbx_submit_body(sbx_stream *stream, enum sbx_kind kind, const sbx_bytes *pieces, size_t count,
                            bool end_of_stream, uint64_t time_ns, void *user, sbx_event **event);
SBX_API int sbx_submit_nothing(sbx_stream *stream, enum sbx_kind kind, bool end_of_stream, uint64_t time_ns, void *user,
                               sbx_event **event);

/* ---- TCP connections --------------------------------------------------------------------------------------------- */

/*
 * A connection is a stream; sbx_stream_attributes, _close, _id, _user, _lost and _find work on it, the HTTP events give
 * SBX_INVALID. This library keeps its bytes, knows what the plugin holds, and applies the failure policy:
 *
 *     sbx_connection_open       its beginning is the first event
 *     sbx_submit_data           bytes of either direction; with *event, wait as for any event, then
 *     sbx_connection_take       says what goes on now, in either direction, and whether the connection goes on
 *     sbx_submit_peer_close     a side has gone
 *     sbx_stream_close
 *
 * A connection has one event with the VM at a time; its verdict brings properties, notices and refusals alone. Bytes are
 * copied: yours are free after the call. In either direction at most the policy's body_buffer_bytes are held beside one
 * event's own, and max_bytes of the plugin's that you have not taken. A plugin that may not read a direction is shown
 * zeros, and one that may not write says when bytes go on, not which: the true ones do.
 *
 * Bytes may also be freed outside the connection's own events (by another connection, a tick, the answer to a callout):
 * sbx_hooks.late is called with an effect without data, and afterwards sbx_connection_take has something.
 */

enum sbx_peer { SBX_PEER_UNKNOWN = 0, SBX_PEER_LOCAL = 1, SBX_PEER_REMOTE = 2 }; /* who closed */

enum sbx_tcp_action {
    SBX_TCP_CONTINUE = 0,
    SBX_TCP_PAUSE = 1,  /* the plugin holds something; go on reading, or wait: at most time_per_pause_ns of the policy */
    SBX_TCP_CLOSE = 2,  /* the plugin ends the connection, in an orderly way; nothing else goes on */
    SBX_TCP_RESET = 3,  /* the plugin failed: reset it, so that nobody takes what came for the whole */
    SBX_TCP_BYPASS = 4, /* no plugin: it has no callback, or failed open. Bytes may go straight on from now on */
};

typedef struct sbx_tcp_outcome {
    uint32_t action;      /* enum sbx_tcp_action */
    bool failed;          /* then cause says why */
    uint32_t cause;       /* enum sbx_cause */
    sbx_bytes downstream; /* from downstream: goes to upstream now */
    sbx_bytes upstream;   /* from upstream: goes to downstream now */
    bool downstream_ended; /* after these bytes nothing more comes from downstream */
    bool upstream_ended;
} sbx_tcp_outcome;

/*
 * Opens a connection and shows its beginning to the plugin; attributes as for sbx_stream_open, also the errors: then
 * there is no connection, and sbx_failure_decide (with response_started) says what to do.
 *
 * SBX_OK: *connection is yours, and *event; NULL: nothing to wait for, sbx_connection_take tells at once.
 */
SBX_API int sbx_connection_open(sbx_channel *channel, const sbx_pair *attributes, size_t count, uint64_t time_ns,
                                void *user, void *event_user, sbx_stream **connection, sbx_event **event);
/*
 * Shows bytes of a direction (SBX_DOWNSTREAM_DATA, SBX_UPSTREAM_DATA), gathered from `count` places; `end_of_stream`: the
 * peer has sent its last.
 *
 * SBX_OK: the bytes are taken; *event as above. A plugin that cannot be reached is a failure, which
 * sbx_connection_take tells. SBX_FULL: an event of the connection is outstanding. SBX_LIMIT: 2 GiB or more.
 * SBX_INVALID: no connection or kind of it, after its end, or after CLOSE or RESET. SBX_NO_MEMORY. With these nothing
 * was taken.
 */
SBX_API int sbx_submit_data(sbx_stream *connection, enum sbx_kind kind, const sbx_bytes *pieces, size_t count,
                            bool end_of_stream, uint64_t time_ns, void *user, sbx_event **event);
/* Tells that a side has gone (SBX_DOWNSTREAM_CLOSE, SBX_UPSTREAM_CLOSE), and who closed. As sbx_submit_data. */
SBX_API int sbx_submit_peer_close(sbx_stream *connection, enum sbx_kind kind, enum sbx_peer peer, uint64_t time_ns,
                                  void *user, sbx_event **event);
/*
 * What to do now; bytes are told once, and live until the next call for this connection or its end. Call it when an
 * event of it has ended, whatever with (an event that is freed before counts as timed out), after sbx_hooks.late, and for
 * every connection when a channel is lost (SBX_VM_STARTED, sbx_channel_check).
 *
 * SBX_OK. SBX_INVALID: not a connection.
 */
SBX_API int sbx_connection_take(sbx_stream *connection, sbx_tcp_outcome *outcome);

/* ---- verdicts ---------------------------------------------------------------------------------------------------- */

/*
 * Looks for the verdict for a while, at most the channel's spin_ns, mostly less if looking was in vain lately.
 * With fewer than 4 CPUs only while at most one stream is open on the channel: otherwise the rest needs the CPU.
 *
 * SBX_OK: it is there. SBX_AGAIN: not yet. Otherwise there will be none: SBX_TIMEOUT, SBX_DOWN, SBX_BROKEN,
 * SBX_DETACHED. The same is true of sbx_event_status at any later time.
 */
SBX_API int sbx_spin(sbx_event *event);
/* Spins, then sleeps until the verdict is there; never returns SBX_AGAIN. timeout_ns 0: the policy's time per event.
   After SBX_TIMEOUT the event has ended. */
SBX_API int sbx_wait(sbx_event *event, uint64_t timeout_ns);

/* The next event that ended and that sbx_wait, sbx_spin or sbx_next have not told yet. SBX_AGAIN: none. Also takes note
   of events whose time is over. */
SBX_API int sbx_next(sbx_channel *channel, sbx_event **event);
/* Asks to be woken through sbx_channel_fd. SBX_OK: armed, sleep. SBX_AGAIN: there is something, call sbx_next first.
   SBX_BROKEN, SBX_DETACHED: the channel is dead. */
SBX_API int sbx_arm(sbx_channel *channel);
/* The same, without a system call, for who watches the descriptor for edges (EPOLLET): it stays readable. */
SBX_API int sbx_arm_edge(sbx_channel *channel);
/* CLOCK_MONOTONIC at which sbx_next has to be called at the latest, for time-outs; 0: nothing is outstanding. */
SBX_API uint64_t sbx_next_deadline_ns(const sbx_channel *channel);

SBX_API int sbx_event_status(const sbx_event *event);
/* NULL unless the status is SBX_OK. */
SBX_API const sbx_verdict *sbx_event_verdict(const sbx_event *event);
SBX_API void *sbx_event_user(const sbx_event *event);
SBX_API enum sbx_kind sbx_event_kind(const sbx_event *event);
SBX_API uint64_t sbx_event_stream_id(const sbx_event *event);
SBX_API void sbx_event_free(sbx_event *event); /* NULL is fine */

#ifdef __cplusplus
}
#endif
#endif
