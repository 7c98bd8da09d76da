/* Callouts: their requests (callouts.c, grpc.c) and what comes back (callout_answers.c). */
#ifndef SANDBOXD_CALLOUTS_H
#define SANDBOXD_CALLOUTS_H

#include "hostcore.h"
#include "outbox.h"

enum call_kind { HTTP_CALL = 0, GRPC_CALL = 1, GRPC_STREAM = 2 };
#define KIND_MASK 3u             /* of an id */
#define MAX_UPSTREAM_BYTES 4096u /* a name, or Envoy's serialised GrpcService */

struct callout {
    bool local_closed; /* nothing more can be sent */
};

/* A part of a request where the guest has it. */
struct part {
    u32 at, len;
};

bool upstream_find(struct bytes name, struct bytes *found); /* of the configuration's upstreams */
bool callout_parts_ok(const struct part *parts, u32 count);
bool callout_small_enough(const struct part *parts, u32 count);
bool callout_room(void); /* for another one in flight */
bool callout_is_map(struct bytes encoded);
u32 callout_fresh_id(enum call_kind kind);
/* An upstream that the policy does not name: nobody waits for the answer, but outside it is counted and logged. */
void callout_tell_unknown(enum outbox_kind kind, struct bytes name);
/* The message with the name of the upstream as its first part, and the other parts copied from the guest. */
struct message *callout_compose(enum outbox_kind kind, u32 id, u32 argument, struct bytes upstream,
                                const struct part *parts, u32 count, struct bytes *copies);
/* Sends the message, or drops it; returns the guest's status. */
u32 callout_start(struct message *message, u32 id, u32 id_out);
struct callout *callout_find(u32 id); /* in flight; NULL: not */
void callout_forget(u32 id);

/* callout_answers.c */
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

#endif
