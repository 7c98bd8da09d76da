/* What runs outside the client's events, and the outbox: what the worker has to do for the VM (inbox.c). */
#ifndef SANDBOXD_OUTBOX_H
#define SANDBOXD_OUTBOX_H

#include "memory.h"

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

#endif
