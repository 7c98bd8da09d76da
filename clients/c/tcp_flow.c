/*
 * Which bytes of a TCP connection the plugin holds, which go on, and what its failure means for them. As TcpExchange in
 * sandboxd/client/tcp_exchange.py.
 *
 * A connection has one event with the VM at a time. So the bytes of that event are all that AS_SUBMITTED can mean, and
 * a verdict's state speaks of everything that the VM has.
 */
#include "tcp.h"

#include <stdlib.h>

/* ---- bytes ------------------------------------------------------------------------------------------------------- */

bool held_reserve(struct held *held, size_t more)
{
    size_t want = held->len + more, capacity = held->capacity * 2 < want ? want : held->capacity * 2;
    if (want <= held->capacity)
        return true;
    uint8_t *larger = realloc(held->data, capacity);
    if (!larger)
        return false;
    held->data = larger;
    held->capacity = capacity;
    return true;
}

bool held_append(struct held *held, sbx_bytes bytes)
{
    if (!held_reserve(held, bytes.len))
        return false;
    if (bytes.len)
        memcpy(held->data + held->len, bytes.data, bytes.len);
    held->len += bytes.len;
    return true;
}

static void drop(struct held *held)
{
    free(held->data);
    *held = (struct held){0};
}

/* The first `len` bytes of `from` behind `to`, mostly without a copy. */
static bool move(struct held *to, struct held *from, size_t len)
{
    if (!to->len && len == from->len) {
        struct held empty = *to;
        *to = *from;
        *from = empty;
        return true;
    }
    if (!held_append(to, (sbx_bytes){from->data, len}))
        return false;
    from->len -= len;
    if (from->len)
        memmove(from->data, from->data + len, from->len);
    return true;
}

/* ---- what goes on ------------------------------------------------------------------------------------------------ */

void connection_end(struct tcp *tcp, bool reset)
{
    tcp->closed = !reset;
    tcp->reset = reset;
    for (int i = 0; i < DIRECTIONS; i++) {
        drop(&tcp->flows[i].mine);
        drop(&tcp->flows[i].out);
        tcp->flows[i].held = false;
    }
}

/* All bytes that have not gone on are here. */
static bool can_pass_by(const struct flow *flow)
{
    return flow->keeps || !flow->older_with_vm;
}

bool flow_pass_by(struct flow *flow)
{
    flow->ended = flow->input_over;
    flow->held = false;
    if (!flow->keeps && !flow->with_vm)
        return true;
    flow->with_vm = flow->older_with_vm = false;
    return move(&flow->out, &flow->mine, flow->mine.len);
}

void connection_fail(const sbx_policy *policy, struct tcp *tcp, enum sbx_cause cause)
{
    struct flow *down = &tcp->flows[DOWNSTREAM], *up = &tcp->flows[UPSTREAM];
    if (finished(tcp) || tcp->bypassed)
        return;
    tcp->failed = true;
    tcp->cause = cause;
    bool open = can_pass_by(down) && can_pass_by(up) &&
                sbx_failure_decide(policy, tcp->phase, cause, true).action == SBX_CONTINUE;
    if (!open || !flow_pass_by(down) || !flow_pass_by(up))
        connection_end(tcp, true);
    else
        tcp->bypassed = true;
}

const sbx_event *connection_event(const sbx_stream *stream)
{
    const sbx_event *event = stream->tcp->seq ? event_find(stream->channel, stream->tcp->seq) : NULL;
    return event && event->stream_id == stream->id && event->owned && event->status == SBX_AGAIN ? event : NULL;
}

void connection_no_memory(struct tcp *tcp)
{
    tcp->failed = true;
    tcp->cause = SBX_CAUSE_LIMIT;
    connection_end(tcp, true);
}

/* SBX_OK or SBX_BROKEN: no honest worker says this. */
static int go_on(const struct tcp_turn *turn, const sbx_stream *stream, const sbx_effect *effect)
{
    struct tcp *tcp = stream->tcp;
    const sbx_event *event = turn->late ? connection_event(stream) : NULL;
    struct flow *flow = flow_of(tcp, effect->kind);
    bool as_submitted = effect->flags & SBX_AS_SUBMITTED, ends = effect->flags & SBX_END_OF_STREAM;
    if (flow->ended || (ends && !flow->input_over))
        return SBX_BROKEN;
    flow->ended = ends;
    flow->held = flow->held && !turn->late;
    flow->older_with_vm = false;
    /* What comes before the verdict, and not in its turn, is of older bytes alone: the plugin has yet to see the last. */
    flow->with_vm = event && event->kind == effect->kind;
    size_t staying = flow->with_vm ? flow->last_len : 0;
    if (flow->keeps || as_submitted) {
        if (!move(&flow->out, &flow->mine, flow->mine.len - staying))
            connection_no_memory(tcp);
        return SBX_OK;
    }
    if (write_body(turn->policy, effect->data.len)) {
        connection_end(tcp, true);
        return turn->refuse(turn->from, SBX_TOO_LARGE) ? SBX_OK : SBX_NO_MEMORY;
    }
    flow->out_foreign += effect->data.len;
    /* The caller is told of each piece, but need not fetch it. */
    if (flow->out_foreign > turn->policy->limits.max_bytes || !held_append(&flow->out, effect->data))
        connection_no_memory(tcp);
    return SBX_OK;
}

bool tcp_over(const sbx_stream *stream)
{
    return stream->tcp && (finished(stream->tcp) || stream->tcp->bypassed);
}

int tcp_effect(const struct tcp_turn *turn, sbx_stream *stream, sbx_effect *effect)
{
    struct tcp *tcp = stream->tcp;
    int status = SBX_OK;
    if (is_data_kind(effect->kind))
        status = go_on(turn, stream, effect);
    else
        connection_end(tcp, false);
    effect->data = (sbx_bytes){NULL, 0};
    effect->flags &= ~(uint32_t)SBX_AS_SUBMITTED;
    return status;
}

static void set_state(struct flow *flow, bool held)
{
    flow->held = held;
    if (!held)
        flow->with_vm = flow->older_with_vm = false;
}

void tcp_verdict(sbx_stream *stream, uint32_t code, uint32_t state)
{
    static const enum sbx_cause causes[] = {SBX_CAUSE_TRAP, SBX_CAUSE_VM_DOWN, SBX_CAUSE_PROTOCOL, SBX_CAUSE_LIMIT,
                                            SBX_CAUSE_PROTOCOL};
    struct tcp *tcp = stream->tcp;
    if (code != SBX_VERDICT_OK) {
        connection_fail(stream->channel->policy, tcp, causes[code]);
        return;
    }
    set_state(&tcp->flows[DOWNSTREAM], state & (SBX_REQUEST_PAUSED | SBX_REQUEST_ALL_STOPPED));
    set_state(&tcp->flows[UPSTREAM], state & (SBX_RESPONSE_PAUSED | SBX_RESPONSE_ALL_STOPPED));
}

enum sbx_cause cause_of_status(const sbx_channel *channel, int status)
{
    switch (status) {
    case SBX_TIMEOUT:
        return SBX_CAUSE_TIMEOUT;
    case SBX_DOWN:
        return sbx_channel_down_cause(channel);
    case SBX_BROKEN:
        return SBX_CAUSE_PROTOCOL;
    case SBX_DETACHED:
        return SBX_CAUSE_WORKER_GONE;
    default:
        return SBX_CAUSE_LIMIT;
    }
}

void tcp_event_lost(sbx_channel *channel, uint64_t stream_id, int status)
{
    sbx_stream *stream = sbx_stream_find(channel, stream_id);
    if (stream && stream->tcp)
        connection_fail(channel->policy, stream->tcp, cause_of_status(channel, status));
}

void tcp_free(struct tcp *tcp)
{
    for (int i = 0; tcp && i < DIRECTIONS; i++) {
        drop(&tcp->flows[i].mine);
        drop(&tcp->flows[i].out);
        drop(&tcp->flows[i].taken);
    }
    free(tcp);
}

bool tcp_left(const sbx_stream *stream)
{
    return stream->tcp && stream->tcp->left;
}
