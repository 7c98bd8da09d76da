/* Channels: taken into use, listened to, and given up when the last stream on them has ended. */
#include "module.h"

#include <stdlib.h>

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
    if (config->spin_ns >= 0)
        sbx_channel_set_spin_ns(channel, (uint64_t)config->spin_ns);
    pthread_mutex_lock(&worker->lock);
    lane->next = link->lanes;
    link->lanes = lane;
    pthread_mutex_unlock(&worker->lock);
    link->lane = lane;
    link->down = link->unknown = false;
    link->backoff_ns = 0;
    waiter_watch(worker, sbx_channel_fd(channel), lane->id, true);
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
    for (struct filter *filter = lane->waiting; filter; filter = filter->next_waiting)
        schedule(filter);
}

/* Ended events are told to their filters; then the waiter is asked to look, or the loop goes on. */
void lane_poll(struct lane *lane, struct filter *running)
{
    struct worker *worker = lane->link->worker;
    sbx_event *event = NULL;
    int status;
    lane_news(lane);
    lane->vm_down = !sbx_ready(lane->channel); /* which may find completions, so before they are told of */
    do {
        while (sbx_next(lane->channel, &event) == SBX_OK) {
            struct filter *owner = sbx_event_user(event);
            if (owner && owner != running)
                schedule(owner);
        }
        status = sbx_arm(lane->channel);
    } while (status == SBX_AGAIN);
    tell_of_loss(lane);
    pthread_mutex_lock(&worker->lock);
    lane->deadline_ns = sbx_next_deadline_ns(lane->channel);
    pthread_mutex_unlock(&worker->lock);
    if (status == SBX_OK)
        waiter_watch(worker, sbx_channel_fd(lane->channel), lane->id, false);
}

/* After any use of a channel: what was found for others meanwhile must not be forgotten. */
void lane_touched(struct lane *lane)
{
    if (lane->waiting)
        lane_poll(lane, NULL);
}

