/*
 * Pauses: the plugin has given its verdict, and holds the message back.
 *
 * What frees it may come at any time, from a tick or the answer to a callout, so the filter stays among those who wait for the
 * channel. If nothing more of the message can come that would free it, the policy's time per pause bounds the pause.
 */
#include "module.h"

static bool holds(const struct filter *filter, enum direction direction)
{
    const struct way *way = &filter->ways[direction];
    return way->stopped && !way->event && (way->held || !may_go(filter, direction));
}

/* Nothing that Envoy could still bring is shown to the plugin. */
static bool only_plugin_can_end(const struct filter *filter, enum direction direction)
{
    const struct way *way = &filter->ways[direction];
    bool nothing_is_shown = (way->all_stopped && !way->headers_go) || way->end_sent || way->trailers_sent;
    return holds(filter, direction) && nothing_is_shown;
}

static void set_end(struct filter *filter, uint64_t ends_ns)
{
    struct worker *worker = filter->link->worker;
    pthread_mutex_lock(&worker->lock);
    filter->pause_ends_ns = ends_ns;
    filter->pause_over = false;
    pthread_mutex_unlock(&worker->lock);
}

/* After each hook, and each time that the filter was woken: whether it has to wait for the channel, and how long. */
void pause_watch(struct filter *filter)
{
    bool live = !filter->gone && !filter->over && !filter->bypass && filter->lane && filter->stream;
    bool bounded = live && (only_plugin_can_end(filter, REQUEST) || only_plugin_can_end(filter, RESPONSE));
    if (bounded && !filter->pause_ends_ns) {
        sbx_limits limits;
        sbx_policy_limits(sbx_channel_policy(filter->lane->channel), &limits);
        set_end(filter, now_ns() + limits.time_per_pause_ns);
    } else if (!bounded && filter->pause_ends_ns) {
        set_end(filter, 0);
    }
    bool holding = live && (holds(filter, REQUEST) || holds(filter, RESPONSE));
    /* Once: whoever waits already has nothing to tell the lane, which would look, and come back here, for ever. */
    if (holding && !filter->waits_for_lane)
        wait_for_lane(filter);
    else if (!holding && filter->waits_for_lane && !filter->ways[REQUEST].event && !filter->ways[RESPONSE].event)
        stop_waiting(filter);
}

/* The VM that the plugin holds something back in is gone: the failure policy answers at once. */
void orphan_check(struct filter *filter)
{
    if (!filter->stream || filter->over || filter->bypass || !lane_lost(filter->lane, filter->stream))
        return;
    for (int direction = REQUEST; direction <= RESPONSE && !filter->over && !filter->bypass; direction++)
        if (holds(filter, (enum direction)direction))
            exchange_fail(filter, (enum direction)direction,
                          event_cause(filter, filter->lane->dead ? SBX_DETACHED : SBX_DOWN));
}

/* The failure policy answers a pause that took too long. */
void pause_check(struct filter *filter)
{
    if (!filter->pause_ends_ns || now_ns() < filter->pause_ends_ns || filter->over || filter->bypass)
        return;
    exchange_fail(filter, only_plugin_can_end(filter, REQUEST) ? REQUEST : RESPONSE, SBX_CAUSE_TIMEOUT);
}
