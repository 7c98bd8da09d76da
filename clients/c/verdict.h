/* Shared by the files that make of a hostile VM's words what the caller may do. */
#ifndef SBX_VERDICT_H
#define SBX_VERDICT_H

#include "internal.h"

/* What the steps of one effect share. */
struct turn {
    sbx_channel *channel;
    sbx_stream *stream;
    struct collected *got;
    unsigned properties; /* written so far */
    bool late;           /* outside the stream's own events */
};

static inline const sbx_policy *policy_of(const struct turn *turn)
{
    return turn->channel->policy;
}

/* verdict.c; false: no memory */
bool refuse_effect(const struct turn *turn, sbx_effect *effect, enum sbx_reason reason, sbx_bytes word);

/* bodies.c */
int interpret_body(const struct turn *turn, sbx_effect *effect);
/* What was kept of a body, and the plugin left behind, goes on before the trailers. `rest` is not touched if there is
   nothing. False: no memory. */
bool rest_of_body(const struct turn *turn, const sbx_effect *trailers, sbx_effect *rest);

/* Whether the VM has seen all of the direction. No honest one names its end, or trailers, before. */
bool may_end(const sbx_stream *stream, unsigned kind);

#endif
