/* Channels: taken into use, listened to, and given up when the last stream on them has ended. */
#include "module.h"

#include <stdlib.h>

/* Submissions of one turn of Envoy's loop that a sleeping VM is not woken for, until another comes or the turn ends. More
   would save more wake-ups, but let the VM sleep for longer beside an Envoy that works. */
enum { MOST_UNCALLED = 7 };

void lane_free(struct lane *lane)
{
    struct worker *worker = lane->link->worker;
    pthread_mutex_lock(&worker->lock);
    struct lane **at = &lane->link->lanes;
    while (*at != lane)
        at = &(*at)->next;
    *at = lane->next;
    pthread_mutex_unlock(&worker->lock);
    if (lane->link->lane == lane)
        lane->link->lane = NULL;
    sbx_channel_close(lane->channel);
    free(lane);
}

void lane_new(struct link *link, sbx_channel *channel, const struct config *config)
{
    struct lane *lane = calloc(1, sizeof *lane);
    if (!lane) {
        sbx_channel_close(channel);
        return;
    }
    struct worker *worker = link->worker;
    lane->link = link;
    lane->channel = channel;
    lane->id = worker->ids += ID_STEP;
    sbx_channel_hooks(channel, &(sbx_hooks){lane, take_notice, take_late});
    sbx_channel_set_batch(channel, MOST_UNCALLED);
    if (config->spin_ns >= 0)
        sbx_channel_set_spin_ns(channel, (uint64_t)config->spin_ns);
    pthread_mutex_lock(&worker->lock);
    lane->next = link->lanes;
    link->lanes = lane;
    pthread_mutex_unlock(&worker->lock);
    link->lane = lane;
    link->down = link->unknown = false;
    link->backoff_ns = 0;
    waiter_watch_edges(worker, sbx_channel_fd(channel), lane->id);
    waiter_watch(worker, sbx_channel_socket(channel), lane->id | LANE_NEWS, true);
}

/* Reads what the daemon said about a lane, and takes it out of use if it has to go. */
void lane_news(struct lane *lane)
{
    sbx_error error = {0};
    if (!atomic_exchange(&lane->news, false) || lane->dead)
        return;
    int status = sbx_channel_check(lane->channel, &error);
    if (status == SBX_DRAIN)
        lane->draining = true;
    else if (status != SBX_OK)
        lane->dead = true;
    if ((lane->draining || lane->dead) && lane->link->lane == lane)
        lane->link->lane = NULL;
    if (!lane->dead)
        waiter_watch(lane->link->worker, sbx_channel_socket(lane->channel), lane->id | LANE_NEWS, false);
}

void lanes_free_unused(struct link *link)
{
    for (struct lane *lane = link->lanes, *next; lane; lane = next) {
        next = lane->next;
        if (!lane->filters && (lane->dead || lane->draining))
            lane_free(lane);
    }
}

void filter_join(struct filter *filter, struct lane *lane)
{
    filter->lane = lane;
    lane->filters++;
}

void filter_leave(struct filter *filter)
{
    struct lane *lane = filter->lane;
    if (!lane)
        return;
    filter->lane = NULL;
    lane->filters--;
    if (lane->looker == filter) {
        lane->looker = NULL;
        lane_touched(lane);
    }
    lanes_free_unused(lane->link);
}

bool lane_lost(const struct lane *lane, const sbx_stream *stream)
{
    return lane->dead || lane->vm_down || sbx_stream_lost(stream);
}

/* Those who wait have no event that would tell them. */
static void tell_of_loss(struct lane *lane)
{
    if (!lane->restarted && !lane->dead && !lane->vm_down)
        return;
    lane->restarted = false;
    for (struct filter *filter = lane->waiting.first; filter; filter = filter->next_waiting)
        schedule(filter);
}

/* Ended events are told to their filters. Returns the last of these, NULL: none but the running one's. */
static struct filter *tell_owners(const struct lane *lane, const struct filter *running)
{
    struct filter *last = NULL;
    sbx_event *event = NULL;
    while (sbx_next(lane->channel, &event) == SBX_OK) {
        struct filter *owner = sbx_event_user(event);
        if (!owner || owner == running)
            continue;
        schedule(owner);
        last = owner;
    }
    return last;
}

/* Looks for what has ended. Those whom it concerns go on one after the other, and the last of them looks again; if there is
   nobody, the waiter is asked to look. */
void lane_look(struct lane *lane, struct filter *running)
{
    struct worker *worker = lane->link->worker;
    lane_news(lane);
    lane->vm_down = !sbx_ready(lane->channel); /* which may find completions, so before they are told of */
    int status;
    do {
        lane->looker = tell_owners(lane, running);
        status = lane->looker ? SBX_OK : sbx_arm_edge(lane->channel);
    } while (status == SBX_AGAIN);
    if (status != SBX_OK)
        lane->vm_down = true;
    tell_of_loss(lane);
    pthread_mutex_lock(&worker->lock);
    lane->deadline_ns = sbx_next_deadline_ns(lane->channel);
    pthread_mutex_unlock(&worker->lock);
}

/*
 * After any use of a channel: what was found for others meanwhile must not be forgotten. Envoy first handles what it has at
 * hand, other exchanges among it, and comes back before it sleeps: one look then serves all that was submitted until then.
 */
void lane_touched(struct lane *lane)
{
    if (lane->looker)
        return;
    lane->looker = lane->waiting.first;
    if (lane->looker)
        schedule(lane->looker);
    else
        sbx_call(lane->channel);
}

