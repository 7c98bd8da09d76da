/* TCP connections of a channel: opened, fed with bytes, and asked for what goes on. */
#include "tcp.h"

#include <stdlib.h>

/* ---- submissions ------------------------------------------------------------------------------------------------- */

static void write_bytes(const void *from, size_t count, uint8_t *to)
{
    memcpy(to, from, count);
}

/* What cannot be submitted is a failure of the plugin. */
static void show(sbx_stream *stream, unsigned kind, struct writer writer, bool end_of_stream, void *user,
                 sbx_event **event)
{
    sbx_channel *channel = stream->channel;
    int status = channel_usable(channel);
    bool down = status == SBX_DOWN && !stream->lost;
    if (!status && stream->lost)
        status = SBX_DOWN;
    if (!status)
        status = submit_event(stream, (enum sbx_kind)kind, writer, end_of_stream, stream->tcp->time_ns, user, event);
    if (status)
        connection_fail(channel->policy, stream->tcp, down ? SBX_CAUSE_VM_DOWN : cause_of_status(channel, status));
    else
        stream->tcp->seq = (*event)->seq;
}

int sbx_connection_open(sbx_channel *channel, const sbx_pair *attributes, size_t count, uint64_t time_ns, void *user,
                        void *event_user, sbx_stream **connection, sbx_event **event)
{
    uint64_t needs = channel->policy->needs;
    bool writes = may_write_body(channel->policy);
    *connection = NULL;
    *event = NULL;
    struct tcp *tcp = calloc(1, sizeof *tcp);
    if (!tcp)
        return SBX_NO_MEMORY;
    int status = sbx_stream_open(channel, attributes, count, time_ns, user, connection);
    if (status) {
        free(tcp);
        return status;
    }
    (*connection)->tcp = tcp;
    tcp->phase = SBX_PHASE_REQUEST_HEADERS;
    tcp->time_ns = time_ns;
    tcp->flows[DOWNSTREAM].readable = needs & SBX_NEEDS_DOWNSTREAM_DATA;
    tcp->flows[UPSTREAM].readable = needs & SBX_NEEDS_UPSTREAM_DATA;
    for (int i = 0; i < DIRECTIONS; i++)
        tcp->flows[i].keeps = !tcp->flows[i].readable || !writes;
    tcp->bypassed = !(needs & SBX_HAS_TCP_CALLBACKS);
    if (!tcp->bypassed)
        show(*connection, SBX_NEW_CONNECTION, (struct writer){0}, false, event_user, event);
    return SBX_OK;
}

/* SBX_OK: `flow->mine` ends with them. */
static int came(struct flow *flow, const sbx_bytes *pieces, size_t count, uint64_t len)
{
    if (!flow->keeps)
        flow->mine.len = 0;
    if (!held_reserve(&flow->mine, len))
        return SBX_NO_MEMORY;
    for (size_t i = 0; i < count; i++)
        held_append(&flow->mine, pieces[i]);
    return SBX_OK;
}

int sbx_submit_data(sbx_stream *connection, enum sbx_kind kind, const sbx_bytes *pieces, size_t count,
                    bool end_of_stream, uint64_t time_ns, void *user, sbx_event **event)
{
    struct tcp *tcp = connection->tcp;
    const sbx_policy *policy = connection->channel->policy;
    uint64_t len = 0;
    *event = NULL;
    if (!tcp || !is_data_kind(kind) || finished(tcp) || flow_of(tcp, kind)->input_over)
        return SBX_INVALID;
    if (!tcp->bypassed && connection_event(connection))
        return SBX_FULL;
    for (size_t i = 0; i < count; i++) {
        if (pieces[i].len > UINT32_MAX / 2 || len + pieces[i].len > UINT32_MAX / 2)
            return SBX_LIMIT;
        len += pieces[i].len;
    }
    struct flow *flow = flow_of(tcp, kind);
    bool too_much = flow->keeps && !tcp->bypassed && (flow->held || flow->mine.len) &&
                    flow->mine.len + len > policy->limits.body_buffer_bytes;
    int status = too_much ? SBX_OK : came(flow, pieces, count, len);
    if (status)
        return status;
    tcp->time_ns = time_ns;
    tcp->phase = kind == SBX_DOWNSTREAM_DATA ? SBX_PHASE_REQUEST_BODY : SBX_PHASE_RESPONSE_BODY;
    flow->older_with_vm = flow->with_vm;
    flow->with_vm = true;
    flow->input_over = end_of_stream;
    flow->last_len = len;
    if (too_much) {
        connection_end(tcp, true);
    } else if (tcp->bypassed) {
        if (!flow_pass_by(flow))
            connection_no_memory(tcp);
    } else {
        const uint8_t *bytes = len ? flow->mine.data + (flow->mine.len - len) : NULL;
        show(connection, kind, (struct writer){flow->readable ? write_bytes : write_zeros, bytes, len, len},
             end_of_stream, user, event);
    }
    return SBX_OK;
}

static void write_peer(const void *from, size_t count, uint8_t *to)
{
    (void)count;
    put_u32(to, *(const uint32_t *)from);
}

int sbx_submit_peer_close(sbx_stream *connection, enum sbx_kind kind, enum sbx_peer peer, uint64_t time_ns, void *user,
                          sbx_event **event)
{
    struct tcp *tcp = connection->tcp;
    uint32_t number = peer;
    *event = NULL;
    if (!tcp || (kind != SBX_DOWNSTREAM_CLOSE && kind != SBX_UPSTREAM_CLOSE) || number > SBX_PEER_REMOTE)
        return SBX_INVALID;
    if (finished(tcp) || tcp->bypassed)
        return SBX_OK;
    if (connection_event(connection))
        return SBX_FULL;
    tcp->time_ns = time_ns;
    show(connection, kind, (struct writer){write_peer, &number, 1, 4}, false, user, event);
    return SBX_OK;
}

/* ---- outcomes ---------------------------------------------------------------------------------------------------- */

static sbx_bytes take(struct flow *flow)
{
    struct held old = flow->taken;
    flow->taken = flow->out;
    flow->out = old;
    flow->out.len = 0;
    flow->out_foreign = 0;
    return (sbx_bytes){flow->taken.data, flow->taken.len};
}

static enum sbx_tcp_action action_of(const struct tcp *tcp)
{
    if (finished(tcp))
        return tcp->reset ? SBX_TCP_RESET : SBX_TCP_CLOSE;
    if (tcp->bypassed)
        return SBX_TCP_BYPASS;
    return tcp->flows[DOWNSTREAM].held || tcp->flows[UPSTREAM].held ? SBX_TCP_PAUSE : SBX_TCP_CONTINUE;
}

int sbx_connection_take(sbx_stream *connection, sbx_tcp_outcome *outcome)
{
    struct tcp *tcp = connection->tcp;
    sbx_channel *channel = connection->channel;
    if (!tcp)
        return SBX_INVALID;
    int status = connection->lost ? SBX_DOWN : channel_usable(channel);
    /* Held bytes of a VM that is gone: nothing else would free them. */
    if (status && !connection_event(connection) && (tcp->flows[DOWNSTREAM].held || tcp->flows[UPSTREAM].held))
        connection_fail(channel->policy, tcp, cause_of_status(channel, channel->dead ? channel->dead : status));
    struct flow *down = &tcp->flows[DOWNSTREAM], *up = &tcp->flows[UPSTREAM];
    *outcome = (sbx_tcp_outcome){
        .action = action_of(tcp),
        .failed = tcp->failed,
        .cause = tcp->cause,
        .downstream = take(down),
        .upstream = take(up),
        .downstream_ended = down->ended,
        .upstream_ended = up->ended,
    };
    if ((finished(tcp) || tcp->bypassed) && !tcp->left) {
        tcp->left = true;
        stream_leave(connection, true, tcp->time_ns);
    }
    return SBX_OK;
}
