/* Who waits for what, and how Envoy is asked to look after a filter outside its hooks. */
#include "module.h"

bool has_scheduler(struct filter *filter)
{
    if (!filter->scheduler)
        filter->scheduler = ENVOY_CALL(http_filter_scheduler_new)(filter->envoy);
    return filter->scheduler != NULL;
}

/* Outside any hook Envoy is to look after the filter again. */
void schedule(struct filter *filter)
{
    if (!has_scheduler(filter) || filter->scheduled)
        return;
    filter->scheduled = true;
    ENVOY_CALL(http_filter_scheduler_commit)(filter->scheduler, 0);
}

static void append(struct filter **list, struct filter *filter)
{
    while (*list)
        list = &(*list)->next_waiting;
    filter->next_waiting = NULL;
    *list = filter;
}

void wait_for_lane(struct filter *filter)
{
    struct worker *worker = filter->lane->link->worker;
    if (!has_scheduler(filter))
        return;
    if (!filter->waits_for_lane) {
        pthread_mutex_lock(&worker->lock);
        filter->waits_for_lane = true;
        append(&filter->lane->waiting, filter);
        pthread_mutex_unlock(&worker->lock);
    }
    lane_poll(filter->lane, NULL);
}

void wait_for_link(struct filter *filter)
{
    struct worker *worker = filter->link->worker;
    if (filter->waits_for_link || !has_scheduler(filter))
        return;
    pthread_mutex_lock(&worker->lock);
    filter->waits_for_link = true;
    append(&filter->link->waiting, filter);
    pthread_mutex_unlock(&worker->lock);
}

static void remove_from(struct filter **list, struct filter **woken, struct filter *filter)
{
    for (struct filter **at = list; *at; at = &(*at)->next_waiting) {
        if (*at != filter)
            continue;
        *at = filter->next_waiting;
        break;
    }
    if (*woken != filter)
        return;
    /* It was to look after the others too. */
    *woken = *list;
    if (*list)
        ENVOY_CALL(http_filter_scheduler_commit)((*list)->scheduler, 0);
}

void stop_waiting(struct filter *filter)
{
    if (!filter->waits_for_lane && !filter->waits_for_link)
        return;
    struct worker *worker = filter->link->worker;
    pthread_mutex_lock(&worker->lock);
    if (filter->waits_for_lane)
        remove_from(&filter->lane->waiting, &filter->lane->woken, filter);
    if (filter->waits_for_link)
        remove_from(&filter->link->waiting, &filter->link->woken, filter);
    filter->waits_for_lane = filter->waits_for_link = false;
    pthread_mutex_unlock(&worker->lock);
}
