/* What the files of libsandboxd share. Nothing here is for users of the library. */
#ifndef SBX_INTERNAL_H
#define SBX_INTERNAL_H

#include "sandboxd.h"

#include <string.h>

#define KIB 1024u
#define MIB (1024u * 1024u)

/* ---- docs/channel.md --------------------------------------------------------------------------------------------- */

#define CHANNEL_MAGIC 0x43584253u
#define CHANNEL_VERSION 1u
#define PAGE_BYTES 4096u
#define MIN_RING_BYTES 65536u
#define MAX_RING_BYTES 4194304u
#define RECORD_BYTES 32u

/* Offsets in the header page. */
enum {
    AT_MAGIC = 0,
    AT_VERSION = 4,
    AT_RING_BYTES = 8,
    AT_SQ_TAIL = 64,
    AT_SQ_HEAD = 128,
    AT_CQ_TAIL = 192,
    AT_CQ_HEAD = 256,
    AT_VM_NEED_WAKE = 320,
    AT_VM_WANTS_SPACE = 324,
    AT_CLIENT_NEED_WAKE = 384,
    AT_CLIENT_WANTS_SPACE = 388,
    AT_VM_STATE = 448,
    AT_VM_GENERATION = 452,
};

enum vm_state { VM_STARTING, VM_READY, VM_FAILED, VM_GONE };

enum {
    KIND_PAD = 0,
    SUBMIT_STREAM_OPEN = 1,
    SUBMIT_ATTRIBUTES = 8,
    SUBMIT_STREAM_CLOSE = 9,
    COMPLETE_VERDICT = 1,
    COMPLETE_LAST = SBX_NOTE,
};

enum { FLAG_MORE = 1, FLAG_RESET = 32, FLAGS_ALL = 63 };

#define STATES_ALL 63u

struct record {
    uint16_t kind, flags;
    uint32_t event_seq, payload_len;
    uint64_t stream_id, arg;
};

/* ---- limits (the reasons are in sandboxd/limits.py) -------------------------------------------------------------- */

#define MAX_PAIRS_COUNT 1024u
#define MAX_PAIRS_BYTES (1u * MIB)
#define MAX_HEADER_NAME_BYTES 1024u
#define MAX_LOG_MESSAGE_BYTES (8u * KIB)
#define MAX_LOCAL_RESPONSE_BODY_BYTES (1u * MIB)
#define MAX_DETAILS_BYTES 256u
#define MAX_PROPERTY_PATH_BYTES (4u * KIB)
#define MAX_PROPERTY_SEGMENTS 32u
#define MAX_PROPERTY_VALUE_BYTES (64u * KIB)
#define MAX_WRITTEN_PROPERTIES 64u
#define SHOWN_NAME_BYTES 64u

/* ---- memory.c: blocks that are freed together -------------------------------------------------------------------- */

struct chunk;

struct arena {
    struct chunk *chunks;
    uint8_t *at;
    size_t left;
    uint64_t total; /* bytes given out since arena_reset */
};

/* 8-aligned, not cleared; NULL: no memory. `size` 0 gives a pointer that must not be read. */
void *arena_alloc(struct arena *arena, size_t size);
void *arena_array(struct arena *arena, size_t count, size_t size);
bool arena_copy(struct arena *arena, sbx_bytes *bytes); /* replaces it by a copy */
void arena_reset(struct arena *arena);                  /* keeps one small chunk */
void arena_free(struct arena *arena);

/* Room for one more in an array on the heap; false: no memory. */
bool grow(void **array, size_t count, size_t *capacity, size_t size);

/* ---- bytes.c ----------------------------------------------------------------------------------------------------- */

static inline uint8_t lower(uint8_t c)
{
    return c >= 'A' && c <= 'Z' ? (uint8_t)(c + 32) : c;
}

static inline bool is_pseudo(sbx_bytes name)
{
    return name.len && name.data[0] == ':';
}

static inline bool equal(sbx_bytes a, sbx_bytes b)
{
    return a.len == b.len && (a.len == 0 || memcmp(a.data, b.data, a.len) == 0);
}

static inline uint32_t get_u32(const uint8_t *at)
{
    return (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

static inline uint16_t get_u16(const uint8_t *at)
{
    return (uint16_t)(at[0] | at[1] << 8);
}

static inline uint64_t get_u64(const uint8_t *at)
{
    return get_u32(at) | (uint64_t)get_u32(at + 4) << 32;
}

static inline void put_u32(uint8_t *at, uint32_t value)
{
    for (int i = 0; i < 4; i++)
        at[i] = (uint8_t)(value >> 8 * i);
}

static inline void put_u64(uint8_t *at, uint64_t value)
{
    put_u32(at, (uint32_t)value);
    put_u32(at + 4, (uint32_t)(value >> 32));
}

#define LITERAL_INIT(text) {(const uint8_t *)(text), sizeof(text) - 1}
#define LITERAL(text) ((sbx_bytes)LITERAL_INIT(text))

bool equal_lower(sbx_bytes a, sbx_bytes b); /* ASCII case does not matter */
uint32_t hash_lower(sbx_bytes name); /* for tables whose names the policy chose */
/* SipHash-1-3 with a key of 16 bytes: for tables whose names a peer chose, who must not make them collide. */
uint32_t hash_keyed(const uint8_t *key, sbx_bytes name);
bool lowered(struct arena *arena, sbx_bytes *name); /* replaces it by a lower-case copy if it is not lower case */
bool is_utf8(sbx_bytes text);
/* Writes at most size - 1 bytes and a NUL; what does not print becomes '?'. */
void put_text(char *to, size_t size, const char *format, ...) __attribute__((format(printf, 3, 4)));
int fail(sbx_error *error, int status, const char *format, ...) __attribute__((format(printf, 3, 4)));
int fail_errno(sbx_error *error, const char *what);
uint64_t monotonic_ns(void);

/* ---- blake2b.c --------------------------------------------------------------------------------------------------- */

/* RFC 7693; key_len 0 to 64, out_len 1 to 64. */
void blake2b(uint8_t *out, size_t out_len, const uint8_t *key, size_t key_len, const uint8_t *data, size_t len);

/* ---- pairs.c ----------------------------------------------------------------------------------------------------- */

struct map {
    const sbx_pair *entries;
    size_t count;
};

/* Entries point into `data`, which stays where it is. SBX_OK, SBX_BROKEN (malformed or past the bounds), SBX_NO_MEMORY. */
int pairs_decode(sbx_bytes data, struct arena *arena, struct map *map);
uint64_t pairs_bytes(struct map map); /* 0 for the empty map */
void pairs_encode(struct map map, uint8_t *to);

/* ---- policy.c, rules.c ------------------------------------------------------------------------------------------- */

enum section { SECTION_REQUEST_HEADERS, SECTION_REQUEST_TRAILERS, SECTION_RESPONSE_HEADERS, SECTION_RESPONSE_TRAILERS,
               SECTIONS };
enum mode { MODE_SHOW, MODE_DROP, MODE_MASK, MODE_HASH, MODE_PRESENCE, MODES };
enum { WRITE_LOCAL_RESPONSE = 1, WRITE_BODY = 2, WRITE_PROPERTIES = 4 };
enum on_failure { ON_FAILURE_CLOSED, ON_FAILURE_OPEN, ON_FAILURE_RELOAD };

struct pattern {
    sbx_bytes name; /* lower case */
    uint8_t mode;
};

/* An exact name first, then the first prefix that fits. */
struct rules {
    struct pattern *exact; /* a hash table, name.data NULL: empty */
    uint32_t exact_mask;   /* slots - 1 */
    uint32_t exact_count;
    struct pattern *prefixes;
    uint32_t prefix_count;
    bool hides; /* any mode but SHOW */
};

struct sbx_policy {
    uint32_t owners;
    uint8_t *blob; /* all names point into it */
    sbx_bytes tenant, plugin, key, imports;
    uint64_t needs;
    sbx_limits limits;
    uint64_t failure, failure_status;
    uint64_t write_flags, max_headers, max_header_bytes, max_headers_bytes;
    struct rules redact[SECTIONS], denied, allowed;
    bool has_allowed;
    struct pattern *properties; /* name: path joined by NUL; mode 0 hidden, 1 shown */
    uint32_t property_count;
};

/* Reads one entry of a list at *at. False: malformed. */
bool rules_read(sbx_bytes list, size_t *at, uint8_t max_mode, struct pattern *pattern, bool *is_prefix);
bool rules_build(struct rules *rules, sbx_bytes list, uint8_t max_mode); /* false: malformed or no memory */
void rules_free(struct rules *rules);
const struct pattern *rules_find(const struct rules *rules, sbx_bytes name); /* any case; NULL: none fits */

static inline bool may_write_body(const sbx_policy *policy)
{
    return policy->write_flags & WRITE_BODY;
}

static inline enum mode header_mode(const sbx_policy *policy, enum section section, sbx_bytes name)
{
    const struct pattern *found = rules_find(&policy->redact[section], name);
    return found ? (enum mode)found->mode : MODE_SHOW;
}

/* ---- view.c, diff.c, write.c ------------------------------------------------------------------------------------- */

/* What the plugin sees. *hidden false: `view` is `headers` itself. False: no memory. */
bool view_of(const sbx_policy *policy, enum section section, struct map headers, struct arena *arena, struct map *view,
             bool *hidden);
/* `mode` is MODE_MASK or MODE_HASH. `to` has 32 bytes. */
sbx_bytes placeholder(const sbx_policy *policy, enum mode mode, sbx_bytes value, uint8_t *to);

/* What differs between the plugin's view and what it made of it, with hidden values put back in the place of what it was
   shown of them. `out` holds the result, `scratch` is used in between. False: no memory. */
bool changes_of(const sbx_policy *policy, enum section section, struct map headers, struct map view, bool hidden,
                struct map after, struct arena *out, struct arena *scratch, sbx_changes *changes);

struct refusals {
    sbx_refusal *list;
    size_t count, capacity;
    struct arena *arena;
};

bool refuse(struct refusals *refusals, enum sbx_reason reason, sbx_bytes name);
/* Leaves in `changes` what may be made. False: no memory. */
bool write_headers(const sbx_policy *policy, enum section section, sbx_changes *changes, struct arena *arena,
                   struct refusals *refusals);
/* SBX_ALLOWED, or why it must be left out. */
enum sbx_reason write_body(const sbx_policy *policy, uint64_t len);
enum sbx_reason write_property(const sbx_policy *policy, sbx_bytes path, sbx_bytes value);
/* Rewrites `local` to what may leave. SBX_OK, SBX_REFUSED (none may), SBX_NO_MEMORY. */
int write_local_response(const sbx_policy *policy, sbx_local_response *local, struct arena *arena,
                         struct refusals *refusals);

/* Between any two steps of the sleeping handshake; tests put a pause here. */
#ifndef SBX_STEP
#define SBX_STEP() ((void)0)
#endif

/* After a copy out of shared memory; tests overwrite what was copied, so that a second look at it shows. */
#ifndef SBX_COPIED
#define SBX_COPIED(shared, len) ((void)0)
#endif

/* ---- ring.c ------------------------------------------------------------------------------------------------------ */

struct backlog;

struct ring {
    uint8_t *shared; /* the whole file */
    size_t shared_bytes;
    uint8_t *sq, *cq;
    uint32_t bytes, mask;
    uint32_t sq_tail, sq_published, sq_free;
    uint32_t cq_head;
    bool armed; /* need_wake may be 1 */
    int vm_event_fd, client_event_fd;
    struct backlog *first, *last;
    uint64_t backlog_bytes, max_backlog_bytes;
};

int ring_map(struct ring *ring, const sbx_descriptors *descriptors, sbx_error *error);
void ring_unmap(struct ring *ring);

static inline uint32_t *ring_word(const struct ring *ring, uint32_t offset)
{
    return (uint32_t *)(void *)(ring->shared + offset);
}

static inline uint32_t ring_load(const struct ring *ring, uint32_t offset)
{
    return __atomic_load_n(ring_word(ring, offset), __ATOMIC_ACQUIRE);
}

static inline void ring_store(const struct ring *ring, uint32_t offset, uint32_t value)
{
    __atomic_store_n(ring_word(ring, offset), value, __ATOMIC_RELEASE);
}

static inline uint32_t max_payload(const struct ring *ring)
{
    return ring->bytes / 4 - RECORD_BYTES;
}

/* Writes a record's head and returns where `record->payload_len` bytes go. *at NULL: no room. SBX_OK or SBX_BROKEN. */
int ring_reserve(struct ring *ring, const struct record *record, uint8_t **at);
/* SBX_FULL: the backlog would grow past its bound. `always`: whatever it is. Takes `payload`, a heap block or NULL, also
   when it fails. */
int ring_queue(struct ring *ring, const struct record *record, uint8_t *payload, bool always);
int ring_pump(struct ring *ring); /* the backlog into the ring; SBX_OK or SBX_BROKEN */
void ring_flush(struct ring *ring);

static inline bool ring_has_records(const struct ring *ring)
{
    return ring_load(ring, AT_CQ_TAIL) != ring->cq_head;
}

enum ring_next { RING_EMPTY, RING_RECORD, RING_BROKEN };

struct reader {
    uint32_t head, tail;
};

/* Reads the VM's counter once. False: it cannot be. */
bool ring_begin(const struct ring *ring, struct reader *reader);
/* The next record; its head is a copy, its payload is still in shared memory at *payload: use ring_copy. */
enum ring_next ring_next(const struct ring *ring, struct reader *reader, struct record *record,
                         const uint8_t **payload);
void ring_end(struct ring *ring, const struct reader *reader); /* frees the room and wakes a VM that waits for it */
void ring_copy(void *to, const uint8_t *shared, size_t len);

/* SBX_AGAIN: there is work, do not sleep. SBX_BROKEN. */
int ring_prepare_sleep(struct ring *ring);
void ring_awake(struct ring *ring);
void ring_clear_event(const struct ring *ring);
void ring_raise_event(const struct ring *ring); /* as if the VM had */

/* ---- channel.c, streams.c, events.c, take.c, verdict.c ----------------------------------------------------------- */

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
    struct held held[2]; /* request, response: a body that the plugin may not change, as submitted */
    unsigned late_properties;
    struct arena arena;
};

#define MAX_PARTIALS 16u

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
    void *user;
    uint32_t seq;
    uint16_t kind;
    bool has_body;  /* AS_SUBMITTED may still be said */
    bool in_table;  /* the VM may still speak of it */
    bool owned;     /* the caller has it */
    bool deaf;      /* nobody wants what it brings */
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
    struct collected loose; /* what arises outside events, bounded per window of time */
    uint64_t loose_since_ns;
    uint64_t restarts[64]; /* times, a ring */
    unsigned restart_count;
    uint64_t spin_ns, spin_now_ns;
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
void event_end(sbx_event *event, int status);             /* tells the caller; may be in the table still */
void event_told(sbx_event *event);                        /* the caller knows that it ended */
void events_lose(sbx_channel *channel, int status, bool forget);
void event_destroy(sbx_event *event);
uint32_t take_seq(sbx_channel *channel);

void collected_reset(struct collected *got, const sbx_channel *channel);
void collected_free(struct collected *got);
bool charge(struct collected *got, uint64_t records, uint64_t bytes); /* false: it is past its budget */
bool charge_loose(sbx_channel *channel, uint64_t bytes);             /* one record outside events */

#define RECORD_OVERHEAD_BYTES 64u

/* `payload` is in shared memory. SBX_OK or the status of a dead channel. */
int take_record(sbx_channel *channel, const struct record *record, const uint8_t *payload);
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
int send_record(sbx_channel *channel, struct record record, struct writer writer, bool always);

static inline bool is_map_kind(unsigned kind)
{
    return kind == SBX_REQUEST_HEADERS || kind == SBX_REQUEST_TRAILERS || kind == SBX_RESPONSE_HEADERS ||
           kind == SBX_RESPONSE_TRAILERS;
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

#endif
