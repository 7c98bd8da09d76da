/* What a channel knows: its streams, its events, and what the VM has said of them. */
#ifndef SBX_STATE_H
#define SBX_STATE_H

#include "ring.h"
#include "rules.h"

struct snapshot {
    struct map map;
    bool present, seen; /* seen: the plugin's view is not empty by policy */
    bool went_on;       /* which happens once */
};

struct held {
    uint8_t *data;
    size_t len, capacity;
};

struct sbx_stream {
    sbx_channel *channel;
    sbx_stream *slot_next;
    uint64_t id;
    void *user;
    bool lost;
    struct snapshot maps[SECTIONS];
    struct body_side {
        struct held kept; /* of a body that the plugin may not change, as submitted */
        size_t undecided; /* at its end: of events without a verdict */
        bool over;        /* the end was submitted, or trailers */
    } request, response;
    unsigned late_properties;
    struct tcp *tcp; /* NULL: an HTTP exchange */
    struct arena arena;
};

#define MAX_PARTIALS 16u
#define STREAMS_ALONE 64u /* so many one by one, and there is but one at a time */

struct piece {
    struct piece *next;
    size_t len;
    uint8_t data[];
};

/* An effect of which pieces are missing. */
struct partial {
    uint64_t stream_id, arg, len;
    uint16_t kind;
    bool used;
    struct piece *first, *last;
};

/* Bounds what one event, or a window of time outside events, may bring. */
struct budget {
    uint64_t effects, bytes;
};

struct collected {
    struct arena arena;
    sbx_effect *effects;
    size_t effect_count, effect_capacity;
    sbx_notice *notices;
    size_t notice_count, notice_capacity;
    struct refusals refusals;
    struct partial *partials; /* MAX_PARTIALS, NULL until the first */
    unsigned partial_count;
    struct budget budget;
};

struct list {
    sbx_event *first, *last;
};

struct sbx_event {
    sbx_channel *channel;
    sbx_event *slot_next;
    sbx_event *prev, *next;           /* in the list of outstanding ones, oldest first */
    sbx_event *ended_prev, *ended_next;
    struct list *ended_in;            /* the caller has it and it has ended: channel->done or channel->told */
    uint64_t stream_id, submitted_ns, body_len;
    uint64_t held_bytes; /* what came and is kept until the verdict, as it was charged */
    void *user;
    uint32_t seq;
    uint16_t kind;
    bool has_body;  /* AS_SUBMITTED may still be said */
    bool in_table;  /* the VM may still speak of it */
    bool owned;     /* the caller has it */
    bool deaf;      /* nobody wants what it brings */
    bool connection; /* its stream is a TCP connection */
    int status;
    struct collected got;
    sbx_verdict verdict;
};

struct sbx_channel {
    struct ring ring;
    sbx_policy *policy;
    sbx_hooks hooks;
    int socket;
    bool draining;
    int dead; /* 0, SBX_BROKEN or SBX_DETACHED */
    char reason[256];
    uint32_t generation, next_seq, restart_seq;
    uint64_t next_stream_id, dropped;
    struct budget limit; /* of one event */
    uint64_t held_bytes; /* of all events without a verdict */
    struct collected loose; /* what arises outside events, bounded per window of time */
    uint64_t loose_since_ns;
    uint64_t restarts[64]; /* times, a ring */
    unsigned restart_count;
    uint64_t spin_ns, spin_now_ns;
    bool many_cpus; /* for this thread to run on */
    unsigned crowd; /* streams that have yet to come one by one before this channel counts as one with a single stream */
    unsigned vain_spins;
    sbx_event **event_slots;
    sbx_stream **stream_slots;
    uint32_t event_mask, stream_mask;
    size_t event_count, stream_count; /* in the tables */
    struct list outstanding, done, told; /* told: the caller knows that they ended */
    sbx_event *spare;
    unsigned spare_count;
    struct arena scratch;
};

int channel_break(sbx_channel *channel, int status, const char *format, ...) __attribute__((format(printf, 3, 4)));
/* SBX_OK, or why nothing may be submitted. */
int channel_usable(sbx_channel *channel);
/* Deals with all that the VM has published. SBX_OK or the status of a dead channel. */
int channel_drain(sbx_channel *channel);
void channel_tell_broken(sbx_channel *channel); /* attach.c */

void streams_lose(sbx_channel *channel);
void stream_free(sbx_stream *stream);
bool stream_table_grow(sbx_channel *channel);

sbx_event *event_new(sbx_channel *channel);
void event_enter(sbx_channel *channel, sbx_event *event); /* into the table; room was made by event_table_grow */
bool event_table_grow(sbx_channel *channel);
sbx_event *event_find(const sbx_channel *channel, uint32_t seq);
void event_leave(sbx_channel *channel, sbx_event *event); /* out of the table */
/* Whether somebody is to be told of such an effect: of one that nobody waits for, what it does to other streams. */
bool event_wants(const sbx_event *event, unsigned kind, uint64_t stream_id);
void event_end(sbx_event *event, int status);             /* tells the caller; may be in the table still */
void event_told(sbx_event *event);                        /* the caller knows that it ended */
void events_lose(sbx_channel *channel, int status, bool forget);
void event_destroy(sbx_event *event);
uint32_t take_seq(sbx_channel *channel);

void collected_reset(struct collected *got, const sbx_channel *channel);
void collected_free(struct collected *got);
bool charge(struct collected *got, uint64_t records, uint64_t bytes); /* false: it is past its budget */
bool charge_loose(sbx_channel *channel, uint64_t bytes);             /* one record outside events */
bool charge_event(sbx_channel *channel, sbx_event *event, uint64_t bytes); /* one record of an event */
/* A record that is kept until the verdict. False: all events together hold more than an honest VM brings. */
bool hold_for_verdict(sbx_channel *channel, sbx_event *event, uint64_t bytes);

#define RECORD_OVERHEAD_BYTES 64u

/* `payload` is in shared memory. SBX_OK or the status of a dead channel. */
int take_record(sbx_channel *channel, const struct record *record, const uint8_t *payload);
/* The same, of a record that belongs to no event; loose.c. */
int take_loose(sbx_channel *channel, const struct record *record, const uint8_t *payload);
/* The whole payload of a checked effect or notice; `event` NULL: outside events. SBX_AGAIN: pieces are missing. */
int take_payload(sbx_channel *channel, sbx_event *event, const struct record *record, const uint8_t *payload,
                 sbx_bytes *data);
sbx_effect effect_of(const struct record *record, sbx_bytes data);
/* Whether a notice is anything that the caller should hear of. */
bool is_told(const sbx_channel *channel, const sbx_notice *notice);
/* Turns what an event collected into its verdict. SBX_OK, SBX_BROKEN (not told to the channel yet), SBX_NO_MEMORY. */
int interpret(sbx_channel *channel, sbx_event *event);
/* Hands out an effect that arose outside events, in channel->loose. The same. */
int interpret_loose(sbx_channel *channel, const sbx_effect *effect);

/* Submits an encoded payload; `payload` writes it. */
struct writer {
    void (*write)(const void *from, size_t count, uint8_t *to);
    const void *from;
    size_t count;
    uint64_t len;
};
void write_zeros(const void *from, size_t count, uint8_t *to); /* in place of what the plugin cannot read */
int send_record(sbx_channel *channel, struct record record, struct writer writer, bool always);
/* Submits and publishes one event with a verdict, whether or not the stream may have it. */
int submit_event(sbx_stream *stream, enum sbx_kind kind, struct writer writer, bool end_of_stream, uint64_t time_ns,
                 void *user, sbx_event **event);
/* The VM closes its half of a stream; ours stays. Nothing, if there is none. */
void stream_leave(const sbx_stream *stream, bool reset, uint64_t time_ns);

/* ---- tcp_flow.c -------------------------------------------------------------------------------------------------- */

struct tcp_turn {
    const sbx_policy *policy;
    bool late; /* outside the connection's own events */
    bool (*refuse)(const void *from, enum sbx_reason reason); /* false: no memory */
    const void *from;
};

/* What an effect means for a connection; leaves of it what the caller is told. SBX_OK, SBX_BROKEN, SBX_NO_MEMORY. */
int tcp_effect(const struct tcp_turn *turn, sbx_stream *stream, sbx_effect *effect);
void tcp_verdict(sbx_stream *stream, uint32_t code, uint32_t state); /* before the effects of its event */
void tcp_event_lost(sbx_channel *channel, uint64_t stream_id, int status);
bool tcp_over(const sbx_stream *stream); /* a connection on which the plugin has no say any more */
bool tcp_left(const sbx_stream *stream); /* the VM has closed its half */
void tcp_free(struct tcp *tcp);

static inline bool is_data_kind(unsigned kind)
{
    return kind == SBX_DOWNSTREAM_DATA || kind == SBX_UPSTREAM_DATA;
}

/* Else a notice. */
static inline bool is_effect_kind(unsigned kind)
{
    return kind < SBX_LOG || is_data_kind(kind);
}

static inline bool is_map_kind(unsigned kind)
{
    return kind == SBX_REQUEST_HEADERS || kind == SBX_REQUEST_TRAILERS || kind == SBX_RESPONSE_HEADERS ||
           kind == SBX_RESPONSE_TRAILERS;
}

static inline bool is_trailers_kind(unsigned kind)
{
    return kind == SBX_REQUEST_TRAILERS || kind == SBX_RESPONSE_TRAILERS;
}

static inline bool is_body_kind(unsigned kind)
{
    return kind == SBX_REQUEST_BODY || kind == SBX_RESPONSE_BODY;
}

static inline enum section section_of(unsigned kind)
{
    switch (kind) {
    case SBX_REQUEST_HEADERS:
        return SECTION_REQUEST_HEADERS;
    case SBX_REQUEST_TRAILERS:
        return SECTION_REQUEST_TRAILERS;
    case SBX_RESPONSE_HEADERS:
        return SECTION_RESPONSE_HEADERS;
    default:
        return SECTION_RESPONSE_TRAILERS;
    }
}

/* The bit of enum sbx_needs for a kind of event: they stand in the same order. */
static inline bool needed(const sbx_policy *policy, unsigned kind)
{
    return policy->needs >> (kind - SBX_REQUEST_HEADERS) & 1;
}

static inline bool is_of_response(unsigned kind)
{
    return kind >= SBX_RESPONSE_HEADERS && kind <= SBX_RESPONSE_TRAILERS;
}

static inline struct body_side *side_of(sbx_stream *stream, unsigned kind)
{
    return is_of_response(kind) ? &stream->response : &stream->request;
}

/* Whether the VM is told of a body's pieces, read them or not. */
static inline bool hears_body(const sbx_policy *policy, unsigned kind)
{
    uint64_t callback = kind == SBX_REQUEST_BODY ? SBX_HAS_REQUEST_BODY_CALLBACK : SBX_HAS_RESPONSE_BODY_CALLBACK;
    return needed(policy, kind) || policy->needs & callback;
}

/* Whether the plugin says when a body goes on, and not what. */
static inline bool keeps_body(const sbx_policy *policy, unsigned kind)
{
    return hears_body(policy, kind) && (!needed(policy, kind) || !may_write_body(policy));
}

#endif
