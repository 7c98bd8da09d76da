/*
 * libsandboxd_envoy: Envoy's HTTP filter on libsandboxd.
 *
 * Each of Envoy's worker threads has a `worker` with one `link` for each plugin that its routes name; a link has a `lane`,
 * which is a channel, and for a while older lanes whose streams have not ended. A `filter` is one HTTP exchange.
 *
 * THREADS. All but the waiter runs in Envoy's worker thread. The waiter, one thread beside each worker thread, polls the
 * channels' descriptors and schedules a filter back onto the worker; what it reads stands under worker.lock.
 */
#ifndef SANDBOXD_ENVOY_MODULE_H
#define SANDBOXD_ENVOY_MODULE_H

#include "abi.h"
#include "../c/sandboxd.h"

#include <pthread.h>
#include <stdatomic.h>

#define NAME_MAX_BYTES 255
#define PATH_MAX_BYTES 107
#define MS_NS 1000000ull

enum counter {
    COUNT_STREAMS,
    COUNT_AT_ONCE, /* verdicts within the spin budget */
    COUNT_LATER,   /* verdicts that a filter had to stop for */
    COUNT_FAILED_OPEN,
    COUNT_FAILED_CLOSED,
    COUNT_RESET,
    COUNT_LOCAL_RESPONSES,
    COUNT_REFUSED, /* things that the plugin may not do */
    COUNTERS,
};

/* Whom a stream belongs to; a route may name another than the filter's own. Immutable. */
struct target {
    char tenant[NAME_MAX_BYTES + 1];
    char plugin[NAME_MAX_BYTES + 1];
};

struct config {
    char socket[PATH_MAX_BYTES + 1];
    struct target target;
    bool fail_open;            /* while the daemon is away */
    int64_t spin_ns;           /* -1: what the daemon says */
    uint32_t daemon_uid;
    uint64_t attach_timeout_ns; /* how long an exchange waits for a channel that is being made */
    size_t counters[COUNTERS];
};

struct buffer {
    uint8_t *at;
    size_t len, room;
};

enum { LANE_NEWS = 1 };

/* Filters in the order in which they came; changed under worker.lock. */
struct waiting {
    struct filter *first, *last;
};

/* A channel. */
struct lane {
    struct lane *next;
    struct link *link;
    sbx_channel *channel;
    uint64_t id;         /* of both descriptors in the waiter's set */
    size_t filters;      /* that refer to this lane */
    bool draining, dead;
    bool restarted;      /* the VM began anew: who waits for the old one is told */
    bool vm_down;        /* when it was last looked at */
    atomic_bool news;    /* the socket is readable */
    struct waiting waiting;
    struct filter *looker;  /* who is scheduled, by this thread, and looks for completions then; NULL: nobody */
    struct filter *woken;   /* whom the waiter scheduled, until it ran; under worker.lock */
    uint64_t deadline_ns;   /* under worker.lock; 0: none */
};

struct link {
    struct link *next;
    struct worker *worker;
    struct target target;
    char path[PATH_MAX_BYTES + 1];
    uint32_t daemon_uid;
    struct lane *lane;   /* for new streams; NULL: none */
    struct lane *lanes;
    sbx_attachment *attachment;
    uint64_t id;         /* of the attachment's descriptor in the waiter's set */
    bool down;           /* the daemon has no VM for it */
    bool unknown;        /* the daemon knows no such plugin */
    sbx_policy *policy;  /* as last heard; NULL: never */
    _Atomic uint64_t *asked; /* attributes that the plugin has asked for; shared by all of Envoy's threads */
    uint64_t retry_ns, backoff_ns;
    struct waiting waiting; /* for a channel */
    struct filter *woken;   /* under worker.lock */
};

struct chain;

struct worker {
    pthread_mutex_t lock;
    pthread_t waiter;
    int epoll, stop;
    uint64_t ids;
    struct link *links;
    struct chain *free_chains;
};

enum direction { REQUEST, RESPONSE };
enum { NO_FAILURE = -1 };

/* One direction of an exchange. */
struct way {
    sbx_event *event;   /* its verdict was not looked at yet */
    sbx_event *queued;  /* of a body, behind that of its headers */
    unsigned concluded; /* of these two: their verdicts were applied before they were looked at */
    int failure;        /* of the last of those: an enum sbx_cause, or NO_FAILURE */
    struct buffer in;   /* bytes without a verdict that came after the headers had gone */
    size_t submitted;   /* bytes at the beginning of what has no verdict that `event` has */
    struct buffer out;  /* bytes that go on, not yet given to Envoy */
    size_t held;        /* bytes that the VM holds */
    bool shown;         /* a part of the body was shown to the plugin, and nothing of it goes on yet */
    bool has_headers;   /* Envoy showed the headers */
    bool headers_sent;  /* they were submitted */
    bool headers_go;    /* the plugin let them go */
    bool gone;          /* Envoy has let them go */
    bool ending;        /* Envoy showed the end of the body */
    bool bodyless;      /* ... with the headers */
    bool end_sent;      /* the end was submitted */
    bool has_trailers, trailers_sent, trailers_go;
    bool all_stopped;   /* body and trailers wait until the headers go */
    bool stopped;       /* Envoy waits for continue */
    bool same;          /* what `event` has goes on as it is */
    bool end_go;        /* the plugin let the end of the direction go */
};

struct filter {
    void *envoy;
    const struct config *config;
    const struct target *target;
    struct link *link;
    struct lane *lane;
    sbx_stream *stream;
    bool has_neighbours; /* others were made right before it or after it, of its chain or of another stream's */
    struct chain *chain; /* NULL: it is alone */
    void *scheduler;
    bool scheduled;     /* by this thread, and did not run yet */
    struct filter *next_waiting, *prev_waiting;
    bool waits_for_lane, waits_for_link;
    uint64_t pause_ends_ns; /* of a pause that only the plugin can end; under worker.lock; 0: none */
    bool pause_over;        /* the waiter has seen that; under worker.lock */
    uint64_t wait_until_ns;
    int inside;         /* direction whose hook runs, -1: none */
    bool inside_body;
    struct way ways[2];
    bool bypass;        /* the plugin is out of it */
    bool over;          /* answered or reset */
    bool gone;          /* Envoy destroyed it; freed when the last function that uses it returns */
    unsigned busy;
    sbx_local_response *local; /* a copy, to be sent */
    bool local_refused, close;
};

/* config.c */
bool config_parse(const char *text, size_t len, struct config *config, char *error, size_t error_len);
void complain_of(const char *what, const char *why); /* in Envoy's log */
bool target_parse(const char *text, size_t len, struct target *target, char *error, size_t error_len);

/* worker.c */
enum { ID_STEP = 4 }; /* room for LANE_NEWS */
struct link *link_of(const struct config *config, const struct target *target);
enum link_state { LINK_READY, LINK_WAIT, LINK_AWAY, LINK_DOWN, LINK_UNKNOWN };
enum link_state link_use(struct link *link, const struct config *config);
uint64_t now_ns(void);
uint64_t wall_ns(void);

/* lane.c */
void lane_new(struct link *link, sbx_channel *channel, const struct config *config);
void lane_free(struct lane *lane);
void lanes_free_unused(struct link *link);
void lane_news(struct lane *lane);
void lane_look(struct lane *lane, struct filter *running);
void lane_touched(struct lane *lane);
bool lane_lost(const struct lane *lane, const sbx_stream *stream); /* the VM that has the stream is gone */
void filter_join(struct filter *filter, struct lane *lane);
void filter_leave(struct filter *filter);

/* waiting.c */
bool has_scheduler(struct filter *filter);
void schedule(struct filter *filter);
void wait_for_lane(struct filter *filter);
void wait_for_link(struct filter *filter);
void stop_waiting(struct filter *filter);

/* waiter.c */
bool waiter_start(struct worker *worker);
void waiter_stop(struct worker *worker);
void waiter_watch_edges(struct worker *worker, int fd, uint64_t id);
void waiter_watch(struct worker *worker, int fd, uint64_t id, bool first);

/* effects.c */
void take_effect(struct filter *filter, const sbx_effect *effect);
void take_notice(void *user, const sbx_notice *notice);
void take_late(void *user, sbx_stream *stream, const sbx_effect *effect);
void count(struct filter *filter, enum counter counter);
void local_free(sbx_local_response *local);

/* submission.c */
void submit_headers(struct filter *filter, enum direction direction, bool end);
void advance(struct filter *filter, enum direction direction);
void submit_behind(struct filter *filter, enum direction direction);
bool hears_of_body(const struct filter *filter, enum direction direction); /* the plugin is called for it, read it or not */

/* flow.c */
void event_run(struct filter *filter, enum direction direction, sbx_event *event);
void resume(struct filter *filter);
void finish(struct filter *filter, enum direction direction);
void begin(struct filter *filter);
bool conclude_ended(struct filter *filter, enum direction direction); /* false: the exchange is about to fail */
bool forget_wake(struct filter *filter);
void set_aside(struct filter *filter, enum direction direction);
bool may_go(const struct filter *filter, enum direction direction);

/* ending.c; the failures by cause, by the status of a submission, and by that of an event */
bool flush(struct filter *filter);
void exchange_fail(struct filter *filter, enum direction direction, enum sbx_cause cause);
void submission_fail(struct filter *filter, enum direction direction, int status);
enum sbx_cause event_cause(const struct filter *filter, int status);
void fail_away(struct filter *filter);

/* pause.c */
void pause_watch(struct filter *filter);
void pause_check(struct filter *filter);
void orphan_check(struct filter *filter);

/* body.c; false: no memory, or Envoy takes it not */
enum { FEW_PIECES = 64 };
struct pieces {
    sbx_bytes *list, few[FEW_PIECES];
    size_t count;
};
bool buffer_add(struct buffer *buffer, const void *data, size_t len);
void buffer_free(struct buffer *buffer);
size_t body_size(const struct filter *filter, enum direction direction); /* of what has no verdict yet */
bool body_pieces(const struct filter *filter, enum direction direction, struct pieces *into); /* of the same; to be freed */
void pieces_free(struct pieces *pieces);
void body_drop(struct filter *filter, enum direction direction, size_t len);
bool body_let_go(struct filter *filter, enum direction direction, size_t len); /* from its beginning, behind `out` */
/* In a body hook that stops: what it brought has to outlive it. */
bool body_keep(struct filter *filter, enum direction direction);
/* The direction goes on: all that goes is Envoy's now, and all that had no verdict. */
bool body_hand_over(struct filter *filter, enum direction direction);

/* chain.c */
void chain_made(struct filter *filter);
void chain_runs(void); /* a filter does */
void chain_join(struct filter *filter);
void chain_leave(struct filter *filter);
void chains_free(struct worker *worker);
void chain_ends(const struct filter *filter, enum direction direction); /* the filter has seen the end */
bool chain_has_more(const struct filter *filter, enum direction direction); /* an earlier one has, and this one has not */
void chain_keeps(const struct filter *filter, enum direction direction, bool keeps);
bool chain_has_keeper(const struct filter *filter, enum direction direction);

/* attributes.c */
enum { MAX_ATTRIBUTES = 32, ATTRIBUTE_SPACE = 256 };
struct attributes {
    sbx_pair pairs[MAX_ATTRIBUTES];
    size_t count;
    uint8_t space[ATTRIBUTE_SPACE];
    size_t used;
};
_Atomic uint64_t *attributes_asked(const struct link *link); /* of the link's plugin; NULL: no memory */
void attribute_asked(struct link *link, sbx_bytes path);
void request_attributes(const struct filter *filter, struct attributes *into);
void response_attributes(const struct filter *filter, struct attributes *into);

#endif
