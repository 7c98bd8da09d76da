/* What is known of a TCP connection. tcp_flow.c: what its events mean for its bytes; tcp.c: how they come and go. */
#ifndef SBX_TCP_H
#define SBX_TCP_H

#include "internal.h"

enum direction { DOWNSTREAM, UPSTREAM, DIRECTIONS };

struct flow {
    struct held mine; /* of the event that the VM has; with `keeps`: all that has not gone on */
    struct held out, taken;
    size_t last_len;      /* of `mine`: bytes of the last event */
    uint64_t out_foreign; /* of `out`: bytes that came from the VM */
    bool readable, keeps, held, input_over, ended, with_vm, older_with_vm;
};

struct tcp {
    struct flow flows[DIRECTIONS];
    enum sbx_phase phase;
    uint64_t time_ns; /* of the last event */
    uint32_t seq;     /* of the last event; 0: none */
    uint32_t cause;
    bool failed, bypassed, closed, reset, left;
};

static inline bool finished(const struct tcp *tcp)
{
    return tcp->closed || tcp->reset;
}

static inline struct flow *flow_of(struct tcp *tcp, unsigned kind)
{
    return &tcp->flows[kind == SBX_UPSTREAM_DATA ? UPSTREAM : DOWNSTREAM];
}

bool held_reserve(struct held *held, size_t more); /* false: no memory */
bool held_append(struct held *held, sbx_bytes bytes);
void connection_end(struct tcp *tcp, bool reset);
void connection_fail(const sbx_policy *policy, struct tcp *tcp, enum sbx_cause cause); /* what the policy says */
void connection_no_memory(struct tcp *tcp); /* reset; what went on before is not told any more */
bool flow_pass_by(struct flow *flow);       /* all that has not gone on does; false: no memory */
/* The event of the connection that the VM has; NULL: none. */
const sbx_event *connection_event(const sbx_stream *stream);
enum sbx_cause cause_of_status(const sbx_channel *channel, int status);

#endif
