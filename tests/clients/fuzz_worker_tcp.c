/* The client's TCP connections: opened, fed, and what comes out of them checked. */
#include "fuzz_worker.h"

#define SECRET_BYTES (sizeof SECRET - 1)

static bool withheld(bool upstream)
{
    return !(side.channel->policy->needs & (upstream ? SBX_NEEDS_UPSTREAM_DATA : SBX_NEEDS_DOWNSTREAM_DATA));
}

/* Where the plugin may not read or not write, only what was submitted comes out: 'S', or the secret as often as it was sent. */
static void check_bytes(sbx_bytes bytes, bool upstream)
{
    volatile uint8_t sum = 0;
    for (size_t i = 0; i < bytes.len; i++) {
        sum ^= bytes.data[i];
        if ((withheld(upstream) || !may_write_body(side.channel->policy)) &&
            bytes.data[i] != (withheld(upstream) ? (uint8_t)SECRET[i % SECRET_BYTES] : 'S'))
            finding("the plugin's bytes went on although it may not read or write");
    }
    if (withheld(upstream) && bytes.len % SECRET_BYTES)
        finding("a part of what was withheld went on");
}

void take_connection(sbx_stream *connection)
{
    sbx_tcp_outcome outcome;
    if (sbx_connection_take(connection, &outcome))
        finding("a connection that is none");
    if (outcome.action > SBX_TCP_BYPASS || (outcome.failed && outcome.cause > SBX_CAUSE_HOST_CALL_LIMIT))
        finding("an outcome that is none came out");
    if ((outcome.action == SBX_TCP_CLOSE || outcome.action == SBX_TCP_RESET) &&
        (outcome.downstream.len || outcome.upstream.len))
        finding("bytes of a connection that is over");
    check_bytes(outcome.downstream, false);
    check_bytes(outcome.upstream, true);
    taken += outcome.downstream.len || outcome.upstream.len;
}

void submit_to_connection(sbx_stream *connection, sbx_event **event)
{
    static uint8_t bytes[30000];
    bool upstream = chance(50);
    take_connection(connection);
    if (chance(15)) {
        sbx_submit_peer_close(connection, upstream ? SBX_UPSTREAM_CLOSE : SBX_DOWNSTREAM_CLOSE, (enum sbx_peer)pick(4),
                              1, NULL, event);
        return;
    }
    size_t len = pick(chance(5) ? 30000 : 200);
    if (withheld(upstream))
        len -= len % SECRET_BYTES;
    for (size_t i = 0; i < len; i++)
        bytes[i] = withheld(upstream) ? (uint8_t)SECRET[i % SECRET_BYTES] : 'S';
    sbx_bytes pieces[] = {{bytes, len / 2}, {bytes + len / 2, len - len / 2}};
    sbx_submit_data(connection, upstream ? SBX_UPSTREAM_DATA : SBX_DOWNSTREAM_DATA, pieces, 2, chance(10), 1, NULL, event);
}
